//! What surrounds the agent: the root it serves, the group its processes live in, whether it is PID 1.

use crate::cgroup::Cgroup;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::io;
use std::path::{Path, PathBuf};

/// The agent's surroundings. Everything in it can be replaced for a test.
pub struct World {
    /// Whether the whole machine is ours: only then may everything be signalled, mounted and powered off.
    pub pid1: bool,
    /// The root directory of the guest.
    pub root: OwnedFd,
    /// `/dev/null`.
    pub null: OwnedFd,
    /// Where the agent keeps its own run-time files (`/run/smolvm`).
    pub run: PathBuf,
    /// The group of the user's processes.
    pub cgroup: Option<Cgroup>,
    /// The overlay's upper directory: what the machine changed.
    pub upper: Option<OwnedFd>,
    /// The root of the mounted writable disk, to be made read-only at the end.
    pub writable: Option<OwnedFd>,
}

impl World {
    /// The group processes are born into.
    pub fn cgroup_fd(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::fd)
    }

    /// Opens a regular file of the guest's root for reading; `..` and links stay inside. Whatever the guest puts in
    /// its place (a pipe, a device), the agent does not wait for it.
    ///
    /// # Errors
    /// The kernel's; EINVAL for what is no regular file.
    pub fn open(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// A descriptor of /dev/null, opened before the guest could replace it.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn null(&self) -> io::Result<OwnedFd> {
        self.null.try_clone()
    }

    /// Reads a small file of the guest's root, at most `limit` bytes; empty when there is none.
    pub fn read_small(&self, path: &str, limit: usize) -> Vec<u8> {
        self.open(path).map(|file| read_up_to(&file, limit)).unwrap_or_default()
    }
}

/// Reads at most `limit` bytes; what was read before an error counts.
pub fn read_up_to(file: &OwnedFd, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0u8; 4096];
    while bytes.len() < limit {
        let room = piece.len().min(limit - bytes.len());
        match rustix::io::read(file, piece.get_mut(..room).unwrap_or_default()) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(piece.get(..n).unwrap_or_default()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    bytes
}

/// Reads a small file of the agent's own view (/proc, /sys).
pub fn read_text(path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return String::new();
    };
    String::from_utf8_lossy(&read_up_to(&file, 1 << 20)).into_owned()
}

/// Opens a directory to resolve paths against.
///
/// # Errors
/// The kernel's.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Writes to the console (standard output of PID 1); nobody may be listening.
pub fn say(text: &str) {
    let _ = rustix::io::write(rustix::stdio::stdout(), text.as_bytes());
}

/// Opens /dev/null.
///
/// # Errors
/// The kernel's.
pub fn open_null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?)
}
