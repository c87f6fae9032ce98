//! Making processes: a copy of this one, optionally born in a control group, and exec.
#![allow(unsafe_code)] // clone3, execve and _exit have no safe form

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::process::Pid;
use std::ffi::CString;
use std::io;

/// Which of the two processes goes on after [`fork`].
pub enum Fork {
    /// The new one.
    Child,
    /// The old one, with the new one's id.
    Parent(Pid),
}

/// `struct clone_args` of linux/sched.h, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Copies this process, with the copy born in `cgroup` (moving it there later would wait for an RCU grace period).
///
/// The agent has one thread, so the copy may do anything, allocate included.
///
/// # Errors
/// The kernel's: EAGAIN at the limit of processes, EACCES when the group may not be entered.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(group) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: clone3 without CLONE_VM copies the address space, stack included, exactly as fork does; `args` is a
    // valid clone_args of the given size. This process has a single thread, so no lock is left held in the copy.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        id => Pid::from_raw(id as i32).map(Fork::Parent).ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// Replaces the program of this process. Returns only when that failed, with the reason.
pub fn exec(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: `path` and both arrays are NUL- and null-terminated and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once, without running destructors of what it shares with its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Signals every process that may be signalled, except init and this one. Only for a machine of our own.
///
/// # Errors
/// The kernel's; ESRCH when there is none.
pub fn signal_all(signal: rustix::process::Signal) -> io::Result<()> {
    // SAFETY: kill has no memory effects.
    match unsafe { libc::kill(-1, signal.as_raw()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes this process see its control group as the root of all groups.
///
/// # Errors
/// The kernel's (no right to).
pub fn own_cgroup_view() -> Result<(), rustix::io::Errno> {
    // SAFETY: a cgroup namespace changes what is shown under /proc; no memory or descriptor is affected.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
}

/// Marks every descriptor from `first` on to be closed by exec.
pub fn close_on_exec_from(first: u32) {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag on open descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
