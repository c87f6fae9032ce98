//! Freezing, snapshots, copies: the running machine into a file.
//!
//! The order is always the same: the agent brings the guest's tasks to rest, the vCPUs stop, the
//! instant is taken, and then vCPUs and tasks go on while it is written. Where the engine logs writes (KVM),
//! memory is copied before: while the tasks run, and again what they wrote until they stood. Way (c) through the house; next: `machine/save.rs`.

use std::io::Read;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use agent_protocol::{FreezeSpec, FrozenReport, Reply, Request};
use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionHead, SectionKind, WriterOptions};
use bus::lock;
use machine::{Ahead, AheadReport, Content, SaveStats, StillMachine};
use serde::Serialize;
use spec::{MachineSpec, SPEC_VERSION};

use super::{Vmm, agent_error, us};
use crate::error::Error;
use crate::volumes::{VolumeCopy, copies as volume_copies, refuse_parting};

/// How long the agent's helper may take to end after it has frozen the guest; later is only slower.
const SETTLE: Duration = Duration::from_secs(1);

/// What freezing took and wrote.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FreezeReport {
    pub hooks_us: u64,
    pub sync_us: u64,
    /// Until every task stood still, µs, by the guest's clock.
    pub tasks_us: u64,
    /// The longest that the vCPUs were stopped at a time, µs.
    pub pause_us: u64,
    /// Tasks stood still, µs: until they were let go on, by the host's clock. 0 when they were not.
    pub stopped_us: u64,
    /// Writing, µs: all of it after the instant was taken.
    pub write_us: u64,
    pub file_bytes: u64,
    /// Pages of memory that hold anything; for changes, pages that changed.
    pub nonzero_pages: u64,
    pub stored_pages: u64,
    /// Pages that the guest wrote while the file was written: their old bytes were kept.
    pub kept_pages: u64,
    /// Bytes of changed disk.
    pub disk_bytes: u64,
    /// What copying memory before the instant took; absent where the engine needs none of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<AheadReport>,
}

/// What a snapshot file holds beside the running state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotTarget {
    /// A machine file that stands alone.
    Whole,
    /// State only; the base stays in the store (an instance's own file).
    StateOnly,
    /// What changed since the machine file that the instance was resumed from.
    Incremental,
    /// For copies that run at once: as little as possible, and not brought to the disk.
    Fork,
}

impl SnapshotTarget {
    fn content(self, has_parent: bool) -> Content {
        match self {
            SnapshotTarget::Incremental | SnapshotTarget::Fork if has_parent => Content::Changes,
            _ => Content::Whole,
        }
    }
}

impl Vmm {
    /// Brings the guest to rest: hooks, sync, tasks frozen. A copy needs no file data on the disk:
    /// what is dirty in memory is dirty in the copy.
    fn quiesce(&self, target: SnapshotTarget) -> Result<FrozenReport, Error> {
        let hooks = self.hooks(|hooks| &hooks.before_snapshot);
        let sync = target != SnapshotTarget::Fork;
        let mut client = self.agent()?;
        let report = match client.call(&Request::Freeze(FreezeSpec { hooks, timeout_ms: 0, sync }))? {
            Reply::Frozen(report) => report,
            _ => return Err(agent_error("Freeze")),
        };
        // The agent closes when its copy that did the work is gone. Frozen before, its end would be the first
        // thing that a restored guest does, in front of everything that somebody waits for.
        let mut stream = client.into_stream();
        if stream.set_read_timeout(Some(SETTLE)).is_ok() {
            let _ = stream.read(&mut [0]);
        }
        Ok(report)
    }

    /// Freezes the machine into a file that the caller finishes. Afterwards the vCPUs stand still;
    /// end the machine or [`Vmm::thaw`] it.
    ///
    /// # Errors
    /// A task that does not freeze, a hook that fails (the machine goes on then); the file's.
    pub fn freeze(
        &self,
        writer: &mut MachineFileWriter,
        target: SnapshotTarget,
    ) -> Result<FreezeReport, Error> {
        let _saving = lock(&self.saving);
        let frozen = self.quiesce(target)?;
        let paused = Instant::now();
        let written = self.still(None).and_then(|still| {
            let begun = Instant::now();
            Ok((self.write(still, writer, target)?, us(begun)))
        });
        match written {
            Ok((stats, write_us)) => {
                let pause_us = us(paused);
                Ok(FreezeReport { pause_us, write_us, ..report(frozen, stats, writer.position()) })
            }
            Err(error) => {
                self.thaw()?;
                Err(error)
            }
        }
    }

