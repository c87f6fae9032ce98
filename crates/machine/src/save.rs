//! Saving: everything of a paused machine into a machine file. Mirrored by `restore.rs`.
//!
//! Two steps: [`Machine::still`] takes the instant while the vCPUs stand, [`StillMachine::write`]
//! writes it, while they run again where that does not change it ([`StillMachine::lasts`]).

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use artifact::{MachineFile, MachineFileWriter, PageSet, SectionHead, SectionKind};
use bus::lock;
use disk::{DeltaMap, StillDisk};
use guestmem::GuestMemory;
use hv::{HotBlock, VcpuState, Writes};
use snapshot::{HotBlocks, MachineState, MemoryStats, Pages, PartState, STATE_VERSION, StillMemory};

use crate::Error;
use crate::ahead::{Ahead, AheadReport};
use crate::error::host;
use crate::machine::Machine;

/// Version of the `DiskDeltaMap` section: a postcard `disk::DeltaMap`.
pub const DISK_MAP_VERSION: u32 = 1;
/// Version of the `DiskDeltaPages` section: raw clusters in the map's order.
const DISK_PAGES_VERSION: u32 = 1;

/// What was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveStats {
    pub memory: MemoryStats,
    /// Bytes of changed disk.
    pub disk_bytes: u64,
    /// What was copied before the instant, where the engine needs that.
    pub ahead: Option<AheadReport>,
}

/// What of the memory and disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Everything: the file stands alone on its base.
    Whole,
    /// What may differ from the file that the machine was restored from, its parent.
    Changes,
}

/// A machine at one instant.
pub struct StillMachine {
    cpu: Vec<u8>,
    parts: Vec<u8>,
    memory: StillMemory,
    disk: StillDisk,
    hot: Hot,
    parent: PageSet,
    above: PageSet,
    disk_below: usize,
    lasts: bool,
    ahead: Option<AheadReport>,
}

/// State of vCPUs and of devices, memory and what was copied of it before, disk.
type Taken = (Vec<u8>, Vec<u8>, StillMemory, Option<AheadReport>, StillDisk);

/// What ran often, to be put together when nobody waits.
struct Hot {
    ran: Vec<HotBlock>,
    /// Says what did before the machine was brought back.
    before: Option<Arc<MachineFile>>,
    memory: GuestMemory,
}

impl Hot {
    fn join(self) -> HotBlocks {
        let before = self.before.map(|file| HotBlocks::read(&file, &self.memory)).unwrap_or_default();
        HotBlocks::join(self.ran, before.blocks())
    }
}

/// How much changed since a machine was restored or booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Drift {
    /// Pages of memory that were written.
    pub dirty_pages: u64,
    /// Pages that the memory has.
    pub pages: u64,
    /// Bytes of disk that were written or zeroed.
    pub disk_bytes: u64,
}

