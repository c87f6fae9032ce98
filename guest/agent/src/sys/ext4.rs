//! What ext4 does by ioctl only.
#![allow(unsafe_code)] // EXT4_IOC_RESIZE_FS takes a pointer

use rustix::fd::{AsRawFd, OwnedFd};
use std::io;

/// `_IOW('f', 16, __u64)`: grow the mounted file system to so many blocks.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// Grows the mounted file system that `directory` is on.
///
/// # Errors
/// The kernel's.
pub fn grow(directory: &OwnedFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the command reads one u64 behind the pointer, which outlives the call.
    if unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
