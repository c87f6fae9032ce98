//! The guest's open files and directories.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Stat, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::nodes::Version;

/// Open files of a guest; each is a descriptor here. Beyond it opening fails with ENFILE.
pub const MAX_HANDLES: usize = 4096;
/// A directory stream whose place the kernel has elsewhere.
pub(crate) const ELSEWHERE: u64 = u64::MAX;

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub node: u64,
    /// The flags that it was opened with, as far as they outlive the opening.
    pub flags: u32,
    pub dir: bool,
    /// Not there for the directory of folders, nor after a restore until it is used.
    pub fd: Option<Arc<OwnedFd>>,
    /// Where a directory's stream stands.
    pub at: u64,
    /// Bytes of the file when it was opened, as far as that is known: where its end is likely to be.
    pub size: u64,
    /// After a restore: what it was.
    pub was: Option<Was>,
}

/// Tells an open file from another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Was {
    /// 0: it had no name any more.
    ino: u64,
    /// When the inode was made, where the file system knows; numbers of inodes are used again.
    born: Option<(i64, u32)>,
    version: Version,
}

impl Was {
    pub fn of(fd: &OwnedFd) -> Option<Self> {
        let stat = rustix::fs::fstat(fd).ok()?;
        let ino = if stat.st_nlink == 0 { 0 } else { stat.st_ino };
        Some(Self { ino, born: born(fd), version: Version::of(&stat) })
    }

    /// Whether a file is the same, or one of the same content.
    pub fn is(&self, fd: &OwnedFd, stat: &Stat) -> bool {
        let same = self.ino == stat.st_ino && born(fd).zip(self.born).is_none_or(|(a, b)| a == b);
        self.ino != 0 && (same || self.version.looks_like(&Version::of(stat)))
    }
}

fn born(fd: &OwnedFd) -> Option<(i64, u32)> {
    let known = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let known = (known.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(known.stx_btime)?;
    Some((known.tv_sec, known.tv_nsec))
}

/// All of them.
#[derive(Default)]
pub(crate) struct Handles {
    by_id: BTreeMap<u64, Handle>,
    next: u64,
}

impl Handles {
    /// Whether one more fits.
    ///
    /// # Errors
    /// ENFILE.
    pub fn room(&self) -> Result<(), Errno> {
        if self.by_id.len() < MAX_HANDLES { Ok(()) } else { Err(Errno::NFILE) }
    }

    pub fn add(&mut self, handle: Handle) -> u64 {
        self.next += 1;
        self.by_id.insert(self.next, handle);
        self.next
    }

    /// Puts a saved one back.
    pub fn insert(&mut self, id: u64, handle: Handle) {
        self.by_id.insert(id, handle);
        self.next = self.next.max(id);
    }

    pub fn get(&self, id: u64) -> Result<&Handle, Errno> {
        self.by_id.get(&id).ok_or(Errno::BADF)
    }

    pub fn get_mut(&mut self, id: u64) -> Result<&mut Handle, Errno> {
        self.by_id.get_mut(&id).ok_or(Errno::BADF)
    }

    pub fn remove(&mut self, id: u64) {
        self.by_id.remove(&id);
    }

    /// An open file of this node, for what has no path any more.
    pub fn of(&self, node: u64) -> Option<Arc<OwnedFd>> {
        self.by_id.values().find(|handle| handle.node == node && handle.fd.is_some())?.fd.clone()
    }

    pub fn all(&self) -> impl Iterator<Item = (u64, &Handle)> {
        self.by_id.iter().map(|(id, handle)| (*id, handle))
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    /// Numbers up to here were given out.
    pub fn skip_to(&mut self, next: u64) {
        self.next = self.next.max(next.min(crate::state::LAST));
    }
}
