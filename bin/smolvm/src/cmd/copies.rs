//! The parent of copies that are made at once: it starts as a program once, and every copy's process is split off
//! from it, when it has read what they have in common and, where they are many, has woken the machine once for all of
//! them (docs/adr/0068). Afterwards it only waits and tells of copies whose process ended, until `fork` ends it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use host::{Rendezvous, Side};
use instance::{Frozen, Instance, Vmm};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::WaitOptions;

use crate::cmd::vmm::{self, Word};
use crate::launch::{self, Home, Origin, Prepared};
use crate::volumes;

/// What is said on its standard input, once when there is the file that the copies start from and how the first of them
/// is to start, and once when all their directories are whole. They begin when the input ends.
pub const GO_ON: u8 = b'.';
/// From so many copies on a rehearsal is worth it: what it finds out they share. One alone has nobody to share it with. (From
/// eight on it saves time, too; two are up 20 ms later, and have a fifth of the memory of their own.)
const REHEARSED_FOR: usize = 2;
/// How long a rehearsal may take: several times what an agent needs on a busy host.
const REHEARSAL: Duration = Duration::from_millis(500);
/// How long its threads may take to end afterwards.
const THREADS_END: Duration = Duration::from_secs(5);

pub fn copies(names: &[String], home: &Home) -> Result<u8> {
    // What every copy would find out for itself: which instructions the processor has.
    let _ = artifact::Digest::of(&[0; 4096]);
    if !told_to_go_on() {
        return Ok(125);
    }
    // What cannot be read here is told by the copies that meet it.
    let mut prepared = names.first().and_then(|first| prepare(first, names.len(), home).ok());
    host::alone_within(THREADS_END);
    if !told_to_go_on() || nobody_listens() {
        // Whoever asked for the copies was killed meanwhile; they may be removed any moment.
        return Ok(125);
    }
    let mut children = HashMap::new();
    // Without it they begin all the same, only not together.
    let together = Rendezvous::new().ok().map(Arc::new);
    for name in names {
        match split(name, home) {
            Ok((instance, Side::Child)) => {
                return copy(instance, home, vmm::Copy { prepared: prepared.take(), together });
            }
            Ok((_, Side::Parent(pid))) => drop(children.insert(pid, name)),
            Err(e) => {
                let text = format!("starting the process of `{name}`: {e:#}");
                vmm::say(name, Word::Failed { text, code: 125 })?;
            }
        }
    }
    if let Some(together) = together {
        together.come();
    }
    while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::empty()) {
        if let Some(name) = children.remove(&pid.as_raw_nonzero().get().unsigned_abs()) {
            vmm::say(name, Word::Lost)?;
        }
    }
    Ok(0)
}

/// Waits until whoever asked for the copies says so; `false` when they are gone.
fn told_to_go_on() -> bool {
    let mut word = [0];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut word) {
            Err(rustix::io::Errno::INTR) => {}
            told => return told == Ok(1) && word == [GO_ON],
        }
    }
}

/// Whether the other end of the standard output is closed.
fn nobody_listens() -> bool {
    let out = std::io::stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let found = rustix::event::poll(&mut polled, Some(&now));
    found.is_ok() && polled[0].revents().intersects(PollFlags::ERR)
}

/// Makes what the copies have in common: where that is possible the whole machine.
fn prepare(first: &str, count: usize, home: &Home) -> Result<Prepared> {
    let instance = Instance::open(&home.dirs, first)?;
    let plan = vmm::read_plan(&instance)?;
    if volumes::are_in(&plan) {
        bail!("each copy has volumes of its own, and a plan that names them");
    }
    let media = vmm::media(&plan, &instance.record()?, home)?;
    let file = launch::open_origin(&instance)?;
    let mut options = launch::vmm_options(&plan, instance.path(""), None)?;
    options.hostname = Some(first.to_owned());
    // Only this engine learns anything, and nothing of it is the kernel's; and a guest would wait for the folders and
    // volumes that a rehearsal has not.
    let soft = plan.engine == machine::EngineKind::Soft.to_string() && plan.mounts.is_empty();
    let template = if count < REHEARSED_FOR || !soft {
        media.template(&file)
    } else {
        media.rehearse(&file, options.clone(), REHEARSAL)
    }
    .ok();
    let whole = soft && template.as_ref().is_some_and(|template| !template.has_network());
    let origin = if whole {
        let vmm = Vmm::restore(&media, Frozen { file: &file, template }, options)?;
        if count >= REHEARSED_FOR {
            vmm.foretold_now();
        }
        Origin::Machine(Box::new(vmm))
    } else {
        Origin::File(Box::new(file), template.map(Box::new))
    };
    Ok(Prepared { plan, media, origin })
}

/// Splits the process of a copy off, which has its lock from the beginning.
fn split(name: &str, home: &Home) -> Result<(Instance, Side)> {
    let mut instance = Instance::open(&home.dirs, name)?;
    instance.acquire()?;
    Ok((instance, host::split()?))
}

/// From here on a process as `__vmm` is one.
fn copy(instance: Instance, home: &Home, copy: vmm::Copy) -> Result<u8> {
    rustix::process::setpgid(None, None).context("leaving the process group")?;
    vmm::run(instance, home, Some(copy))
}
