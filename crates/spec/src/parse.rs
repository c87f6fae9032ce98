//! Smolfile text to [`Smolfile`], with errors that name the line and the nearest right key.

use thiserror::Error;

use crate::definition::{
    Command, CpuProfile, KernelDef, NetDef, ReadyDef, RootDef, RunDef, Smolfile, SnapshotDef,
};
use crate::locate::locate;
use crate::machine::{MachineSpec, Ready, ReadyCheck, SPEC_VERSION, Service};
use crate::nearest::nearest;

/// Why a definition is refused. The text is whole: what, where, what to do.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DefinitionError {
    /// With the line, counted from 1.
    #[error("line {line}: {what}")]
    At { line: usize, what: String },
    /// About the definition as a whole.
    #[error("{0}")]
    Whole(String),
}

/// The JSON Schema of a Smolfile, pretty-printed.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(Smolfile);
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

/// Reads and validates a definition.
///
/// # Errors
/// [`DefinitionError`]: syntax, unknown keys, values out of range, contradictions.
pub fn parse(text: &str) -> Result<Smolfile, DefinitionError> {
    let file: Smolfile = toml::from_str(text).map_err(|e| explain(text, &e))?;
    validate(&file).map_err(|complaint| complaint.placed(text))?;
    Ok(file)
}

/// A TOML error with its line, and the nearest key when one is unknown.
fn explain(text: &str, error: &toml::de::Error) -> DefinitionError {
    let what = unknown_key(error.message()).unwrap_or_else(|| error.message().to_owned());
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or(text);
            DefinitionError::At { line: before.matches('\n').count() + 1, what }
        }
        None => DefinitionError::Whole(what),
    }
}

/// serde says "unknown field `x`, expected one of `a`, `b`": say it as a person would.
fn unknown_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, expected) = rest.split_once('`')?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    Some(match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
        None => format!("unknown key `{key}`; known here: {}", known.join(", ")),
    })
}

/// What is wrong, and with which key.
struct Complaint {
    path: Vec<String>,
    what: String,
}

impl Complaint {
    fn placed(self, text: &str) -> DefinitionError {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        DefinitionError::placed(text, &path, self.what)
    }
}

impl DefinitionError {
    /// Something that is wrong with what `path` leads to in a definition's text (see [`locate`]).
    pub fn placed(text: &str, path: &[&str], what: String) -> Self {
        match locate(text, path) {
            Some(line) => DefinitionError::At { line, what },
            None => DefinitionError::Whole(what),
        }
    }
}

fn refuse(path: &[&str], what: impl Into<String>) -> Result<(), Complaint> {
    let path = path.iter().map(|part| (*part).to_owned()).collect();
    Err(Complaint { path, what: what.into() })
}

fn validate(file: &Smolfile) -> Result<(), Complaint> {
    if let Some(name) = &file.name
        && !valid_name(name)
    {
        return refuse(&["name"], format!("name = {name:?} is no name; {NAMES}"));
    }
    if !(1..=16).contains(&file.cpus) {
        return refuse(&["cpus"], format!("cpus = {} is out of range; 1 to 16", file.cpus));
    }
    if file.memory.0 < 64 << 20 || file.memory.0 > 1 << 40 {
        let what = format!("memory = \"{}\" is out of range; 64MiB to 1TiB", file.memory);
        return refuse(&["memory"], what);
    }
    if file.cpu == CpuProfile::Host {
        return refuse(&["cpu"], "cpu = \"host\" is planned; use \"portable\"");
    }
    validate_root(&file.root)?;
    if let Some(kernel) = &file.kernel {
        validate_kernel(kernel)?;
    }
    validate_steps(file)?;
    if let Some(run) = &file.run {
        validate_run(run)?;
    }
    if let Some(ready) = &file.ready {
        if !has_service(file) {
            return refuse(&["ready"], "[ready] needs a [run] command to wait for");
        }
        if let Err(what) = ready_check(ready) {
            return refuse(&["ready"], what);
        }
    }
    validate_snapshots(file)
}

fn validate_steps(file: &Smolfile) -> Result<(), Complaint> {
    match file.build.steps.iter().position(|line| line.trim().is_empty()) {
        Some(i) => refuse(&["build", "steps", &i.to_string()], format!("step {} is empty; remove it", i + 1)),
        None => Ok(()),
    }
}

