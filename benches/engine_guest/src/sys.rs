//! System calls that have no safe wrapper: fork, raw mappings, vsock.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// getppid by the kernel, not from any cache.
pub(crate) fn parent() -> i64 {
    // SAFETY: the call has no arguments and touches no memory.
    unsafe { libc::syscall(libc::SYS_getppid) }
}

/// Forks; the child does `work` and exits; true when it exited with 0.
pub(crate) fn fork_and_wait(work: impl FnOnce()) -> bool {
    let mut ok = false;
    fork_beside_status(work, &mut || (), &mut ok);
    ok
}

/// Forks; the child does `work` and exits while the parent does `beside`, then waits.
pub(crate) fn fork_beside(work: impl FnOnce(), beside: &mut dyn FnMut()) {
    fork_beside_status(work, beside, &mut false);
}

fn fork_beside_status(work: impl FnOnce(), beside: &mut dyn FnMut(), ok: &mut bool) {
    // SAFETY: this program has one thread where it forks, so the child may do anything; it leaves by
    // _exit without running the parent's destructors. waitpid gets a valid pointer.
    unsafe {
        match libc::fork() {
            0 => {
                work();
                libc::_exit(0);
            }
            child if child > 0 => {
                beside();
                let mut status = 0;
                *ok = libc::waitpid(child, &raw mut status, 0) == child && status == 0;
            }
            _ => {}
        }
    }
}

/// Becomes this program with the word `exit`; exits with 1 where that fails.
pub(crate) fn become_exit() {
    // SAFETY: the strings and the arrays end with NUL and null; on success there is no return.
    unsafe {
        let path = c"/proc/self/exe".as_ptr();
        let argv = [path, c"exit".as_ptr(), std::ptr::null()];
        let envp = [std::ptr::null()];
        libc::execve(path, argv.as_ptr(), envp.as_ptr());
        libc::_exit(1);
    }
}

/// Maps fresh anonymous pages, writes one byte into each, unmaps them; how many there were.
pub(crate) fn touch_fresh_pages(pages: usize) -> usize {
    let bytes = pages * 4096;
    // SAFETY: a fresh private mapping is written inside its bounds and unmapped once.
    unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let start = libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return pages;
        }
        libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE);
        for page in 0..pages {
            start.cast::<u8>().add(page * 4096).write_volatile(1);
        }
        libc::munmap(start, bytes);
    }
    pages
}

/// Waits for one connection on a vsock port of this guest.
///
/// # Errors
/// The kernel's: there is no vsock device.
pub(crate) fn accept_vsock(port: u32) -> io::Result<File> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: sockaddr_vm is plain data, zero is valid; bind gets its size; each descriptor is owned once.
    unsafe {
        let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        let fd = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, flags, 0))?);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = port;
        let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size))?;
        check(libc::listen(fd.as_raw_fd(), 1))?;
        let null = std::ptr::null_mut();
        let stream = check(libc::accept4(fd.as_raw_fd(), null, null.cast(), libc::SOCK_CLOEXEC))?;
        Ok(File::from_raw_fd(stream))
    }
}
