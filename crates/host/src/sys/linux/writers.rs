//! Who else has a file open.

#![allow(unsafe_code)] // fcntl.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Which signal tells of leases (Linux, asm-generic/fcntl.h); the C library's crate lacks it.
const F_SETSIG: libc::c_int = 10;

/// Whether any process, this one too, has the file open for writing or mapped so. `file` is opened for reading only
/// and belongs to this user.
///
/// By a read lease, which the kernel grants only where nobody writes (fcntl(2), "Leases"); it is given back at once.
///
/// # Errors
/// The host's; file systems without leases among them.
pub fn has_writers(file: &File) -> io::Result<bool> {
    let fcntl = |command: libc::c_int, argument: libc::c_int| {
        // SAFETY: these commands take an integer and touch no memory of ours; the descriptor is open.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // Who opens it for writing while the lease is there has us told by a signal: by one that does nothing.
    fcntl(F_SETSIG, libc::SIGURG)?;
    match fcntl(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => fcntl(libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_is_seen() {
        let path = std::env::temp_dir().join(format!("smolvm-writers-{}", std::process::id()));
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(has_writers(&reader).unwrap());
        drop(writer);
        assert!(!has_writers(&reader).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