fn validate_run(run: &RunDef) -> Result<(), Complaint> {
    let program = match &run.command {
        Command::Shell(line) => Some(line),
        Command::Argv(argv) => argv.first(),
    };
    if program.is_none_or(|program| program.trim().is_empty()) {
        return refuse(&["run", "command"], "command is empty; give at least the program");
    }
    if let Some(user) = run.user.as_ref().filter(|user| user.is_empty() || user.contains(char::is_whitespace))
    {
        let what = format!("user = {user:?} is no user; write name, uid, name:group or uid:gid");
        return refuse(&["run", "user"], what);
    }
    if let Some(dir) = run.workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
        let what = format!("workdir = {dir:?} must be an absolute path in the guest, like \"/srv/app\"");
        return refuse(&["run", "workdir"], what);
    }
    if run.ports.contains(&0) {
        return refuse(&["run", "ports"], "ports: 0 is no port; write those that the service listens on");
    }
    Ok(())
}

/// Whether there may be a service: an image can bring its own.
fn has_service(file: &Smolfile) -> bool {
    file.run.is_some() || file.root.image.is_some()
}

fn validate_root(root: &RootDef) -> Result<(), Complaint> {
    let sources = [
        ("packages", root.packages.is_some()),
        ("image", root.image.is_some()),
        ("dir", root.dir.is_some()),
        ("tar", root.tar.is_some()),
    ];
    let given: Vec<&str> = sources.iter().filter(|s| s.1).map(|s| s.0).collect();
    if let [_, second, ..] = given[..] {
        let what = format!("[root] has {} sources ({}); keep one", given.len(), given.join(", "));
        return refuse(&["root", second], what);
    }
    if root.image.as_ref().is_some_and(|image| image.trim().is_empty()) {
        let what = "image is empty; write oci:DIR, docker-archive:FILE, or a name like debian:12";
        return refuse(&["root", "image"], what);
    }
    if root.packages.as_ref().is_some_and(Vec::is_empty) {
        let what = "packages is empty; name some, or remove it for the built-in machine";
        return refuse(&["root", "packages"], what);
    }
    for (host, guest) in &root.files {
        if !guest.starts_with('/') || guest.split('/').any(|part| part == "..") {
            let what = format!("files: {guest:?} must be an absolute guest path without `..`");
            return refuse(&["root", "files", host], what);
        }
    }
    Ok(())
}

/// Bytes that a definition may add to the kernel's command line; 4095 is what fits in all.
const COMMAND_LINE: usize = 2048;

fn validate_kernel(kernel: &KernelDef) -> Result<(), Complaint> {
    if kernel.image.trim().is_empty() {
        return refuse(&["kernel", "image"], "image is empty; name a bzImage or vmlinux");
    }
    let line = &kernel.command_line;
    if line.len() > COMMAND_LINE || line.contains(|c: char| !c.is_ascii() || c.is_ascii_control()) {
        let what = format!("command_line: at most {COMMAND_LINE} printable ASCII characters on one line");
        return refuse(&["kernel", "command_line"], what);
    }
    Ok(())
}

/// Names are unique, each point is one, and they come in the order of a machine's life.
fn validate_snapshots(file: &Smolfile) -> Result<(), Complaint> {
    let mut before = (0, "");
    for (i, point) in file.snapshot.iter().enumerate() {
        let number = i.to_string();
        let at = |key: &'static str| ["snapshot".to_owned(), number.clone(), key.to_owned()];
        let refuse_at = |key, what| Err(Complaint { path: at(key).into(), what });
        let name = &point.name;
        if !valid_name(name) {
            return refuse_at("name", format!("snapshot name {name:?} is no name; {NAMES}"));
        }
        if file.snapshot[..i].iter().any(|other| other.name == *name) {
            return refuse_at("name", format!("two snapshots are named `{name}`; give each its own name"));
        }
        let place = match point_of(file, point) {
            Ok(place) => place,
            Err((key, what)) => return refuse_at(key, what),
        };
        let (last, other) = before;
        if place == last && place == u32::MAX {
            let what = format!("`{other}` is at = \"ready\" already; one snapshot can be");
            return refuse_at("at", what);
        }
        if place < last {
            let key = if point.at.is_some() { "at" } else { "after_step" };
            let what =
                format!("`{name}` comes before `{other}`; list snapshots in their order, \"ready\" last");
            return refuse_at(key, what);
        }
        before = (place, name);
    }
    Ok(())
}

