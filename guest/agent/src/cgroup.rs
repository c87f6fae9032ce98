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

    /// The names of the groups in `directory` (empty, or ending in a slash) of this one.
    pub fn subgroups(&self, directory: &str) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = if directory.is_empty() { "." } else { directory };
        let Ok(fd) = rustix::fs::openat(&self.directory, place, flags, Mode::empty()) else {
            return Vec::new();
        };
        let names = crate::walk::names_in(&fd).unwrap_or_default();
        let is_directory = |name: &String| {
            let stat = rustix::fs::statat(&fd, name.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
        };
        names.iter().filter_map(|name| name.to_str().ok().map(String::from)).filter(is_directory).collect()
    }

    /// The processes of the group and of the groups in it, sorted.
    pub fn members(&self) -> Vec<u32> {
        let mut members = Vec::new();
        let mut places = vec![String::new()];
        while let Some(place) = places.pop() {
            let list = self.read(&format!("{place}cgroup.procs"));
            members.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
            places.extend(self.subgroups(&place).iter().map(|name| format!("{place}{name}/")));
        }
        members.sort_unstable();
        members
    }
}
