//! What changed with respect to a base: the map that travels, and the layer that it describes.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::api::Disk;
use crate::file::FileDisk;

/// Bytes in a cluster, the unit of copy-on-write (docs/adr/0031).
pub const CLUSTER: u64 = 4096;

/// What a changed cluster holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentKind {
    /// Bytes, in the delta section.
    Data,
    /// Zeros, stored nowhere.
    Zero,
}

/// A run of changed clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Number of the first cluster.
    pub first: u64,
    /// How many, at least 1.
    pub count: u64,
    pub kind: ExtentKind,
}

/// Everything that changed, ascending. The bytes of the `Data` extents lie one after the other,
/// in this order, in the delta section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaMap {
    /// Size in bytes of the disk that it belongs to.
    pub disk_size: u64,
    pub extents: Vec<Extent>,
}

/// A map that does not fit. It may come from a hostile file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeltaError {
    /// Made for another disk.
    #[error("the disk changes are for a disk of {found} bytes, this one has {expected}")]
    DiskSize { found: u64, expected: u64 },
    /// Empty, unordered, overlapping or outside the disk.
    #[error("disk changes: extent {index} is out of order or outside the disk")]
    Extent { index: usize },
    /// The section has another length than the extents need.
    #[error("disk changes: {needed} bytes announced, {found} present")]
    Section { needed: u64, found: u64 },
}

impl DeltaMap {
    /// Adds a cluster after all others, joining it to the last extent where it continues it.
    pub(crate) fn push(&mut self, cluster: u64, kind: ExtentKind) {
        match self.extents.last_mut() {
            Some(last) if last.kind == kind && last.first + last.count == cluster => last.count += 1,
            _ => self.extents.push(Extent { first: cluster, count: 1, kind }),
        }
    }

    /// Bytes of the delta section.
    pub fn data_len(&self) -> u64 {
        let data = self.extents.iter().filter(|e| e.kind == ExtentKind::Data);
        data.map(|e| e.count.saturating_mul(CLUSTER)).fold(0, u64::saturating_add)
    }

    /// Checks order, bounds and the section's length against a disk.
    pub(crate) fn check(&self, disk_size: u64, section: u64) -> Result<(), DeltaError> {
        if self.disk_size != disk_size {
            return Err(DeltaError::DiskSize { found: self.disk_size, expected: disk_size });
        }
        let clusters = disk_size.div_ceil(CLUSTER);
        let mut next = 0;
        for (index, e) in self.extents.iter().enumerate() {
            let end = e.first.checked_add(e.count).filter(|end| *end <= clusters);
            match end {
                Some(end) if e.first >= next && e.count > 0 => next = end,
                _ => return Err(DeltaError::Extent { index }),
            }
        }
        let needed = self.data_len();
        if needed == section { Ok(()) } else { Err(DeltaError::Section { needed, found: section }) }
    }
}

/// A snapshot's changes as its file has them.
#[derive(Debug)]
pub struct Delta {
    pub map: DeltaMap,
    /// The bytes of the map's data; may be missing when there are none.
    pub section: Option<FileDisk>,
}

/// A delta that was frozen: map and section.
pub(crate) struct Frozen {
    /// Each extent with the offset of its first byte in the section (meaningless for zeros).
    extents: Vec<(Extent, u64)>,
    section: Option<FileDisk>,
}

impl Frozen {
    /// Checks it against the disk.
    pub(crate) fn new(map: DeltaMap, section: Option<FileDisk>, disk_size: u64) -> Result<Self, DeltaError> {
        map.check(disk_size, section.as_ref().map_or(0, FileDisk::size))?;
        let mut offset = 0;
        let place = |e: Extent| {
            let at = offset;
            if e.kind == ExtentKind::Data {
                offset += e.count * CLUSTER;
            }
            (e, at)
        };
        Ok(Self { extents: map.extents.into_iter().map(place).collect(), section })
    }

    /// Where a cluster is: in the section at this offset, zeros, or not here.
    pub(crate) fn find(&self, cluster: u64) -> Option<Option<u64>> {
        let i = self.extents.partition_point(|(e, _)| e.first + e.count <= cluster);
        let (e, at) = self.extents.get(i).filter(|(e, _)| e.first <= cluster)?;
        Some((e.kind == ExtentKind::Data).then(|| at + (cluster - e.first) * CLUSTER))
    }

    /// The first changed cluster from `from` on.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        let i = self.extents.partition_point(|(e, _)| e.first + e.count <= from);
        self.extents.get(i).map(|(e, _)| e.first.max(from))
    }

    pub(crate) fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let section = self.section.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        section.read_at(offset, to)
    }
}
