//! A disk that is mostly zeros, kept as the list of its other blocks.

use std::borrow::Cow;
use std::io;

use thiserror::Error;

use crate::api::{Disk, MAX_SIZE, check_range};
use crate::delta::CLUSTER;

/// Bytes before the first entry: total size (u64) and count (u32), little-endian.
const HEADER: usize = 12;
/// Bytes of an entry: block number (u64, little-endian) and the block.
const ENTRY: usize = 8 + CLUSTER as usize;

/// A list that is not a disk.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SparseError {
    /// Fewer or more bytes than its header announces.
    #[error("block list of {found} bytes, its header announces {announced}")]
    Length { found: usize, announced: u128 },
    /// Empty, over 4 TiB, or not a multiple of 4 KiB.
    #[error("block list for a disk of {size} bytes: a multiple of 4096 up to 4 TiB is possible")]
    Size { size: u64 },
    /// A block outside the disk, or twice.
    #[error("block {index} is outside the disk or listed twice")]
    Block { index: u64 },
}

/// Reads the list form of `assets`: every block that is not listed is zeros. A blank ext4 of
/// 16 GiB is a few dozen blocks.
#[derive(Clone, Debug)]
pub struct SparseDisk {
    bytes: Cow<'static, [u8]>,
    size: u64,
    /// (block, offset of its bytes), ascending.
    blocks: Vec<(u64, usize)>,
}

impl SparseDisk {
    /// Takes the list form: u64 size in bytes, u32 count, then for each block its u64 number and
    /// 4096 bytes; all little-endian, blocks in any order. A list that is part of the program is
    /// used where it lies: only the blocks that are read become resident.
    ///
    /// # Errors
    /// [`SparseError`].
    pub fn new(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, SparseError> {
        let bytes = bytes.into();
        let word = |at: usize, len: usize| {
            let mut raw = [0; 8];
            raw[..len].copy_from_slice(bytes.get(at..at + len)?);
            Some(u64::from_le_bytes(raw))
        };
        let short = SparseError::Length { found: bytes.len(), announced: HEADER as u128 };
        let (Some(size), Some(count)) = (word(0, 8), word(8, 4)) else { return Err(short) };
        let announced = HEADER as u128 + u128::from(count) * ENTRY as u128;
        if announced != bytes.len() as u128 {
            return Err(SparseError::Length { found: bytes.len(), announced });
        }
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(CLUSTER) {
            return Err(SparseError::Size { size });
        }
        let entry = |i: usize| HEADER + i * ENTRY;
        let mut blocks: Vec<_> =
            (0..count as usize).filter_map(|i| Some((word(entry(i), 8)?, entry(i) + 8))).collect();
        blocks.sort_unstable();
        let twice = blocks.windows(2).find(|w| w[0].0 == w[1].0).map(|w| w[0].0);
        let outside = blocks.last().map(|b| b.0).filter(|b| *b >= size / CLUSTER);
        if let Some(index) = twice.or(outside) {
            return Err(SparseError::Block { index });
        }
        Ok(Self { bytes, size, blocks })
    }

    /// The blocks that are listed, ascending: offset on the disk in bytes, and the 4096 bytes.
    pub fn stored(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.blocks.iter().map(|&(block, at)| (block * CLUSTER, &self.bytes[at..at + CLUSTER as usize]))
    }
}

impl Disk for SparseDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(to.len() as u64);
        check_range(self.size, offset, to.len() as u64)?;
        to.fill(0);
        let first = self.blocks.partition_point(|b| (b.0 + 1) * CLUSTER <= offset);
        for &(block, at) in self.blocks[first..].iter().take_while(|b| b.0 * CLUSTER < end) {
            let start = block * CLUSTER;
            let (from, upto) = (start.max(offset), (start + CLUSTER).min(end));
            let source = at + (from - start) as usize..at + (upto - start) as usize;
            to[(from - offset) as usize..(upto - offset) as usize].copy_from_slice(&self.bytes[source]);
        }
        Ok(())
    }
}
