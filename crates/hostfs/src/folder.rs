//! A folder or file of the host that a guest may use.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Folders of one machine, those of earlier runs that its processes may still hold included.
pub const MAX_FOLDERS: usize = 512;

/// A folder or file that was opened: its place is fixed, whatever is renamed above it.
pub struct Folder {
    /// The folder; of a file, the folder that it is in.
    dir: OwnedFd,
    /// The file's name in `dir`.
    file: Option<Vec<u8>>,
    guest: String,
    read_only: bool,
}

/// What a guest is told of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its name in the root of what is served.
    pub id: u32,
    /// Where it belongs in the guest.
    pub guest: String,
    pub read_only: bool,
    /// It is a file.
    pub file: bool,
}

impl Folder {
    /// Opens `host`, a directory or regular file, for the guest's path `guest`. Links in `host` itself are followed:
    /// they are the user's.
    ///
    /// # Errors
    /// Not there, neither a directory nor a file; a host without `openat2` (Linux 5.6) or /proc.
    pub fn open(host: &Path, guest: &str, read_only: bool) -> io::Result<Self> {
        let host = host.canonicalize()?;
        let kind = host.metadata()?.file_type();
        let (dir, file) = if kind.is_dir() {
            (host.as_path(), None)
        } else if kind.is_file() {
            let both = host.parent().zip(host.file_name());
            let (dir, name) = both.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            (dir, Some(name.as_bytes().to_vec()))
        } else {
            return Err(io::Error::other("it is neither a folder nor a file"));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = Self {
            dir: rustix::fs::open(dir, flags, Mode::empty())?,
            file,
            guest: guest.to_owned(),
            read_only,
        };
        let probe = folder.walk(b"").map_err(|e| {
            io::Error::other(format!("{e}; shared folders need a host with openat2 (Linux 5.6 or later)"))
        })?;
        reopen(&probe, &rustix::fs::fstat(&probe)?, OFlags::RDONLY)?;
        Ok(folder)
    }

    pub(crate) fn guest(&self) -> &str {
        &self.guest
    }

    pub(crate) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        rustix::fd::AsFd::as_fd(&self.dir)
    }

    /// The place below the folder that `path` (without a `/` in front; empty: the folder itself) leads to, unopened.
    /// No link is followed, nothing above the folder is reached, whoever changes what meanwhile.
    pub(crate) fn walk(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = match (&self.file, path) {
            (Some(name), b"") => name,
            (Some(_), _) => return Err(Errno::NOTDIR),
            (None, b"") => &b"."[..],
            (None, path) => path,
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        // A link at the end is found, not followed: NO_SYMLINKS lets O_PATH | O_NOFOLLOW have it.
        loop {
            match rustix::fs::openat2(&self.dir, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
                // A rename somewhere raced with the walk (openat2(2)).
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }
}

/// The path by which the kernel finds an open descriptor's file again.
pub(crate) fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens for use what [`Folder::walk`] found, if it is a directory or regular file: nothing else is ever opened. `stat` is
/// that of `fd`, whose kind never changes.
pub(crate) fn reopen(fd: &OwnedFd, stat: &Stat, flags: OFlags) -> Result<OwnedFd, Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        _ => return Err(Errno::NXIO),
    }
    let always = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::fs::open(proc_path(fd), flags | always, Mode::empty())
}
