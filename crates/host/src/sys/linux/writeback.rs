//! Bringing what was written to the disk while more is written.

#![allow(unsafe_code)] // sync_file_range.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Has the kernel begin to bring the `len` bytes at `offset` that were written to `file` to its disk, and does not
/// wait for it: a sync at the end then finds most of it done (sync_file_range(2), `SYNC_FILE_RANGE_WRITE`).
///
/// A hint: where a file system or sandbox has no such call, all is left to the sync, which alone says whether
/// the bytes are there.
pub fn begin_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // A length of 0 would mean up to the end of the file.
    if len == 0 {
        return;
    }
    // SAFETY: takes numbers and a descriptor that is open; no memory of ours is involved.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
