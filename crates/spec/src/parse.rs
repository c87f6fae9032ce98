//! Smolfile text to [`Smolfile`], with errors that name the line and the nearest right key.

use thiserror::Error;

use crate::definition::{CpuProfile, ReadyDef, RootDef, Smolfile};
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
    validate(&file).map_err(|(key, what)| match line_of(text, key) {
        Some(line) => DefinitionError::At { line, what },
        None => DefinitionError::Whole(what),
    })?;
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

/// The line that sets `key`, for errors found after parsing.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let at = text.lines().position(|l| {
        let l = l.trim_start();
        l.strip_prefix(key).is_some_and(|r| r.trim_start().starts_with(['=', ']'])) || l == format!("[{key}]")
    })?;
    Some(at + 1)
}

type Complaint = (&'static str, String);

fn refuse(key: &'static str, what: impl Into<String>) -> Result<(), Complaint> {
    Err((key, what.into()))
}

fn validate(file: &Smolfile) -> Result<(), Complaint> {
    if let Some(name) = &file.name
        && !valid_name(name)
    {
        return refuse("name", format!("name `{name}` is not usable; allowed: [a-z0-9][a-z0-9_.-]{{0,62}}"));
    }
    if !(1..=16).contains(&file.cpus) {
        return refuse("cpus", format!("cpus = {} is out of range; 1 to 16", file.cpus));
    }
    if file.memory.0 < 64 << 20 || file.memory.0 > 1 << 40 {
        return refuse("memory", format!("memory = \"{}\" is out of range; 64MiB to 1TiB", file.memory));
    }
    if file.cpu == CpuProfile::Host {
        return refuse("cpu", "cpu = \"host\" is planned; use \"portable\"");
    }
    validate_root(&file.root)?;
    if let Some(ready) = &file.ready {
        if file.run.is_none() {
            return refuse("ready", "[ready] needs a [run] command to wait for");
        }
        ready_check(ready).map_err(|what| ("ready", what))?;
    }
    if file.run.as_ref().is_some_and(|r| r.command.argv().is_empty()) {
        return refuse("command", "command is empty; give at least the program");
    }
    validate_snapshots(file)
}

fn validate_root(root: &RootDef) -> Result<(), Complaint> {
    let sources = [
        ("packages", root.packages.is_some()),
        ("image", root.image.is_some()),
        ("dir", root.dir.is_some()),
        ("tar", root.tar.is_some()),
    ];
    let given: Vec<&str> = sources.iter().filter(|s| s.1).map(|s| s.0).collect();
    if given.len() > 1 {
        return refuse(
            "root",
            format!("[root] has {} sources ({}); keep one", given.len(), given.join(", ")),
        );
    }
    if root.image.is_some() {
        return refuse("image", "root images from a registry are planned; use packages, dir or tar");
    }
    for guest in root.files.values() {
        if !guest.starts_with('/') || guest.split('/').any(|part| part == "..") {
            return refuse("files", format!("files: `{guest}` must be an absolute guest path without `..`"));
        }
    }
    Ok(())
}

fn validate_snapshots(file: &Smolfile) -> Result<(), Complaint> {
    for (i, point) in file.snapshot.iter().enumerate() {
        if !valid_name(&point.name) {
            return refuse("snapshot", format!("snapshot name `{}` is not usable", point.name));
        }
        if file.snapshot[..i].iter().any(|other| other.name == point.name) {
            return refuse("snapshot", format!("two snapshots are named `{}`", point.name));
        }
        let steps = file.build.steps.len();
        match (point.after_step, point.at) {
            (Some(n), None) if n >= 1 && n as usize <= steps => {}
            (Some(n), None) => {
                return refuse(
                    "after_step",
                    format!("after_step = {n}, but [build] has {steps} steps (counted from 1)"),
                );
            }
            (None, Some(_)) if file.run.is_some() => {}
            (None, Some(_)) => return refuse("at", "at = \"ready\" needs a [run] command"),
            _ => {
                return refuse(
                    "snapshot",
                    format!("snapshot `{}` needs exactly one of after_step and at", point.name),
                );
            }
        }
    }
    Ok(())
}

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
        validate(self).map_err(|(_, what)| DefinitionError::Whole(what))?;
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
            command_line: String::new(),
            service: self.run.as_ref().map(|run| Service {
                argv: run.command.argv(),
                env: run.env.clone().into_iter().collect(),
                user: run.user.clone(),
                workdir: run.workdir.clone(),
            }),
            ready,
            hooks: self.hooks.clone(),
            env: Vec::new(),
        })
    }
}