    /// [`Vmm::freeze`] into a file of its own, whole when this returns. The file gets its name only
    /// if it is still `wanted` then.
    ///
    /// # Errors
    /// As [`Vmm::freeze`]; [`Error::Refused`] when it is not wanted any more.
    pub fn freeze_to(
        &self,
        path: &Path,
        target: SnapshotTarget,
        wanted: &dyn Fn() -> bool,
    ) -> Result<FreezeReport, Error> {
        let mut writer = MachineFileWriter::create(path)?;
        let mut report = self.freeze(&mut writer, target)?;
        if !wanted() {
            self.thaw()?;
            return Err(unwanted(path));
        }
        let finished = writer.finish();
        if finished.is_err() {
            self.thaw()?;
        }
        report.file_bytes = finished?.len;
        Ok(report)
    }

    /// Writes the machine into a file, whole when this returns, and lets it go on as soon as the instant is taken. The file gets its name only if it is still
    /// `wanted` then.
    ///
    /// # Errors
    /// As [`Vmm::freeze_to`]; [`SnapshotTarget::Incremental`] of a machine that was not resumed. The
    /// machine goes on in any case.
    pub fn snapshot_to(
        &self,
        path: &Path,
        target: SnapshotTarget,
        wanted: &dyn Fn() -> bool,
    ) -> Result<FreezeReport, Error> {
        refuse_parting(&self.options.volumes, None, "what is run from a snapshot")?;
        self.write_to(path, target, &[], wanted)
    }

    /// What copies of the machine start from: [`Vmm::snapshot_to`], and each volume that it writes as it was at that
    /// instant, by name and the file to be made for it.
    ///
    /// # Errors
    /// As there; a volume that is not among them.
    pub fn fork_to(
        &self,
        path: &Path,
        volumes: &[(String, String)],
        wanted: &dyn Fn() -> bool,
    ) -> Result<FreezeReport, Error> {
        refuse_parting(&self.options.volumes, Some(volumes), "a copy")?;
        self.write_to(path, SnapshotTarget::Fork, volumes, wanted)
    }

    fn write_to(
        &self,
        path: &Path,
        target: SnapshotTarget,
        volumes: &[(String, String)],
        wanted: &dyn Fn() -> bool,
    ) -> Result<FreezeReport, Error> {
        if target == SnapshotTarget::Incremental && self.parent.is_none() {
            let what = "this machine was not resumed from a machine file of the store, so there is nothing \
                        that its snapshot could build on; take a whole one, without --incremental";
            return Err(Error::Refused(what.into()));
        }
        let _saving = lock(&self.saving);
        // Before anything stands still: a file that cannot be made is told at once.
        let durable = target != SnapshotTarget::Fork;
        let options = WriterOptions { durable, ..WriterOptions::default() };
        let mut writer = MachineFileWriter::create_with(path, options)?;
        let mut copies = volume_copies(&self.options.volumes, volumes)?;
        if target == SnapshotTarget::Whole {
            // What memory takes is known, and compared with what is free, once it stands still.
            writer.expect_copies(base_len(&self.base))?;
        }
        let mut ahead = self.machine.copy_ahead(&self.options.scratch_dir)?;
        if let Some(ahead) = &mut ahead {
            ahead.rounds()?;
        }
        let standing = self.standing.write().unwrap_or_else(PoisonError::into_inner);
        let frozen = self.quiesce(target)?;
        let stopped = Instant::now();
        // What was written until the tasks stood.
        let copied = ahead.as_mut().map_or(Ok(()), Ahead::rounds);
        let (taken, pause_us) = match copied {
            Ok(()) => self.still_and_go(ahead, &mut writer, target, &mut copies),
            Err(error) => (Err(error.into()), 0),
        };
        let thawed = self.thaw();
        let stopped_us = us(stopped);
        drop(standing);
        let (stats, write_us) = match taken? {
            Taken::Written(stats, write_us) => (stats, write_us),
            Taken::Still(still) => {
                let begun = Instant::now();
                (self.write(*still, &mut writer, target)?, us(begun))
            }
        };
        thawed?;
        copies.into_iter().try_for_each(VolumeCopy::finish)?;
        if !wanted() {
            return Err(unwanted(path));
        }
        let begun = Instant::now();
        let len = writer.finish()?.len;
        let write_us = write_us + us(begun);
        let report = report(frozen, stats, len);
        let pause_us = pause_us.max(report.ahead.map_or(0, |ahead| ahead.longest_stop_us));
        Ok(FreezeReport { pause_us, stopped_us, write_us, ..report })
    }

    /// Stops the vCPUs, takes the instant, and lets them run again; how long they stood, µs.
    fn still_and_go(
        &self,
        ahead: Option<Ahead<'_>>,
        writer: &mut MachineFileWriter,
        target: SnapshotTarget,
        copies: &mut [VolumeCopy],
    ) -> (Result<Taken, Error>, u64) {
        let paused = Instant::now();
        let taken = self.still(ahead).and_then(|still| {
            // The vCPUs stand: what a device may still do for them is in the saved state, too, and comes to the same.
            copies.iter_mut().try_for_each(VolumeCopy::begin)?;
            if still.lasts() {
                return Ok(Taken::Still(Box::new(still)));
            }
            let begun = Instant::now();
            Ok(Taken::Written(self.write(still, writer, target)?, us(begun)))
        });
        self.machine.resume();
        (taken, us(paused))
    }

