//! Signals as the agent sees them: SIGCHLD through a descriptor, SIGPIPE ignored, everything reset for children.
#![allow(unsafe_code)] // sigprocmask, signalfd and signal have no safe wrapper

use rustix::fd::{FromRawFd, OwnedFd};
use std::io;
use std::mem::MaybeUninit;

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset takes an initialised set and valid signal numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks SIGCHLD and gives a descriptor that becomes readable when a child ends; ignores SIGPIPE.
///
/// # Errors
/// The kernel's (no descriptors left).
pub fn child_events() -> io::Result<OwnedFd> {
    let set = set_of(&[libc::SIGCHLD]);
    // SAFETY: `set` is initialised; SIG_IGN is a valid disposition; signalfd returns a new descriptor or -1.
    unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Lets a forked copy receive every signal; a broken stream stays an error and not a death.
pub fn unblock() {
    let none = set_of(&[]);
    // SAFETY: as in `child_events`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Gives a child the dispositions and the mask that a fresh program expects.
pub fn reset_for_child() {
    let none = set_of(&[]);
    // SAFETY: as in `child_events`.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// The signal with this number, real-time ones included.
pub fn from_number(number: u8) -> Option<rustix::process::Signal> {
    let number = i32::from(number);
    if !(1..=64).contains(&number) {
        return None;
    }
    // SAFETY: the kernel accepts every number from 1 to 64 as a signal; the C library's two reserved ones are not
    // used by a process with a single thread, and are sent to others only on a host's word.
    Some(unsafe { rustix::process::Signal::from_raw_unchecked(number) })
}
