//! Reads directories of an ext4 file system on the host, without a kernel that mounts it: what a machine wrote to
//! its disk (docs/adr/0184).
//!
//! The format is that of the kernel's documentation, filesystems/ext4/. Read is what our blank disk can become: blocks
//! of 4 KiB, files in extents, a journal with nothing in it. Of all else it is said that it is [`Ext4Error::Unknown`],
//! and the caller has a kernel look at it.
//!
//! A guest wrote every byte. Each address is checked against the disk's size, each directory is entered once, and all
//! that is read beside the contents of files comes out of one budget.
//!
//! Next: `superblock.rs` → `inode.rs` → `extents.rs` and `xattr.rs` → `walk.rs`.

mod extents;
mod inode;
mod superblock;
mod walk;
mod xattr;

use std::io;
use std::sync::Arc;

pub use walk::Ext4Walk;

use self::superblock::Superblock;
use crate::archive::ArchiveError;
use crate::content::{ReadAt, Spool};
use crate::merge::{MergeOptions, merge_entries};
use crate::tree::Tree;

/// Bytes of a block: what our disks have.
const BLOCK: u64 = 4096;

/// Most bytes of directories, attributes and extent trees that are read of one disk, with their paths: 1 GiB, room for
/// about four million files. It bounds time and memory.
const BUDGET: u64 = 1 << 30;

/// What holding a name, an attribute or an extent costs beside its bytes.
const COST: u64 = 64;

/// Why a disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    #[error("reading {len} bytes at {at} of the disk failed: {source}")]
    Io { at: u64, len: usize, source: io::Error },
    #[error("the disk's ext4 file system has {0}, which this reader does not know")]
    Unknown(&'static str),
    #[error("the disk's ext4 file system is damaged: {what} (inode {inode})")]
    Damaged { what: &'static str, inode: u32 },
    #[error(transparent)]
    Merge(#[from] ArchiveError),
}

impl Ext4Error {
    /// Whether a kernel may well read what we did not.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

fn damaged(what: &'static str, inode: u32) -> Ext4Error {
    Ext4Error::Damaged { what, inode }
}

/// An ext4 file system, read only.
pub struct Ext4 {
    disk: Arc<dyn ReadAt>,
    /// Bytes of the disk and of the file system, whichever are fewer.
    size: u64,
    superblock: Superblock,
    budget: u64,
    /// The block of attributes read last: inodes share them.
    attributes: Option<(u64, Vec<u8>)>,
}

impl Ext4 {
    /// Reads the superblock.
    ///
    /// # Errors
    /// [`Ext4Error`]: no ext4, one that was not unmounted, features that we do not know.
    pub fn open(disk: Arc<dyn ReadAt>) -> Result<Self, Ext4Error> {
        let size = disk.size().map_err(|source| Ext4Error::Io { at: 0, len: 0, source })?;
        let mut ext4 =
            Self { disk, size, superblock: Superblock::default(), budget: BUDGET, attributes: None };
        let raw = ext4.bytes(superblock::AT, superblock::LEN, 0)?;
        ext4.superblock = Superblock::parse(&raw)?;
        ext4.size = size.min(ext4.superblock.blocks.saturating_mul(BLOCK));
        Ok(ext4)
    }

    /// Everything in and below the directory `name` of the root, as archive members whose paths begin there: a
    /// directory before what is in it (itself, as `.`, first), names in the order of their bytes. Nothing when there is
    /// no such directory. Sockets are left out, as of an archive.
    ///
    /// # Errors
    /// [`Ext4Error`]; the walk's items, too.
    pub fn walk(self, name: &[u8]) -> Result<Ext4Walk, Ext4Error> {
        Ext4Walk::new(self, name)
    }

    /// Whether the disk has these bytes; asked before anything is allocated for them.
    fn range(&self, at: u64, len: u64, inode: u32) -> Result<(), Ext4Error> {
        match at.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(damaged("an address points behind its end", inode)),
        }
    }

    fn bytes(&self, at: u64, len: usize, inode: u32) -> Result<Vec<u8>, Ext4Error> {
        self.range(at, len as u64, inode)?;
        let mut bytes = vec![0; len];
        self.disk.read_exact_at(&mut bytes, at).map_err(|source| Ext4Error::Io { at, len, source })?;
        Ok(bytes)
    }

    fn block(&mut self, number: u64, inode: u32) -> Result<Vec<u8>, Ext4Error> {
        let at = number.checked_mul(BLOCK).ok_or_else(|| damaged("a block number is too large", inode))?;
        self.spend(BLOCK, inode)?;
        self.bytes(at, BLOCK as usize, inode)
    }

    fn spend(&mut self, bytes: u64, inode: u32) -> Result<(), Ext4Error> {
        let left = self.budget.checked_sub(bytes);
        self.budget = left.ok_or_else(|| damaged("it has more directories than any honest one", inode))?;
        Ok(())
    }
}

/// The root as a machine left it: `base` with the directory `upper` of its `disk` over it, the upper layer of an
/// overlay. As [`crate::merge_upper`], of a disk in place of an archive.
///
/// # Errors
/// [`Ext4Error`]; overlay features that the machine must not use.
pub fn merge_upper_of_disk(
    base: Tree,
    disk: Arc<dyn ReadAt>,
    spool: &Spool,
    options: &MergeOptions,
) -> Result<Tree, Ext4Error> {
    let walk = Ext4::open(disk)?.walk(b"upper")?;
    merge_entries(base, walk, spool, options)
}
