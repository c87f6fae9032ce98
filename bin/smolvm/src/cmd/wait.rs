//! `wait`: until machines end.

use agent_protocol::{Client, SERVICE_SESSION};
use anyhow::Result;
use instance::{Instance, Phase};

use crate::args::Names;
use crate::cmd::exec::agent;
use crate::launch::Home;
use crate::ui::say::say;

/// Of a machine that was killed before its service had an exit code: 128 and the signal's number, as docker has it.
const KILLED: u8 = 128 + 9;

pub fn wait(names: &Names, home: &Home) -> Result<u8> {
    let mut last = 0;
    for name in &names.names {
        let instance = Instance::open(&home.dirs, name)?;
        if instance.phase() == Phase::Running {
            // The service's end is the machine's, mostly; the lock tells the rest.
            if let Ok(stream) = agent(name, home) {
                let _ = Client::new(stream).wait(SERVICE_SESSION);
            }
            instance.wait_end()?;
        }
        let without_code = if instance.phase() == Phase::Dead { KILLED } else { 0 };
        last = instance.record()?.exit_code.unwrap_or(without_code);
        say!("{last}");
    }
    Ok(last)
}
