//! The ways a machine stops: `freeze`, `stop`, `kill`, `rm`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use instance::control::{Client, Request};
use instance::{Instance, Phase};
use rustix::process::{Pid, Signal, kill_process};

use crate::args::{Global, Names, Rm, Stop};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{say, tell};
use crate::volumes;

/// Asks each machine in turn; the first failure is told after the others were asked.
fn each(names: &[String], mut ask: impl FnMut(&str) -> Result<()>) -> Result<u8> {
    let mut failed = None;
    for name in names {
        if let Err(e) = ask(name)
            && let Some(earlier) = failed.replace(e)
        {
            tell!("smolvm: {earlier:#}");
        }
    }
    failed.map_or(Ok(0), Err)
}

pub fn freeze(names: &[String], global: &Global, home: &Home) -> Result<u8> {
    each(names, |name| {
        let instance = Instance::open(&home.dirs, name)?;
        let report = Client::new(&instance)?.call(&Request::Freeze)?;
        instance.wait_end()?;
        keep(&instance)?;
        if global.json {
            return ui::json(&report);
        }
        if !global.quiet {
            let size = report.get("file_bytes").and_then(serde_json::Value::as_u64).unwrap_or(0);
            say!("{name}");
            tell!("smolvm: frozen, {}; `smolvm start {name}` goes on", ui::bytes(size));
        }
        Ok(())
    })
}

/// What was frozen or stopped by name is wanted: it stays until `rm`.
fn keep(instance: &Instance) -> Result<()> {
    Ok(instance.update(|r| r.kept = true)?)
}

pub fn stop(stop: &Stop, global: &Global, home: &Home) -> Result<u8> {
    if stop.freeze {
        return freeze(&stop.names, global, home);
    }
    let grace: spec::Duration = stop.time.parse().map_err(anyhow::Error::msg)?;
    let grace_ms = u32::try_from(grace.0.as_millis()).unwrap_or(u32::MAX);
    each(&stop.names, |name| {
        let instance = Instance::open(&home.dirs, name)?;
        match instance.phase() {
            Phase::Running => {
                Client::new(&instance)?.call(&Request::Stop { grace_ms })?;
                instance.wait_end()?;
            }
            // Stopping what does not run is done already, as in docker.
            Phase::Frozen | Phase::Stopped | Phase::Dead => {}
        }
        say!("{name}");
        Ok(())
    })
}

pub fn kill(names: &Names, home: &Home) -> Result<u8> {
    each(&names.names, |name| {
        let instance = Instance::open(&home.dirs, name)?;
        end_now(&instance)?;
        say!("{name}");
        Ok(())
    })
}

/// How long a machine's process may take from its lock to its record and its socket: longer than any guest wakes.
const STARTING: Duration = Duration::from_secs(30);

/// Through its socket, else by its process: a VMM that does not answer must still go. One that has neither yet is waited
/// for.
pub fn end_now(instance: &Instance) -> Result<()> {
    instance.require_running()?;
    let begun = Instant::now();
    loop {
        if Client::new(instance).and_then(|client| client.call(&Request::Kill)).is_ok() {
            return Ok(instance.wait_end()?);
        }
        if instance.phase() != Phase::Running {
            return Ok(());
        }
        let pid = instance.record()?.pid;
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::KILL)?;
            return Ok(instance.wait_end()?);
        }
        if begun.elapsed() > STARTING {
            bail!("the process of `{}` runs and has not said which it is; end it by hand", instance.name());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn rm(rm: &Rm, home: &Home) -> Result<u8> {
    each(&rm.names, |name| {
        let instance = Instance::open(&home.dirs, name)?;
        if instance.phase() == Phase::Running && !rm.force {
            bail!("`{name}` is running; `smolvm stop {name}` first, or `smolvm rm -f {name}`");
        }
        remove_now(instance, home)?;
        say!("{name}");
        Ok(())
    })
}

/// Ends it where it runs, and removes it.
pub fn remove_now(mut instance: Instance, home: &Home) -> Result<()> {
    if instance.phase() == Phase::Running {
        end_now(&instance)?;
        instance.acquire_soon()?;
    }
    // Else the next one of this name would hold it for as long as it exists. (One that is not removed after all is found by
    // the next prune.)
    if let Some(file) = instance.record().ok().and_then(|record| record.file.parse().ok()) {
        let _ = home.store.drop_reference(&file, &instance.path(""));
    }
    volumes::remove_made_for(instance.name(), &home.dirs)?;
    instance.remove()?;
    // The control group of a process that was killed is left.
    host::sweep();
    Ok(())
}
