//! The definition's snapshots: the machine at each point of its life, all in one file.
//!
//! A snapshot after a step is the machine freshly booted on the root that the step left, before
//! its service is started (docs/adr/0070): small, and the same whatever an earlier build left. The
//! last point is the default to resume: instance 0 in the file.
//! Next: `instance/vmm.rs` `freeze`, `snapshot/points.rs`.

use std::time::Instant;

use agent_protocol::ErrorKind;
use artifact::hash::Digest;
use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionHead, SectionKind};
use instance::{FreezeReport, Media, SnapshotInfo, SnapshotTarget, UNNAMED, Vmm, copy_base};
use spec::Smolfile;
use store::Pin;

use crate::error::Error;
use crate::job::Job;
use crate::kept;
use crate::layout;
use crate::stage;

/// When and as what the machine is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) name: String,
    /// After so many steps; `None`: when it is ready.
    pub(crate) after: Option<usize>,
}

impl Point {
    fn info(&self) -> SnapshotInfo {
        SnapshotInfo::new(&self.name, self.after.map(|n| n as u32))
    }
}

/// The definition's points; without any, the machine is frozen when it is ready.
pub(crate) fn points(definition: &Smolfile) -> Vec<Point> {
    if definition.snapshot.is_empty() {
        return vec![Point { name: UNNAMED.to_owned(), after: None }];
    }
    let point =
        |def: &spec::SnapshotDef| Point { name: def.name.clone(), after: def.after_step.map(|n| n as usize) };
    definition.snapshot.iter().map(point).collect()
}

/// A frozen point: its state, and the base that it lies on.
pub(crate) struct Frozen {
    info: SnapshotInfo,
    state: Pin,
    base: Pin,
    report: FreezeReport,
}

/// Boots `root` and freezes it before its service starts.
pub(crate) fn freeze_after_step(job: &Job<'_>, point: &Point, root: Pin) -> Result<Frozen, Error> {
    job.progress.step(&format!("snapshot `{}`: booting the machine", point.name));
    // A second hold: the first goes into the media.
    let base = job.store.pin(&root.id())?;
    let mut media = Media::open(root)?;
    // A root of an earlier build may be of another size.
    media.spec = job.stage_spec();
    let vmm = job.boot(&media.to_become(point.info()), None)?;
    job.progress.step(&format!("snapshot `{}`: freezing", point.name));
    stage::warm_up(&vmm)?;
    let mut report = FreezeReport::default();
    let state = job.write_object(|writer| {
        report = vmm.freeze(writer, SnapshotTarget::StateOnly)?;
        Ok(())
    })?;
    vmm.machine().end();
    Ok(Frozen { info: point.info(), state, base, report })
}

/// What the default snapshot took.
pub(crate) struct Default {
    /// From the start of its boot to ready, milliseconds.
    pub(crate) cold_ms: u64,
    pub(crate) freeze: FreezeReport,
}

/// Writes the file: the base, the snapshots that were frozen, and, when the last point is the one
/// at which the service is ready, that one.
pub(crate) fn assemble(
    job: &Job<'_>,
    points: &[Point],
    frozen: &[Frozen],
    base: Pin,
) -> Result<Default, Error> {
    let file = base.open()?;
    let last = points.last().filter(|point| point.after.is_none());
    let (mut writer, default) = match last {
        Some(point) => freeze_ready(job, point, base)?,
        None => {
            let mut writer = MachineFileWriter::create(&job.output())?;
            copy_base(&file, &mut writer)?;
            let freeze = frozen.last().map(|f| f.report).unwrap_or_default();
            (writer, Default { cold_ms: 0, freeze })
        }
    };
    let mut roots = vec![root_digest(&file)?];
    for (i, one) in frozen.iter().enumerate() {
        let is_default = last.is_none() && i + 1 == frozen.len();
        add(&mut writer, if is_default { 0 } else { i as u32 + 1 }, one, &mut roots)?;
    }
    job.progress.step("writing the file");
    kept::write(&mut writer, &job.definition.text)?;
    writer.finish()?;
    Ok(default)
}

fn root_digest(file: &MachineFile) -> Result<Digest, Error> {
    Ok(file.require(SectionKind::RootImage, 0)?.digest)
}

/// Adds a frozen point as snapshot `instance`. `roots` are the root images that the file has.
fn add(
    writer: &mut MachineFileWriter,
    instance: u32,
    frozen: &Frozen,
    roots: &mut Vec<Digest>,
) -> Result<(), Error> {
    let (state, base) = (frozen.state.open()?, frozen.base.open()?);
    let digest = root_digest(&base)?;
    let root = match roots.iter().position(|known| *known == digest) {
        Some(at) => at as u32,
        None => {
            roots.push(digest);
            let number = roots.len() as u32 - 1;
            let section = base.require(SectionKind::RootImage, 0)?;
            let head = SectionHead::like(section).instance(number);
            writer.copy_section_as(head, &base, section, CopyCheck::Trust)?;
            number
        }
    };
    for section in state.sections() {
        let head = SectionHead::like(section).instance(instance);
        writer.copy_section_as(head, &state, section, CopyCheck::Trust)?;
    }
    SnapshotInfo { root, ..frozen.info.clone() }.write(writer, instance).map_err(instance::Error::from)?;
    Ok(())
}

/// Boots the base, starts the service, waits until it is ready, freezes it into the output.
fn freeze_ready(job: &Job<'_>, point: &Point, base: Pin) -> Result<(MachineFileWriter, Default), Error> {
    let media = Media::open(base)?.to_become(point.info());
    job.progress.step("booting the machine");
    let begun = Instant::now();
    let vmm = job.boot(&media, None)?;
    if start_service(job, &vmm)? {
        job.progress.step("waiting until the service is ready");
    }
    if let Err(e) = vmm.wait_ready() {
        return Err(Error::NotReady { why: e.to_string(), tail: service_tail(&vmm) });
    }
    let cold_ms = begun.elapsed().as_millis() as u64;
    job.progress.step("freezing");
    stage::warm_up(&vmm)?;
    let output = job.output();
    let mut writer = MachineFileWriter::create(&output)?;
    let frozen = layout::freeze(&vmm, &media, &job.options.vmm, &output, job.progress)?;
    frozen.write(&mut writer)?;
    Ok((writer, Default { cold_ms, freeze: frozen.report }))
}

/// Starts the service, if there is one. What it cannot be started with has a line in the
/// definition.
fn start_service(job: &Job<'_>, vmm: &Vmm) -> Result<bool, Error> {
    let error = match vmm.start_service(&[], None) {
        Ok(started) => return Ok(started.is_some()),
        Err(error) => error,
    };
    let kind = match &error {
        instance::Error::Agent(client) => client.kind(),
        _ => return Err(error.into()),
    };
    let key = match kind {
        ErrorKind::NoSuchUser => "user",
        ErrorKind::NoSuchDirectory => "workdir",
        ErrorKind::NotFound | ErrorKind::NotExecutable => "command",
        _ => return Err(error.into()),
    };
    let advice = match key {
        "user" => "`[build] steps` can add one (useradd, adduser)",
        _ => "`[root] files` and `[build] steps` bring things into the machine",
    };
    Err(job.blame(&["run", key], format!("[run] {key}: {error}; {advice}")))
}

/// The last of what the service said; of the kernel when there is nothing.
fn service_tail(vmm: &Vmm) -> String {
    let logs = instance::logs::tail(vmm, 40).unwrap_or_default();
    if logs.is_empty() { vmm.console_tail() } else { logs }
}
