//! What ext4 does by ioctl only.
#![allow(unsafe_code)] // Its commands take pointers

use rustix::fd::{AsRawFd, OwnedFd};
use std::io;

/// `_IOW('f', 16, __u64)`: grow the mounted file system to so many blocks.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// `_IOW('f', 43, __u32)`: empty the journal (Documentation/filesystems/ext4, "EXT4_IOC_CHECKPOINT").
const EXT4_IOC_CHECKPOINT: libc::Ioctl = 0x4004_662b;
/// And have the device forget its blocks.
const EXT4_IOC_CHECKPOINT_FLAG_DISCARD: u32 = 1;

/// Has the journal's transactions written where they belong, and its blocks forgotten by the kernel's cache and by the
/// device. The mounted file system is the one that `directory` is on.
///
/// # Errors
/// The kernel's: a device without discard, a file system without a journal.
pub fn forget_journal(directory: &OwnedFd) -> io::Result<()> {
    let flags = EXT4_IOC_CHECKPOINT_FLAG_DISCARD;
    // SAFETY: the command reads one u32 behind the pointer, which outlives the call.
    if unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_CHECKPOINT, &raw const flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

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
