//! `update`: an instance moves to a new version of its machine file.
//!
//! Problem: a version that does not start, a kill or a power failure must leave the machine as it was, with what it
//! had saved. Strategy: what it was is written down first ([`BEFORE`]); then record and plan point at the new file,
//! and what was saved stays where it is, which the new version does not read. The new version's own process, once it
//! is up, takes the note away ([`commit`]): the one instant at which the machine is the new one. Whoever comes upon
//! a note of a machine that does not run undoes what it is about ([`undo_half`]).

use std::fs;
use std::io;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use instance::control::{Client, Request};
use instance::{Instance, Lasting, Phase, Record};
use serde::{Deserialize, Serialize};
use store::Pin;

use crate::args::{Global, Update};
use crate::cmd::vmm::{self, Detached, UpReport};
use crate::launch::{Home, Mode, Plan};
use crate::resolve;
use crate::ui::say::say;

/// How long its processes have to end.
const GRACE_MS: u32 = 10_000;

pub fn update(words: &Update, global: &Global, home: &Home) -> Result<u8> {
    match move_to(&words.name, &words.to, home)? {
        Some(up) => up.print(global)?,
        None => say!("{}", words.name),
    }
    Ok(0)
}

/// Moves a machine to a machine file; what to tell of it where it runs.
pub fn move_to(name: &str, to: &str, home: &Home) -> Result<Option<UpReport>> {
    let instance = Instance::open(&home.dirs, name)?;
    undo_half(&instance)?;
    let what = resolve::machine_file(to, home)?;
    let pin = resolve::fetch(&what, home)?;
    let new = plan(&vmm::read_plan(&instance)?, &pin)?;
    let was_running = instance.phase() == Phase::Running;
    if was_running {
        Client::new(&instance)?.call(&Request::Stop { grace_ms: GRACE_MS })?;
        instance.wait_end()?;
    }
    // What it is now, stopped with its disk saved: the file that it is from stays held by its reference.
    Before::now(&instance)?.note(&instance)?;
    let moved = point(&instance, &pin, &what.label(), &new, home);
    let started = moved.and_then(|()| match was_running {
        true => start(home, name).map(Some),
        // Its next start is the new version's first.
        false => commit(&instance, home).map(|()| None),
    });
    let error = match started {
        Ok(up) => return Ok(up),
        Err(error) => error,
    };
    if !undo_half(&instance)? {
        return Err(error);
    }
    if was_running {
        start(home, name).context("starting the old version again")?;
    }
    Err(error.context(format!("`{name}` goes on with its old version")))
}

/// Makes the new file the one that the instance starts from.
fn point(instance: &Instance, pin: &Pin, source: &str, plan: &Plan, home: &Home) -> Result<()> {
    home.store.add_reference(pin, &instance.path(""))?;
    vmm::replace_plan(instance, plan)?;
    let (file, source) = (pin.id().to_string(), source.to_owned());
    let new = Record {
        file,
        source,
        kept: true,
        exit_code: None,
        phase: Phase::Dead,
        fresh: true,
        ..instance.record()?
    };
    Ok(instance.put_record(&new, Lasting::Durable)?)
}

fn start(home: &Home, name: &str) -> Result<UpReport> {
    match vmm::bring_up(Arc::new(Instance::open(&home.dirs, name)?), None)? {
        Detached::Up(up) => Ok(up),
        Detached::Failed(_) => Err(anyhow!("the new version did not start")),
    }
}

/// As the machine was started, from the new file.
fn plan(old: &Plan, pin: &Pin) -> Result<Plan> {
    let file = pin.open()?;
    let cold = matches!(old.mode, Mode::Cold) || !file.is_snapshot();
    // The snapshot of the same name, if the new file has it.
    let named = old.snapshot.as_deref().and_then(|name| instance::find(&file, Some(name)).ok());
    let snapshot = match (cold, named) {
        (true, _) => None,
        (false, Some(point)) => Some(point.info.name),
        (false, None) => Some(instance::find(&file, None)?.info.name),
    };
    let mode = if cold { Mode::Cold } else { Mode::Resume };
    Ok(Plan { mode, snapshot, lost: false, ..old.clone() })
}

/// In an instance's directory: what it was before an update that is not whole yet.
const BEFORE: &str = "update.json";

/// What an instance saved of an earlier version, which is of no use to the next.
const SAVED: [&str; 3] = ["saved", "origin", "volumes.json"];

/// What the machine was, to go back to.
#[derive(Serialize, Deserialize)]
struct Before {
    record: Record,
    plan: Plan,
}

impl Before {
    fn of(instance: &Instance) -> Result<Option<Self>> {
        let path = instance.path(BEFORE);
        match fs::read(&path) {
            Ok(text) => {
                Ok(serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// With the plan that a start from here has.
    fn now(instance: &Instance) -> Result<Self> {
        let (record, mut plan) = (instance.record()?, vmm::read_plan(instance)?);
        match instance.phase() {
            Phase::Frozen => plan.mode = Mode::Frozen,
            Phase::Stopped => plan.mode = Mode::Stopped,
            Phase::Running | Phase::Dead => {}
        }
        Ok(Self { record, plan })
    }

    fn note(&self, instance: &Instance) -> Result<()> {
        Ok(instance.put(BEFORE, &serde_json::to_vec_pretty(self)?, Lasting::Durable)?)
    }
}

/// The instance is the new version from now on: called by its process when it is up. What the old one saved goes, and
/// its machine file is not needed any more.
pub fn commit(instance: &Instance, home: &Home) -> Result<()> {
    let Some(before) = Before::of(instance)? else { return Ok(()) };
    // On the disk before anything goes that going back would need.
    instance.take_away(BEFORE)?;
    SAVED.iter().try_for_each(|file| instance.take_away(file))?;
    if let (Ok(old), Ok(new)) = (before.record.file.parse(), instance.record()?.file.parse())
        && old != new
    {
        home.store.drop_reference(&old, &instance.path(""))?;
    }
    Ok(())
}

/// Whether an update of it is not whole.
pub fn is_half(instance: &Instance) -> bool {
    instance.path(BEFORE).exists()
}

/// Makes an instance what it was before an update that came to nothing; whether there was one. One that runs is left
/// alone: its process will say that the update is whole, or end.
pub fn undo_half(instance: &Instance) -> Result<bool> {
    let Some(before) = Before::of(instance)? else { return Ok(false) };
    if instance.phase() == Phase::Running {
        return Ok(false);
    }
    vmm::replace_plan(instance, &before.plan)?;
    instance.put_record(&before.record, Lasting::Durable)?;
    instance.take_away(BEFORE)?;
    Ok(true)
}
