//! What the words mean: WHAT, names, ports, environment.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use instance::forward::Publish;
use store::{ImportOptions, Pin};

use crate::args::Process;
use crate::launch::{Exec, Home};

pub mod config;
mod containers;
pub use containers::{Source, registry};

/// What `run` was asked to run.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// The built-in machine.
    BuiltIn,
    /// A machine file.
    File(PathBuf),
    /// A name in the store.
    Stored(String),
    /// A container image or a plain root.
    Source(Source),
}

impl What {
    /// As the user called it.
    pub fn label(&self) -> String {
        match self {
            What::BuiltIn => "built-in".to_owned(),
            What::File(path) => path.display().to_string(),
            What::Stored(name) => name.clone(),
            What::Source(source) => source.label(),
        }
    }
}

/// Splits `[WHAT] [--] [CMD…]`: with `--` first there is no WHAT.
///
/// # Errors
/// A WHAT that is nothing smolvm knows.
pub fn split(words: &[String], leading_dashes: bool, home: &Home) -> Result<(What, Vec<String>)> {
    let Some((first, rest)) = words.split_first().filter(|_| !leading_dashes) else {
        return Ok((What::BuiltIn, words.to_vec()));
    };
    let command = match rest.split_first() {
        Some((dashes, rest)) if dashes == "--" => rest.to_vec(),
        _ => rest.to_vec(),
    };
    Ok((what(first, home)?, command))
}

/// A WHAT that must be a machine file.
///
/// # Errors
/// As [`split`]; something else than a machine file.
pub fn machine_file(word: &str, home: &Home) -> Result<What> {
    match what(word, home)? {
        found @ (What::File(_) | What::Stored(_)) => Ok(found),
        other => bail!("`{}` is no machine file; `smolvm run` makes one of it", other.label()),
    }
}

/// CLI.md, "Referring to things".
fn what(word: &str, home: &Home) -> Result<What> {
    let path = Path::new(word);
    if word != "-" && ((word.contains('/') && path.exists()) || word.ends_with(".smolmachine")) {
        return Ok(What::File(path.to_owned()));
    }
    if home.store.find(word).is_ok() {
        return Ok(What::Stored(word.to_owned()));
    }
    if let Some(source) = Source::parse(word)? {
        return Ok(What::Source(source));
    }
    if word.contains('/') {
        return Ok(What::File(path.to_owned()));
    }
    bail!("`{word}` {NEITHER}, and is no name of a container image; did you mean: {}?", meant(word))
}

/// What a word is not, before it is taken for a container image's.
const NEITHER: &str = "is no machine file (a path has a `/` or ends in .smolmachine) and no name in the store \
                       (`smolvm images` lists them)";

/// What may have been meant by a word that is nothing.
fn meant(word: &str) -> String {
    let file = format!("{word}.smolmachine");
    if Path::new(&file).exists() { format!("smolvm run {file}") } else { format!("smolvm run -- {word}") }
}

/// An image that could not be had; of a bare word, which may have been meant otherwise, all that was tried.
pub fn not_had(word: Option<&String>, error: anyhow::Error) -> anyhow::Error {
    match word.filter(|word| *word != "-" && !word.contains(['/', ':', '@'])) {
        Some(word) => anyhow::anyhow!(
            "`{word}` {NEITHER}; taken for a container image: {error:#}\ndid you mean: {}?",
            meant(word)
        ),
        None => error,
    }
}

/// Brings a WHAT into the store and holds it.
///
/// # Errors
/// The file's: not there, foreign, damaged; no room.
pub fn fetch(what: &What, home: &Home) -> Result<Pin> {
    match what {
        What::File(path) => Ok(home.store.fetch(path, ImportOptions::default())?),
        What::Stored(name) => Ok(home.store.pin(&home.store.find(name)?)?),
        What::BuiltIn | What::Source(_) => bail!("{} is no file", what.label()),
    }
}

