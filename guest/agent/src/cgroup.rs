//! The control group of the user's processes (cgroup v2; kernel documentation, admin-guide/cgroup-v2).

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::path::Path;

/// A control group, held by its directory.
pub struct Cgroup {
    directory: OwnedFd,
}

impl Cgroup {
    /// Opens an existing group.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> io::Result<Cgroup> {
        Ok(Cgroup { directory: crate::world::open_directory(path)? })
    }

    /// The directory, to be born into.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Writes one of the group's files.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, file, flags, Mode::empty())?;
        rustix::io::write(&fd, text.as_bytes())?;
        Ok(())
    }

    /// Opens one of the group's files for reading.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_file(&self, file: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Reads one of the group's files; empty when that fails.
    pub fn read(&self, file: &str) -> String {
        let Ok(fd) = self.open_file(file) else { return String::new() };
        String::from_utf8_lossy(&crate::world::read_up_to(&fd, 1 << 20)).into_owned()
    }

    /// Whether `cgroup.events` says `key 1`.
    pub fn event(&self, key: &str) -> bool {
        self.read("cgroup.events").lines().any(|line| line.split_once(' ') == Some((key, "1")))
    }
}
