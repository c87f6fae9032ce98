//! `exec` and `shell`.

use std::os::unix::net::UnixStream;

use agent_protocol::ErrorKind;
use anyhow::{Result, bail};
use instance::control::Client;
use instance::session::{self, Session, Target};
use instance::{Error, Instance, Phase};

use crate::args::{Exec, Process, Shell};
use crate::cmd::rescue;
use crate::launch::{Defaults, Home};
use crate::resolve;

/// A stream to the agent of a running instance.
pub fn agent(name: &str, home: &Home) -> Result<UnixStream> {
    let instance = Instance::open(&home.dirs, name)?;
    Ok(Client::new(&instance)?.connect(agent_protocol::AGENT_PORT)?)
}

/// The same for a command, with what the machine's definition gives it.
fn agent_for(name: &str, home: &Home) -> Result<(UnixStream, Defaults)> {
    let instance = Instance::open(&home.dirs, name)?;
    let (told, stream) = Client::new(&instance)?.connect_told(agent_protocol::AGENT_PORT)?;
    // A VMM of another version may say nothing: then there are none.
    Ok((stream, serde_json::from_value(told).unwrap_or_default()))
}

/// Starts a session. A snapshot that began between the connection and its first word is waited out by the next
/// connection (`Vmm::wait_while_standing`).
fn start(name: &str, stream: UnixStream, target: &Target, home: &Home) -> Result<Session, Error> {
    match session::start(stream, target) {
        Err(Error::Agent(e)) if e.kind() == ErrorKind::Busy => {
            let instance = Instance::open(&home.dirs, name)?;
            session::start(Client::new(&instance)?.connect(agent_protocol::AGENT_PORT)?, target)
        }
        started => started,
    }
}

/// Carries a session to its end; a machine that was frozen or stopped meanwhile is named.
pub fn carry(name: &str, stream: UnixStream, target: &Target, home: &Home) -> Result<u8> {
    match start(name, stream, target, home).and_then(Session::join) {
        Ok(ending) => Ok(ending.code()),
        Err(error) => {
            let instance = Instance::open(&home.dirs, name)?;
            match instance.record().map(|r| r.phase) {
                Ok(phase @ (Phase::Frozen | Phase::Stopped)) => bail!(
                    "`{name}` was {} meanwhile; after `smolvm start {name}`, `smolvm attach {name}` joins what \
                     still runs",
                    phase.word()
                ),
                _ => Err(error.into()),
            }
        }
    }
}

pub fn exec(exec: &Exec, home: &Home) -> Result<u8> {
    // clap keeps a `--` before the command as its first word.
    let argv = exec.command.strip_prefix(&["--".to_owned()]).unwrap_or(&exec.command);
    let command = resolve::exec(&exec.process, argv)?;
    let (stream, defaults) = agent_for(&exec.name, home)?;
    let mut spec = command.spec(&defaults);
    spec.tty = exec.process.tty.then(Target::window);
    // Left with the detach keys, it goes on; a terminal that closes is carried as SIGHUP.
    spec.keep = exec.process.tty || exec.detach;
    spec.stdin = exec.process.interactive;
    if exec.detach {
        // It runs when this returns, and goes on without its connection.
        session::start(stream, &Target::Exec(spec))?;
        return Ok(0);
    }
    carry(&exec.name, stream, &Target::Exec(spec), home)
}

/// The user's shell from the guest's own passwd, else sh.
pub fn shell(shell: &Shell, home: &Home) -> Result<u8> {
    if shell.rescue {
        return rescue::rescue(shell, home);
    }
    let process = Process { user: shell.user.clone(), tty: true, interactive: true, ..Process::default() };
    let find = "exec \"$(awk -F: -v u=\"$(id -u)\" '$3==u{print $7;exit}' /etc/passwd 2>/dev/null || echo /bin/sh)\" -l";
    let argv = ["/bin/sh", "-c", find].map(str::to_owned);
    let command = resolve::exec(&process, &argv)?;
    let (stream, defaults) = agent_for(&shell.name, home)?;
    let mut spec = command.spec(&defaults);
    spec.tty = Some(Target::window());
    spec.keep = true;
    spec.stdin = true;
    carry(&shell.name, stream, &Target::Exec(spec), home)
}
