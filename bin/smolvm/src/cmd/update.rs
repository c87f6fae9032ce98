//! `update`: an instance moves to a new version of its machine file.
//!
//! Stop, point record and plan at the new file, start as before. What was saved of the old one is put aside
//! until the new one is up, so that a version that does not start leaves the machine as it was.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use instance::control::{Client, Request};
use instance::{Instance, Phase};
use store::Pin;

use crate::args::{Global, Update};
use crate::cmd::vmm;
use crate::launch::{Home, Mode, Plan};
use crate::resolve;
use crate::ui::say::say;

/// How long its processes have to end.
const GRACE_MS: u32 = 10_000;

pub fn update(words: &Update, global: &Global, home: &Home) -> Result<u8> {
    let instance = Instance::open(&home.dirs, &words.name)?;
    let what = resolve::machine_file(&words.to, home)?;
    let pin = resolve::fetch(&what, home)?;
    let before = Before::of(&instance)?;
    let plan = plan(&before.plan, &pin)?;
    if before.phase == Phase::Running {
        Client::new(&instance)?.call(&Request::Stop { grace_ms: GRACE_MS })?;
        instance.wait_end()?;
    }
    let moved = before.put_aside(&instance).and_then(|()| {
        home.store.add_reference(&pin, &instance.path(""))?;
        vmm::write_plan(&instance, &plan)?;
        let (file, source) = (pin.id().to_string(), what.label());
        Ok(instance.update(|r| (r.file, r.source, r.kept, r.exit_code) = (file, source, true, None))?)
    });
    if let Err(error) = moved {
        before.put_back(&instance)?;
        return Err(error);
    }
    if before.phase != Phase::Running {
        // Its next start is the new version's first.
        instance.update(|r| r.phase = Phase::Dead)?;
        before.forget(&instance);
        say!("{}", words.name);
        return Ok(0);
    }
    match start(home, &words.name, global) {
        Ok(()) => {
            before.forget(&instance);
            Ok(0)
        }
        Err(error) => {
            before.put_back(&instance)?;
            start(home, &words.name, global).context("starting the old version again")?;
            Err(error.context(format!("`{}` goes on with its old version", words.name)))
        }
    }
}

fn start(home: &Home, name: &str, global: &Global) -> Result<()> {
    match vmm::detach(Arc::new(Instance::open(&home.dirs, name)?), global, None)? {
        0 => Ok(()),
        _ => Err(anyhow!("the new version did not start")),
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

/// What the machine was, to go back to.
struct Before {
    phase: Phase,
    record: instance::Record,
    plan: Plan,
}

/// What an instance saved of an earlier run.
const SAVED: [&str; 3] = ["saved", "origin", "volumes.json"];

impl Before {
    fn of(instance: &Instance) -> Result<Self> {
        let (phase, record) = (instance.phase(), instance.record()?);
        Ok(Self { phase, record, plan: vmm::read_plan(instance)? })
    }

    fn files(instance: &Instance) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        SAVED.iter().map(|name| (instance.path(name), instance.path(&format!("{name}.before"))))
    }

    fn put_aside(&self, instance: &Instance) -> Result<()> {
        for (path, aside) in Self::files(instance).filter(|(path, _)| path.exists()) {
            fs::rename(&path, &aside).with_context(|| format!("putting {} aside", path.display()))?;
        }
        Ok(())
    }

    fn put_back(&self, instance: &Instance) -> Result<()> {
        for (path, aside) in Self::files(instance).filter(|(_, aside)| aside.exists()) {
            fs::rename(&aside, &path).with_context(|| format!("putting {} back", path.display()))?;
        }
        let mut plan = self.plan.clone();
        if self.phase == Phase::Running {
            plan.mode = Mode::Stopped;
        }
        vmm::write_plan(instance, &plan)?;
        Ok(instance.write_record(&self.record)?)
    }

    fn forget(&self, instance: &Instance) {
        for (_, aside) in Self::files(instance) {
            // It is in nobody's way.
            let _ = fs::remove_file(aside);
        }
    }
}
