//! Features and configuration space (5.2.3, 5.2.4).

use disk::{CLUSTER, Disk, SECTOR};

/// The configuration says how many segments a request may have.
pub const F_SEG_MAX: u64 = 1 << 2;
/// Writes are refused.
pub const F_RO: u64 = 1 << 5;
/// The configuration says the block size.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// There is a flush.
pub const F_FLUSH: u64 = 1 << 9;
/// There is a discard.
pub const F_DISCARD: u64 = 1 << 13;
/// There is a write-zeroes.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data segments a request: a ring of 256 holds two of them without indirect tables.
pub const SEG_MAX: u32 = 126;
/// Ranges in one discard or write-zeroes request.
pub const MAX_RANGES: u32 = 16;
/// Sectors of one such range: 64 MiB, which bounds the time of a request.
pub const MAX_RANGE_SECTORS: u32 = 1 << 17;
/// Bytes of one read or write.
pub const MAX_TRANSFER: u64 = 32 << 20;

/// Bytes of the structure up to `secure_erase_sector_alignment`.
const LEN: usize = 60;

pub fn features(read_only: bool) -> u64 {
    let common = F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
    common | if read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
}

/// struct virtio_blk_config.
pub fn config(disk: &dyn Disk) -> [u8; LEN] {
    let mut raw = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk.size() / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &((CLUSTER / SECTOR) as u32).to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]); // write_zeroes_may_unmap
    raw
}