    fn still(&self, ahead: Option<Ahead<'_>>) -> Result<StillMachine, Error> {
        self.machine.pause()?;
        Ok(self.machine.still(&self.options.scratch_dir, ahead)?)
    }

    /// Lets a machine go on that was frozen and not ended.
    ///
    /// # Errors
    /// The agent's.
    pub fn thaw(&self) -> Result<(), Error> {
        self.machine.resume();
        match self.agent()?.call(&Request::Thaw)? {
            Reply::Done => Ok(()),
            _ => Err(agent_error("Thaw")),
        }
    }

    fn write(
        &self,
        still: StillMachine,
        writer: &mut MachineFileWriter,
        target: SnapshotTarget,
    ) -> Result<SaveStats, Error> {
        let content = target.content(self.parent.is_some());
        if let Some(parent) = self.parent.filter(|_| content == Content::Changes) {
            writer.set_parent(parent);
        }
        let whole = target == SnapshotTarget::Whole;
        if whole {
            write_base(&self.base, &self.spec, writer)?;
        }
        // An instance's own files and copies have a plan that says it.
        if let (SnapshotTarget::Whole | SnapshotTarget::Incremental, Some(info)) = (target, &self.info) {
            info.write(writer, 0).map_err(machine::Error::from)?;
        }
        Ok(still.write(writer, content, whole.then_some(&*self.base))?)
    }
}

fn unwanted(path: &Path) -> Error {
    Error::Refused(format!("{}: whoever asked for it is gone", path.display()))
}

/// What the pause left to do.
enum Taken {
    /// To be written.
    Still(Box<StillMachine>),
    /// Nothing: written, in so many µs.
    Written(SaveStats, u64),
}

fn report(frozen: FrozenReport, stats: SaveStats, file_bytes: u64) -> FreezeReport {
    FreezeReport {
        hooks_us: frozen.hooks_us,
        sync_us: frozen.sync_us,
        tasks_us: frozen.freeze_us,
        file_bytes,
        nonzero_pages: stats.memory.nonzero_pages,
        stored_pages: stats.memory.stored_pages,
        kept_pages: stats.memory.kept_pages,
        disk_bytes: stats.disk_bytes,
        ahead: stats.ahead,
        ..FreezeReport::default()
    }
}

/// The sections that make a base, in their order.
const BASE: [SectionKind; 6] = [
    SectionKind::Spec,
    SectionKind::Kernel,
    SectionKind::Initramfs,
    SectionKind::RootImage,
    SectionKind::Lock,
    SectionKind::BuildInfo,
];

/// Bytes that [`copy_base`] copies.
fn base_len(base: &MachineFile) -> u64 {
    BASE.iter().filter_map(|kind| base.section(*kind)).map(|section| section.len).sum()
}

/// Repeats a base's sections in another file. They were verified: the base is in the store.
///
/// # Errors
/// The file's.
pub fn copy_base(base: &MachineFile, writer: &mut MachineFileWriter) -> Result<(), Error> {
    BASE.into_iter().try_for_each(|kind| copy_kind(base, kind, writer))
}

/// [`copy_base`], with as many vCPUs and as much memory as the machine has: it may have been booted with others than
/// its base says.
pub(crate) fn write_base(
    base: &MachineFile,
    spec: &MachineSpec,
    writer: &mut MachineFileWriter,
) -> Result<(), Error> {
    let own = crate::media::read_spec(base)?;
    if (own.vcpus, own.memory) == (spec.vcpus, spec.memory) {
        return copy_base(base, writer);
    }
    let changed = MachineSpec { vcpus: spec.vcpus, memory: spec.memory, ..own };
    let bytes = serde_json::to_vec(&changed)
        .map_err(|e| Error::Refused(format!("writing its specification: {e}")))?;
    writer.add_bytes(SectionHead::new(SectionKind::Spec, SPEC_VERSION), &bytes)?;
    let others = BASE.into_iter().filter(|kind| *kind != SectionKind::Spec);
    others.into_iter().try_for_each(|kind| copy_kind(base, kind, writer))
}

fn copy_kind(base: &MachineFile, kind: SectionKind, writer: &mut MachineFileWriter) -> Result<(), Error> {
    match base.section(kind) {
        Some(section) => Ok(writer.copy_section(base, section, CopyCheck::Trust)?),
        None => Ok(()),
    }
}
