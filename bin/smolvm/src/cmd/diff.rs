//! `diff`: what a machine changed since its snapshot, or between two machine files.
//!
//! Files are compared as trees: the root image with what the machine's overlay holds over it. A stopped
//! machine's is read from its disk (`side/stopped.rs`); else the guest's agent lists it, and of a frozen
//! machine a copy is resumed for that, whose tasks stay frozen (`side.rs`).

mod compare;
mod side;

use std::path::Path;

use anyhow::{Context, Result, bail};
use image::Spool;
use instance::{Instance, Phase};
use store::ImportOptions;

use crate::args::{Diff, Global};
use crate::cmd::vmm;
use crate::launch::{Home, Mode};
use crate::ui;
use compare::Report;
use side::{Side, Subject};

/// Most bytes that the files changed in a machine may have together: 64 GiB.
const SPOOL_LIMIT: u64 = 64 << 30;

pub fn diff(diff: &Diff, global: &Global, home: &Home) -> Result<u8> {
    std::fs::create_dir_all(&home.dirs.cache).context("making the cache directory")?;
    let spool = Spool::new(&home.dirs.cache, SPOOL_LIMIT)?;
    let first = subject(&diff.what, home)?;
    let (old, new) = match &diff.with {
        None => (reference(&first, home)?, first),
        Some(with) => {
            let second = subject(with, home)?;
            // A machine is compared with a file; the file was first.
            let swap = matches!((&first, &second), (Subject::Machine(_), Subject::File { .. }));
            if swap { (second, first) } else { (first, second) }
        }
    };
    let mut sides = Vec::new();
    for subject in [old, new] {
        sides.push(Side::open(subject, home, &spool)?);
    }
    let [old, new] = <[Side; 2]>::try_from(sides).map_err(|_| anyhow::anyhow!("two sides"))?;
    let report = Report::of(&old, &new)?;
    if global.json {
        ui::json(&report)?;
    } else if !global.quiet {
        report.print();
    }
    Ok(u8::from(report.has_drifted()))
}

/// A machine's name, a file's path, a name in the store: the order of `inspect`.
fn subject(word: &str, home: &Home) -> Result<Subject> {
    if word.contains('/') || word.ends_with(".smolmachine") {
        let pin = home.store.fetch(Path::new(word), ImportOptions::default())?;
        return Ok(Subject::File { pin, snapshot: None, label: word.to_owned() });
    }
    if spec::valid_name(word) && home.dirs.instances().join(word).is_dir() {
        return Ok(Subject::Machine(Instance::open(&home.dirs, word)?));
    }
    if let Ok(id) = home.store.find(word) {
        return Ok(Subject::File { pin: home.store.pin(&id)?, snapshot: None, label: word.to_owned() });
    }
    bail!(
        "`{word}` is no machine (`smolvm ps -a`), no machine file and no name in the store (`smolvm images`)"
    )
}

/// What a machine came from.
fn reference(subject: &Subject, home: &Home) -> Result<Subject> {
    let Subject::Machine(instance) = subject else {
        bail!("a machine file alone differs from nothing; name a second one, or a machine")
    };
    if instance.phase() == Phase::Dead {
        bail!("nothing is left of the run of `{}`: its process was ended without saving", instance.name());
    }
    let record = instance.record()?;
    let id = record.file.parse().map_err(|_| anyhow::anyhow!("the record names no machine file"))?;
    let pin = home.store.pin(&id)?;
    let plan = vmm::read_plan(instance)?;
    if instance.origin().exists() {
        return Ok(Subject::Origin { pin, plan: Box::new(plan), path: instance.origin(), of: record.name });
    }
    let booted = plan.mode == Mode::Cold;
    Ok(if booted {
        Subject::Base { pin, label: record.source }
    } else {
        Subject::File { pin, snapshot: plan.snapshot, label: record.source }
    })
}