/// `[IP:]HOST:GUEST[/tcp|/udp]`, loopback by default.
///
/// # Errors
/// Words that are no port.
pub fn publish(word: &str) -> Result<Publish> {
    let form = || format!("`-p {word}`: write [IP:]HOST:GUEST, like 8000:80 or 0.0.0.0:8000:80");
    let plain = match word.split_once('/') {
        Some((plain, "tcp")) => plain,
        Some((plain, "udp")) => plain,
        Some(_) => bail!(form()),
        None => word,
    };
    let (front, guest) = plain.rsplit_once(':').with_context(form)?;
    let (ip, host) = match front.rsplit_once(':') {
        Some((ip, host)) => (ip.trim_matches(['[', ']']).parse::<IpAddr>().with_context(form)?, host),
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), front),
    };
    let guest = guest.parse().ok().filter(|p| *p > 0).with_context(form)?;
    Ok(Publish { host: SocketAddr::new(ip, host.parse().with_context(form)?), guest })
}

/// `--net` and its companions; each of those means a network, too.
///
/// # Errors
/// Words that are no port or address, a companion of `--net=off`.
pub fn network(run: &crate::args::Run) -> Result<instance::NetOptions> {
    let udp: Vec<Publish> =
        run.publish.iter().filter(|p| p.ends_with("/udp")).map(|p| publish(p)).collect::<Result<_>>()?;
    let address = |word: &String| {
        let whole = word.parse::<SocketAddr>();
        whole.or_else(|_| Ok(SocketAddr::new(word.parse()?, 53)))
    };
    let dns: Vec<SocketAddr> = run
        .dns
        .iter()
        .map(|word| {
            address(word).map_err(|_: std::net::AddrParseError| {
                anyhow::anyhow!("--dns {word}: write an address, like 192.0.2.53")
            })
        })
        .collect::<Result<_>>()?;
    let wanted =
        !(udp.is_empty() && dns.is_empty() && run.allow_host.is_empty() && run.allow_cidr.is_empty());
    if run.net == Some(false) && wanted {
        bail!(
            "--net=off leaves nothing for --allow-host, --allow-cidr, --dns and -p …/udp; drop one or the other"
        );
    }
    for cidr in &run.allow_cidr {
        cidr.parse::<netstack::Cidr>().map_err(anyhow::Error::msg)?;
    }
    for host in &run.allow_host {
        host.parse::<netstack::HostPattern>().map_err(anyhow::Error::msg)?;
    }
    Ok(instance::NetOptions {
        switch: run.net.or(wanted.then_some(true)),
        allow_hosts: run.allow_host.clone(),
        allow_cidrs: run.allow_cidr.clone(),
        dns,
        udp,
    })
}

/// `-e`, `--env-file`, with the host's value for a bare KEY.
///
/// # Errors
/// A file that cannot be read, a word without a key.
pub fn environment(process: &Process) -> Result<Vec<(String, String)>> {
    let mut env = Vec::new();
    for path in &process.env_file {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading --env-file {}", path.display()))?;
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            variable(line, &mut env)?;
        }
    }
    for word in &process.env {
        variable(word, &mut env)?;
    }
    Ok(env)
}

fn variable(word: &str, env: &mut Vec<(String, String)>) -> Result<()> {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (word, std::env::var(word).ok()),
    };
    if key.is_empty() {
        bail!("`-e {word}` has no name; write KEY=VALUE");
    }
    // A bare KEY that the host does not have is not passed, as docker does.
    env.extend(value.map(|v| (key.to_owned(), v)));
    Ok(())
}

/// The command of `run` and `exec`, with the host's time zone, locale and terminal.
///
/// # Errors
/// As [`environment`].
pub fn exec(process: &Process, argv: &[String]) -> Result<Exec> {
    Ok(Exec {
        argv: argv.to_vec(),
        env: environment(process)?,
        host_env: host_environment(process.tty),
        workdir: process.workdir.clone(),
        user: process.user.clone(),
    })
}

