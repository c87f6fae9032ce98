//! A second process like this one.

#![allow(unsafe_code)] // fork(2) has no safe form.

use std::io;

/// On which side of [`split`] one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that was there before; the id of the new one.
    Parent(u32),
    /// The new one.
    Child,
}

/// Makes a process that goes on from here with copies of all memory and the same open files.
///
/// # Errors
/// `InvalidInput` when this process has more than one thread: the others would be gone in the new one, with
/// whatever they held. Else the kernel's: no memory, too many processes.
pub fn split() -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        let what = "a process with several threads cannot be split";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    // SAFETY: fork(2) restricts what the child may do only where there were other threads; there is one, checked
    // above, and it is this one, so nobody makes another meanwhile.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid.unsigned_abs())),
    }
}