/// Reads a `DiskDeltaMap` section.
///
/// # Errors
/// `InvalidData` when the bytes are no map.
pub fn decode_disk_map(bytes: &[u8]) -> io::Result<DeltaMap> {
    postcard::from_bytes(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

impl Machine {
    /// Takes the instant. The machine must be paused, and stay so until the instant is written unless it
    /// [`StillMachine::lasts`]. `ahead`: memory that was copied before. Old bytes that have to be kept go to nameless
    /// files in `dir`.
    ///
    /// # Errors
    /// The engine's, the host's; [`Error::Ended`]; another instant that is being written.
    pub fn still(&self, dir: &Path, ahead: Option<Ahead<'_>>) -> Result<StillMachine, Error> {
        if let Some(outcome) = self.outcome() {
            return Err(Error::Ended(outcome.to_string()));
        }
        let (parent, above) = (self.origin.parent.pages(), self.origin.above.pages());
        let (cpu, parts, memory, ahead, disk) = self.standing(|| self.take(dir, ahead))?;
        let ran = self.vcpus.iter().flat_map(|vcpu| lock(vcpu).hot_blocks()).collect();
        let hot = Hot { ran, before: self.foretelling.clone(), memory: self.memory.clone() };
        let lasts = ahead.is_some() || self.partition.writes() == Writes::Gated;
        let disk_below = self.disk_below;
        Ok(StillMachine { cpu, parts, memory, disk, hot, parent, above, disk_below, lasts, ahead })
    }

    /// Calls `act` while devices stand still; the vCPUs do.
    pub(crate) fn standing<R>(&self, act: impl FnOnce() -> R) -> R {
        self.doorbells.pause();
        self.parts.pause();
        let result = act();
        self.parts.resume();
        self.doorbells.resume();
        result
    }

    /// The pages that were mapped from files.
    pub(crate) fn mapped(&self) -> PageSet {
        let mut pages = self.origin.parent.pages();
        pages.unite(&self.origin.above.pages());
        pages
    }

    fn take(&self, dir: &Path, ahead: Option<Ahead<'_>>) -> Result<Taken, Error> {
        let state = MachineState {
            template_version: self.template_version,
            cpuid: self.cpuid.clone(),
            tsc_khz: self.partition.tsc_khz(),
            clock: self.partition.clock()?,
            frozen_realtime_ns: realtime_ns(),
            engine: self.partition.engine(),
            vcpus: self.save_vcpus()?,
        };
        let parts = PartState::encode_all(&self.parts.save()?)?;
        let held = host("holding the machine's memory for a snapshot");
        let (memory, ahead) = match ahead {
            Some(ahead) => {
                let (memory, report) = ahead.finish(&self.mapped()).map_err(held)?;
                (memory, Some(report))
            }
            None => {
                let mut written = vec![0; self.memory.page_count().div_ceil(64)];
                self.partition.take_written(&mut written)?;
                self.memory.mark_dirty_bits(&written);
                let known = self.partition.writes() != Writes::Unseen;
                (StillMemory::new(&self.memory, &self.mapped(), known, dir).map_err(held)?, None)
            }
        };
        let disk = StillDisk::new(&self.scratch, dir).map_err(host("holding the disk for a snapshot"))?;
        Ok((state.encode()?, parts, memory, ahead, disk))
    }

    /// A digest of vCPUs, clock and memory, of a machine that is paused or has ended.
    ///
    /// # Errors
    /// The engine's.
    pub fn state_digest(&self) -> Result<artifact::Digest, Error> {
        let vcpus = postcard::to_stdvec(&(self.save_vcpus()?, self.partition.clock()?));
        let mut digests = vcpus.map_err(|e| Error::Mismatch(e.to_string()))?;
        let mut page = [0; guestmem::PAGE_SIZE as usize];
        for number in (0..self.memory.page_count()).filter(|page| !self.memory.page_is_zero(*page)) {
            self.memory.read_page(number, &mut page);
            digests.extend((number as u64).to_le_bytes());
            digests.extend(artifact::Digest::of(&page).as_bytes());
        }
        Ok(artifact::Digest::of(&digests))
    }

    fn save_vcpus(&self) -> Result<Vec<VcpuState>, Error> {
        self.vcpus.iter().map(|vcpu| Ok(lock(vcpu).save()?)).collect()
    }

    /// Writes the disk alone, of a machine that ended.
    ///
    /// # Errors
    /// The file's.
    pub fn save_disk(&self, writer: &mut MachineFileWriter, dir: &Path) -> Result<u64, Error> {
        let disk = StillDisk::new(&self.scratch, dir).map_err(host("saving the disk"))?;
        write_disk(disk, 0, writer)
    }

    /// How much changed so far; on an engine whose writes pass no gate as of its last snapshot.
    pub fn drift(&self) -> Drift {
        let stats = self.scratch.stats();
        let dirty = self.memory.dirty_bits();
        Drift {
            dirty_pages: dirty.iter().map(|word| u64::from(word.count_ones())).sum(),
            pages: self.memory.page_count() as u64,
            disk_bytes: stats.private_bytes + stats.zeroed_bytes,
        }
    }
}

impl StillMachine {
    /// Whether the machine may go on before it is written.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// Writes state, memory and disk; the instant ends with that. `base`: as in [`snapshot::write_memory`].
    ///
    /// # Errors
    /// The file's; the host's, where old bytes could not be kept.
    pub fn write(
        self,
        writer: &mut MachineFileWriter,
        content: Content,
        base: Option<&MachineFile>,
    ) -> Result<SaveStats, Error> {
        writer.add_bytes(SectionHead::new(SectionKind::CpuState, STATE_VERSION), &self.cpu)?;
        writer.add_bytes(SectionHead::new(SectionKind::DeviceState, STATE_VERSION), &self.parts)?;
        self.hot.join().write(writer)?;
        let (pages, below) = match content {
            Content::Whole => (Pages::All, 0),
            Content::Changes => {
                (Pages::Changes { parent: &self.parent, above: &self.above }, self.disk_below)
            }
        };
        let memory = snapshot::write_memory(writer, self.memory, pages, base)?;
        let disk_bytes = write_disk(self.disk, below, writer)?;
        Ok(SaveStats { memory, disk_bytes, ahead: self.ahead })
    }
}

/// Two sections: the changed clusters, then the map that says which they are.
fn write_disk(disk: StillDisk, below: usize, writer: &mut MachineFileWriter) -> Result<u64, Error> {
    let mut pages = writer.begin(SectionHead::new(SectionKind::DiskDeltaPages, DISK_PAGES_VERSION))?;
    let written = disk.write_delta(below, |bytes| pages.write_all(bytes));
    let map = written.map_err(host("saving the disk"))?;
    pages.end()?;
    let bytes = postcard::to_stdvec(&map).map_err(|e| Error::Mismatch(e.to_string()))?;
    writer.add_bytes(SectionHead::new(SectionKind::DiskDeltaMap, DISK_MAP_VERSION), &bytes)?;
    Ok(map.data_len())
}

fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
