//! The superblock, and where inodes are (filesystems/ext4/super.rst, group_descr.rst).

use super::{BLOCK, Ext4, Ext4Error, damaged};
use crate::erofs::format::{get_u16, get_u32};

/// Where it is, in bytes, and how long.
pub const AT: u64 = 1024;
pub const LEN: usize = 1024;

const MAGIC: u16 = 0xef53;
/// s_log_block_size of 4 KiB: 2 to the power of 10 + 2.
const LOG_BLOCK: u32 = 2;

/// Incompatible features: who does not know one must not read.
mod feature {
    pub const FILE_TYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const EXTENTS: u32 = 0x40;
    pub const WIDE: u32 = 0x80;
    pub const FLEX_GROUPS: u32 = 0x200;
    pub const CHECKSUM_SEED: u32 = 0x2000;
    pub const KNOWN: u32 = FILE_TYPE | EXTENTS | WIDE | FLEX_GROUPS | CHECKSUM_SEED;
}

#[derive(Default)]
pub struct Superblock {
    /// Blocks of the file system.
    pub blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    /// Bytes of an inode.
    pub inode_size: u16,
    /// Bytes of a group descriptor; those of 64 have the upper halves of addresses.
    descriptor: u16,
}

impl Superblock {
    pub fn parse(raw: &[u8]) -> Result<Self, Ext4Error> {
        let short = || damaged("the superblock is cut short", 0);
        let half = |at| get_u16(raw, at).ok_or_else(short);
        let word = |at| get_u32(raw, at).ok_or_else(short);
        if half(0x38)? != MAGIC {
            return Err(Ext4Error::Unknown("no magic number at byte 1080"));
        }
        let features = word(0x60)?;
        if features & feature::RECOVER != 0 {
            return Err(Ext4Error::Unknown("a journal to be played back"));
        }
        if features & !feature::KNOWN != 0 || features & feature::FILE_TYPE == 0 {
            return Err(Ext4Error::Unknown("features that our disks are made without"));
        }
        if word(0x18)? != LOG_BLOCK || word(0x14)? != 0 {
            return Err(Ext4Error::Unknown("a block size other than 4096"));
        }
        let wide = features & feature::WIDE != 0;
        let superblock = Self {
            blocks: u64::from(word(0x4)?) | if wide { u64::from(word(0x150)?) << 32 } else { 0 },
            inodes: word(0)?,
            inodes_per_group: word(0x28)?,
            inode_size: half(0x58)?,
            descriptor: if wide { half(0xfe)? } else { 32 },
        };
        let size = superblock.inode_size;
        if !(128..=4096).contains(&size) || !size.is_power_of_two() || superblock.inodes_per_group == 0 {
            return Err(damaged("inodes have an impossible size", 0));
        }
        if wide && !(64..=1024).contains(&superblock.descriptor) {
            return Err(damaged("group descriptors have an impossible size", 0));
        }
        Ok(superblock)
    }
}

impl Ext4 {
    /// The bytes of an inode.
    pub fn raw_inode(&self, number: u32) -> Result<Vec<u8>, Ext4Error> {
        let sb = &self.superblock;
        if number == 0 || number > sb.inodes {
            return Err(damaged("there is no inode of that number", number));
        }
        let (group, index) = ((number - 1) / sb.inodes_per_group, (number - 1) % sb.inodes_per_group);
        // The table follows the superblock's block.
        let at = BLOCK + u64::from(group) * u64::from(sb.descriptor);
        let group = self.bytes(at, sb.descriptor.into(), number)?;
        let low = get_u32(&group, 0x8).unwrap_or(0);
        // Zero where descriptors are short: it is behind their end.
        let high = get_u32(&group, 0x28).unwrap_or(0);
        let table = u64::from(low) | u64::from(high) << 32;
        let at = table
            .checked_mul(BLOCK)
            .and_then(|at| at.checked_add(u64::from(index) * u64::from(sb.inode_size)))
            .ok_or_else(|| damaged("its table of inodes is nowhere", number))?;
        self.bytes(at, sb.inode_size.into(), number)
    }
}
