//! The parent of copies that are made at once: it starts as a program once, and every copy's process is split off
//! from it. Afterwards it only waits and tells of copies whose process ended, until `fork` ends it.

use std::collections::HashMap;
use std::fs::File;

use anyhow::{Context, Result};
use host::Side;
use instance::Instance;
use rustix::process::WaitOptions;

use crate::cmd::vmm::{self, Word};
use crate::launch::Home;

pub fn copies(names: &[String], home: &Home) -> Result<u8> {
    // What every copy would find out for itself: which instructions the processor has.
    let _ = artifact::Digest::of(&[0; 4096]);
    let mut children = HashMap::new();
    for name in names {
        match host::split() {
            Ok(Side::Child) => return copy(name, home),
            Ok(Side::Parent(pid)) => drop(children.insert(pid, name)),
            Err(e) => {
                let text = format!("starting the process of `{name}`: {e}");
                vmm::say(name, Word::Failed { text, code: 125 })?;
            }
        }
    }
    while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::empty()) {
        if let Some(name) = children.remove(&pid.as_raw_nonzero().get().unsigned_abs()) {
            vmm::say(name, Word::Lost)?;
        }
    }
    Ok(0)
}

/// From here on a process as `__vmm` is one.
fn copy(name: &str, home: &Home) -> Result<u8> {
    rustix::process::setpgid(None, None).context("leaving the process group")?;
    let path = Instance::open(&home.dirs, name)?.path("vmm.log");
    let log = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    rustix::stdio::dup2_stderr(&log).context("redirecting the standard error")?;
    vmm::vmm(name, home)
}
