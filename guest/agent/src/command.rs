//! Short commands run to their end by a forked copy: hooks, and readiness checks that are commands.

use crate::agent::now_ms;
use crate::spawn::{Stdio, outcome, prepare, spawn};
use crate::world::World;
use agent_protocol::{ErrorKind, ExecSpec, Failure, HookSet, RestoreReason};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, WaitOptions};

/// How long a hook may take when nothing else was said. Long enough for many copies that run theirs at once on a busy host:
/// to go on without what a hook would have changed may be worse than to wait.
const HOOK_MS: u64 = 60_000;

/// Waits for a descriptor for at most `limit_ms`.
pub fn wait_readable(fd: &rustix::fd::OwnedFd, flags: PollFlags, limit_ms: u64) -> bool {
    let limit = Timespec { tv_sec: (limit_ms / 1000) as i64, tv_nsec: (limit_ms % 1000) as i64 * 1_000_000 };
    let mut watched = [PollFd::new(fd, flags)];
    matches!(poll(&mut watched, Some(&limit)), Ok(n) if n > 0)
}

/// Runs a command until it ends or `limit_ms` passed; true when it exited with 0. Its output goes nowhere.
///
/// # Errors
/// What kept it from running; `TimedOut` (it was killed then); for a failure its exit status, as `Other`.
pub fn run(world: &World, spec: &ExecSpec, user: bool, limit_ms: u64) -> Result<(), Failure> {
    let other =
        |what: &str, error: std::io::Error| Failure::new(ErrorKind::Other, format!("{what}: {error}"));
    let word = spec.argv.first().cloned().unwrap_or_default();
    let streams = (|| Ok([world.null()?, world.null()?, world.null()?]))()
        .map_err(|error| other("/dev/null", error))?;
    let end = now_ms().saturating_add(limit_ms);
    let started = spawn(world, &prepare(world, spec)?, &Stdio::Pipes(streams), user)
        .map_err(|error| other("making a process", error))?;
    let left = || end.saturating_sub(now_ms());
    let handle = rustix::process::pidfd_open(started.pid, PidfdFlags::empty())
        .map_err(|error| other("watching a process", error.into()))?;
    let ended = wait_readable(&handle, PollFlags::IN, left());
    if !ended {
        let _ = crate::sessions::signal_group(started.pid, Signal::KILL);
        let _ = rustix::process::kill_process(started.pid, Signal::KILL);
    }
    let status = rustix::process::waitpid(Some(started.pid), WaitOptions::empty());
    outcome(&started.status, &word, spec.cwd.as_deref().unwrap_or("/"))?;
    match status {
        _ if !ended => {
            Err(Failure::new(ErrorKind::TimedOut, format!("'{word}' took longer than {limit_ms} ms")))
        }
        Ok(Some((_, status))) if status.exit_status() == Some(0) => Ok(()),
        Ok(Some((_, status))) => {
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with {code}"),
                (_, Some(signal)) => format!("was killed by signal {signal}"),
                _ => "ended".to_string(),
            };
            Err(Failure::new(ErrorKind::Other, format!("'{word}' {how}")))
        }
        _ => Err(Failure::new(ErrorKind::Other, format!("'{word}' could not be waited for"))),
    }
}

/// Runs hooks in order, each told why.
///
/// # Errors
/// The first that fails.
pub fn run_hooks(world: &World, hooks: &HookSet, reason: &str) -> Result<(), Failure> {
    let limit = if hooks.timeout_ms == 0 { HOOK_MS } else { u64::from(hooks.timeout_ms) };
    for command in &hooks.commands {
        let spec = ExecSpec {
            argv: command.clone(),
            env: vec![("SMOLVM_REASON".to_string(), reason.to_string())],
            ..ExecSpec::default()
        };
        run(world, &spec, false, limit).map_err(|failure| {
            Failure::new(failure.kind, format!("hook {}: {failure}", command.join(" ")))
        })?;
    }
    Ok(())
}

/// [`run_hooks`] after a restore.
///
/// # Errors
/// The first that fails.
pub fn restore_hooks(world: &World, hooks: &HookSet, reason: RestoreReason) -> Result<(), Failure> {
    run_hooks(world, hooks, reason.word())
}