/// What a command should see of this host's settings: TZ, locale and, with a terminal, TERM. Proxy
/// settings are not among them: `-e https_proxy` passes one.
fn host_environment(tty: bool) -> Vec<(String, String)> {
    let locale = |name: &str| name == "LANG" || name == "LANGUAGE" || name.starts_with("LC_");
    let wanted = |name: &str| locale(name) || (tty && name == "TERM");
    let mut env: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| wanted(name) && !value.is_empty())
        .collect();
    let zone = std::env::var("TZ").ok().filter(|zone| !zone.is_empty());
    env.extend(zone.or_else(local_zone).map(|zone| ("TZ".to_owned(), zone)));
    env
}

/// This host's time zone as a rule that needs no data in the guest: the last line of its file (RFC
/// 8536, 3.3). `None` for UTC, which every guest has.
fn local_zone() -> Option<String> {
    let file = fs::read("/etc/localtime").ok()?;
    let text = file.strip_suffix(b"\n")?;
    let rule = text.rsplit(|byte| *byte == b'\n').next()?;
    let rule = std::str::from_utf8(rule).ok().filter(|rule| rule.bytes().all(|b| b.is_ascii_graphic()))?;
    (!matches!(rule, "" | "UTC0" | "GMT0")).then(|| rule.to_owned())
}

/// `--hostname`: letters, digits, dots and hyphens (RFC 1123, 2.1), at most 64 (Linux).
///
/// # Errors
/// Anything else.
pub fn hostname(word: &str) -> Result<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if word.is_empty() || word.len() > 64 || !word.bytes().all(fits) || word.starts_with('-') {
        bail!("`--hostname {word}`: write 1 to 64 letters, digits, dots and hyphens");
    }
    Ok(word.to_owned())
}

/// `NAME:PATH` or a path of the host, for `cp`.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    Guest {
        name: String,
        path: String,
    },
    Host(PathBuf),
    /// `-`: a tar on standard input or output.
    Tar,
}

/// As docker reads it: a colon after a valid name means a machine; `./a:b` is a host path.
pub fn place(word: &str) -> Place {
    match word.split_once(':') {
        _ if word == "-" => Place::Tar,
        Some((name, path)) if spec::valid_name(name) => Place::Guest { name: name.into(), path: path.into() },
        _ => Place::Host(PathBuf::from(word)),
    }
}

/// Words of `--hooks`.
pub fn hooks(words: &[String]) -> Result<spec::Hooks> {
    let mut hooks = spec::Hooks::default();
    for word in words {
        let (when, line) = word.split_once('=').unwrap_or((word, ""));
        let lines = match when {
            "before_snapshot" => &mut hooks.before_snapshot,
            "after_restore" => &mut hooks.after_restore,
            _ => bail!("--hooks {word}: write before_snapshot=CMD or after_restore=CMD"),
        };
        if line.trim().is_empty() {
            bail!("--hooks {word}: a shell line is missing after `{when}=`");
        }
        lines.push(line.to_owned());
    }
    Ok(hooks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let of = |word| publish(word).map(|p| (p.host.to_string(), p.guest));
        assert_eq!(of("8000:80").unwrap(), ("127.0.0.1:8000".into(), 80));
        assert_eq!(of("0.0.0.0:8000:80/tcp").unwrap(), ("0.0.0.0:8000".into(), 80));
        assert_eq!(of("[::1]:8000:80").unwrap(), ("[::1]:8000".into(), 80));
        for bad in ["80", "a:80", "80:0", "80:99999", "1:2/sctp"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hooks_are_told_apart_by_when_they_run() {
        let words = ["after_restore=a=b c", "before_snapshot=x", "after_restore=d"].map(str::to_owned);
        let told = hooks(&words).unwrap();
        assert_eq!(
            (told.after_restore, told.before_snapshot),
            (vec!["a=b c".into(), "d".into()], vec!["x".into()])
        );
        for bad in ["after_restore", "after_restore= ", "at_night=x", ""] {
            assert!(hooks(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn places() {
        assert_eq!(place("-"), Place::Tar);
        assert_eq!(place("web:/a"), Place::Guest { name: "web".into(), path: "/a".into() });
        assert_eq!(place("./web:/a"), Place::Host("./web:/a".into()));
        assert_eq!(place("/tmp/x"), Place::Host("/tmp/x".into()));
    }
}