/// When in the machine's life a snapshot is made: its step, or after all of them.
fn point_of(file: &Smolfile, point: &SnapshotDef) -> Result<u32, (&'static str, String)> {
    let steps = file.build.steps.len();
    match (point.after_step, point.at) {
        (Some(n), None) if n >= 1 && n as usize <= steps => Ok(n),
        (Some(n), None) => Err((
            "after_step",
            format!(
                "after_step = {n}, but [build] has {steps} step{}; they count from 1",
                if steps == 1 { "" } else { "s" }
            ),
        )),
        (None, Some(_)) if has_service(file) => Ok(u32::MAX),
        (None, Some(_)) => Err(("at", "at = \"ready\" needs a [run] command; or use after_step".to_owned())),
        _ => Err((
            "name",
            format!("snapshot `{}` needs exactly one of after_step = N and at = \"ready\"", point.name),
        )),
    }
}

/// What a name may look like, for messages.
const NAMES: &str = "it begins with a-z or 0-9 and goes on with those and _ . - (63 characters at most)";

/// Whether a word can name an instance, a machine or a snapshot: `[a-z0-9][a-z0-9_.-]{0,62}`.
pub fn valid_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 63
        && name.bytes().next().is_some_and(ok)
        && name.bytes().all(|b| ok(b) || matches!(b, b'_' | b'.' | b'-'))
}

/// The one check of a `[ready]` table.
fn ready_check(ready: &ReadyDef) -> Result<ReadyCheck, String> {
    let mut checks = Vec::new();
    checks.extend(ready.port.map(ReadyCheck::Port));
    checks.extend(ready.http.clone().map(ReadyCheck::Http));
    checks.extend(ready.socket.clone().map(ReadyCheck::Socket));
    checks.extend(ready.log.clone().map(ReadyCheck::Log));
    checks.extend(ready.exec.as_ref().map(|c| ReadyCheck::Exec(c.argv())));
    checks.extend(ready.after.map(|d| ReadyCheck::AfterMs(d.0.as_millis() as u64)));
    match checks.len() {
        1 => {}
        n => {
            return Err(format!(
                "[ready] has {n} checks; exactly one of port, http, socket, log, exec, after"
            ));
        }
    }
    let check = checks.remove(0);
    if let ReadyCheck::Http(url) = &check {
        let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
        if !local.iter().any(|l| url.starts_with(l)) {
            return Err(format!("ready.http `{url}` must be a http:// URL on the guest's loopback"));
        }
    }
    Ok(check)
}

impl Smolfile {
    /// What the definition means.
    ///
    /// # Errors
    /// [`DefinitionError::Whole`] for a definition that [`parse`] would refuse.
    pub fn resolve(&self, default_name: &str) -> Result<MachineSpec, DefinitionError> {
        validate(self).map_err(|complaint| DefinitionError::Whole(complaint.what))?;
        let ready = match &self.ready {
            Some(def) => Some(Ready {
                check: ready_check(def).map_err(DefinitionError::Whole)?,
                timeout_ms: def.timeout.map_or(60_000, |t| t.0.as_millis() as u64),
            }),
            None => None,
        };
        Ok(MachineSpec {
            version: SPEC_VERSION,
            name: self.name.clone().unwrap_or_else(|| default_name.to_owned()),
            vcpus: self.cpus,
            memory: self.memory.0.next_multiple_of(4096),
            cpu: self.cpu,
            command_line: self.kernel.as_ref().map(|kernel| kernel.command_line.clone()).unwrap_or_default(),
            service: self.run.as_ref().map(|run| Service {
                argv: run.command.argv(),
                env: run.env.clone().into_iter().collect(),
                user: run.user.clone(),
                workdir: run.workdir.clone(),
                stop_signal: None,
                ports: run.ports.clone(),
            }),
            ready,
            hooks: self.hooks.clone(),
            env: Vec::new(),
            net: self.net.as_ref().and_then(NetDef::spec),
            image: None,
        })
    }
}
