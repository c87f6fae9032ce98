//! Bytes are on their way to the disk while later ones are still made.
//!
//! Problem: what makes a file (reading memory, hashing, copying) keeps processors busy, bringing it to the disk keeps
//! the disk busy, and one after the other they take as long as both together. Strategy: after every [`STEP`] bytes the
//! kernel is told to begin with them, and it knows the length beforehand where that is known ([`reserve`]). Invariants:
//! nobody waits here, and nothing follows from it: the sync at the end says whether the bytes are on the disk.

use std::fs::File;

/// So many bytes at a time: enough for a disk to be written in one go.
const STEP: u64 = 4 << 20;

/// Has the file system find room for `len` bytes from `at` on in one go: bytes that come then need no search for a place
/// each time they are brought to the disk. Measured on ext4: a third less processor time of the kernel, and twice the rate.
///
/// A hint: where there is no such call, or no room, the writes that follow say so.
pub(crate) fn reserve(file: &File, at: u64, len: u64) {
    if len > 0 {
        let _ = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), at, len);
    }
}

/// A part of a file that is being written from its beginning to its end.
#[derive(Clone, Copy)]
pub(crate) struct Early {
    /// Whether somebody will wait for the disk.
    wanted: bool,
    /// Where in the file what was not begun with yet starts.
    from: u64,
}

impl Early {
    /// The part begins at `at` in the file.
    pub(crate) fn new(durable: bool, at: u64) -> Self {
        Self { wanted: durable, from: at }
    }

    /// All bytes of the part up to `end` are in the file.
    pub(crate) fn wrote(&mut self, file: &File, end: u64) {
        let len = end.saturating_sub(self.from);
        if self.wanted && len >= STEP {
            host::begin_writeback(file, self.from, len);
            self.from = end;
        }
    }

    /// The piece at `offset` in the part is in the file. For pieces that several threads take in order and write when
    /// they can: the few of an earlier step that are not written then are left to the sync. A step has to be a whole
    /// number of pieces.
    pub(crate) fn wrote_piece(self, file: &File, offset: u64) {
        if self.wanted && offset > 0 && offset.is_multiple_of(STEP) {
            host::begin_writeback(file, self.from.saturating_add(offset - STEP), STEP);
        }
    }
}
