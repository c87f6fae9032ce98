//! A second process like this one.

#![allow(unsafe_code)] // fork(2) has no safe form, nor has closing what nobody here opened.

use std::io;
use std::time::{Duration, Instant};

/// On which side of [`split`] one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that was there before; the id of the new one.
    Parent(u32),
    /// The new one.
    Child,
}

/// Waits, at most `limit`, until the threads that are ending have ended; whether this one is alone.
pub fn alone_within(limit: Duration) -> bool {
    let begun = Instant::now();
    loop {
        let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
        if alone || begun.elapsed() > limit {
            return alone;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Closes what this process was given beside its standard streams: a descriptor of whoever started it, a lock perhaps or
/// the end of a pipe, is not to live as long as a machine does. To be called first, before anything is opened here.
///
/// # Errors
/// The kernel's: before Linux 5.9 it does not know how, and they stay.
pub fn close_inherited() -> io::Result<()> {
    let (first, last, flags): (libc::c_uint, libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX, 0);
    // SAFETY: close_range(2) takes three integers, and closes descriptors that nothing in this process owns: it was
    // just started and has opened none.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
