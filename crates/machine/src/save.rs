//! Saving: everything of a paused machine into a machine file. Mirrored by `restore.rs`.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use artifact::{MachineFileWriter, SectionHead, SectionKind};
use bus::lock;
use disk::{DeltaMap, Overlay};
use hv::VcpuState;
use snapshot::{MachineState, MemoryStats, PartState, STATE_VERSION};

use crate::Error;
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
}

/// Reads a `DiskDeltaMap` section.
///
/// # Errors
/// `InvalidData` when the bytes are no map.
pub fn decode_disk_map(bytes: &[u8]) -> io::Result<DeltaMap> {
    postcard::from_bytes(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

impl Machine {
    /// Writes state, memory and disk. The machine must be paused.
    ///
    /// # Errors
    /// The engine's, the file's; [`Error::Ended`].
    pub fn save(&self, writer: &mut MachineFileWriter) -> Result<SaveStats, Error> {
        if let Some(outcome) = self.outcome() {
            return Err(Error::Ended(outcome.to_string()));
        }
        self.parts.pause();
        let saved = self.save_paused(writer);
        self.parts.resume();
        saved
    }

    fn save_paused(&self, writer: &mut MachineFileWriter) -> Result<SaveStats, Error> {
        self.partition.sync_dirty()?;
        let state = MachineState {
            template_version: self.template_version,
            cpuid: self.cpuid.clone(),
            tsc_khz: self.partition.tsc_khz(),
            clock: self.partition.clock()?,
            frozen_realtime_ns: realtime_ns(),
            engine: self.partition.engine(),
            vcpus: self.save_vcpus()?,
        };
        let head = SectionHead::new(SectionKind::CpuState, STATE_VERSION);
        writer.add_bytes(head, &state.encode()?)?;
        let head = SectionHead::new(SectionKind::DeviceState, STATE_VERSION);
        writer.add_bytes(head, &PartState::encode_all(&self.parts.save()?)?)?;
        let memory = snapshot::write_memory(writer, &self.memory)?;
        let disk_bytes = write_disk(&self.scratch, writer)?;
        Ok(SaveStats { memory, disk_bytes })
    }

    fn save_vcpus(&self) -> Result<Vec<VcpuState>, Error> {
        self.vcpus.iter().map(|vcpu| Ok(lock(vcpu).save()?)).collect()
    }

    /// Writes the disk alone, of a machine that ended.
    ///
    /// # Errors
    /// The file's.
    pub fn save_disk(&self, writer: &mut MachineFileWriter) -> Result<u64, Error> {
        write_disk(&self.scratch, writer)
    }
}

/// Two sections: the changed clusters, then the map that says which they are.
fn write_disk(disk: &Overlay, writer: &mut MachineFileWriter) -> Result<u64, Error> {
    let mut pages = writer.begin(SectionHead::new(SectionKind::DiskDeltaPages, DISK_PAGES_VERSION))?;
    let map = disk.write_delta(|bytes| pages.write_all(bytes)).map_err(host("saving the disk"))?;
    pages.end()?;
    let bytes = postcard::to_stdvec(&map).map_err(|e| Error::Mismatch(e.to_string()))?;
    writer.add_bytes(SectionHead::new(SectionKind::DiskDeltaMap, DISK_MAP_VERSION), &bytes)?;
    Ok(map.data_len())
}

fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
