//! `exec` and `shell`.

use agent_protocol::ErrorKind;
use anyhow::{Result, bail};
use instance::control::Client;
use instance::session::{self, Target};
use instance::{Error, Instance, Phase};

use crate::args::{Exec, Process, Shell};
use crate::launch::Home;
use crate::resolve;

/// A stream to the agent of a running instance.
pub fn agent(name: &str, home: &Home) -> Result<std::os::unix::net::UnixStream> {
    let instance = Instance::open(&home.dirs, name)?;
    Ok(Client::new(&instance)?.connect(agent_protocol::AGENT_PORT)?)
}

/// How often a session is asked for again.
const ATTEMPTS: usize = 5;

/// Carries a session to its end; a machine that was frozen or stopped meanwhile is named.
pub fn carry(name: &str, target: &Target, home: &Home) -> Result<u8> {
    let mut attached = session::attach(agent(name, home)?, target);
    for _ in 0..ATTEMPTS {
        // Refused, having started nothing, because the machine stood still for a snapshot at that
        // moment: connecting waits until it goes on.
        match &attached {
            Err(Error::Agent(error)) if error.kind() == ErrorKind::Busy => {
                attached = session::attach(agent(name, home)?, target);
            }
            _ => break,
        }
    }
    match attached {
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
    let mut spec = resolve::exec(&exec.process, argv)?.spec();
    spec.tty = exec.process.tty.then(Target::window);
    spec.stdin = exec.process.interactive;
    carry(&exec.name, &Target::Exec(spec), home)
}

/// The user's shell from the guest's own passwd, else sh.
pub fn shell(shell: &Shell, home: &Home) -> Result<u8> {
    let process = Process { user: shell.user.clone(), tty: true, interactive: true, ..Process::default() };
    let find = "exec \"$(awk -F: -v u=\"$(id -u)\" '$3==u{print $7;exit}' /etc/passwd 2>/dev/null || echo /bin/sh)\" -l";
    let argv = ["/bin/sh", "-c", find].map(str::to_owned);
    let mut spec = resolve::exec(&process, &argv)?.spec();
    spec.tty = Some(Target::window());
    spec.stdin = true;
    carry(&shell.name, &Target::Exec(spec), home)
}
