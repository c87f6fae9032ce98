//! Sockets that the safe wrappers don't know: vsock, and the loopback interface's flags.
#![allow(unsafe_code)] // sockaddr_vm and ifreq are passed as raw structures

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::io;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A listening vsock socket on `port`, for any host.
///
/// # Errors
/// The kernel's: no vsock (EAFNOSUPPORT), port taken.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: sockaddr_vm is plain data, for which zero is a valid value; bind gets its true size; the descriptor is
    // owned as soon as it exists.
    unsafe {
        let fd = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, flags, 0))?);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = port;
        let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size))?;
        check(libc::listen(fd.as_raw_fd(), 128))?;
        Ok(fd)
    }
}

/// Brings the loopback interface up.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: ifreq is plain data; the name is NUL-terminated within its field; the kernel writes only the flags.
    unsafe {
        let fd = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
        Ok(())
    }
}
