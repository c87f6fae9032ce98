//! A file that appears under its final name whole, or not at all.
//!
//! Problem: a process may be killed at any instant. Strategy: the file is written without a name (O_TMPFILE), or,
//! where the file system has no such files, under a name that tells what it is; it gets its final name by link or
//! rename only. Whoever writes holds a lock (flock) on it until then, and the kernel drops that lock with the
//! process. Invariants: a final name never stands for part of a file; a name that starts with [`PREFIX`] and is
//! not locked is nobody's any more, and [`clean_leftovers`] removes it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// What the name of an unfinished file starts with.
pub const PREFIX: &str = ".smolvm-tmp-";

/// How a file without a final name is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TempStyle {
    /// Without any name where the file system can, else [`TempStyle::Named`].
    #[default]
    Auto,
    /// Under a name with [`PREFIX`].
    Named,
}

/// A file that is being written. Dropped before it got its name, it leaves nothing.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    dir: PathBuf,
    /// The name it has for now.
    name: Option<PathBuf>,
}

impl TempFile {
    /// An empty file, readable and writable, in `dir`, the directory of its final name. `mode` are its
    /// permission bits, from which the umask is taken.
    pub fn create_in(dir: &Path, mode: u32, style: TempStyle) -> io::Result<TempFile> {
        let mode = Mode::from_raw_mode(mode);
        // Giving a nameless file its name goes through /proc.
        if style == TempStyle::Auto && Path::new("/proc/self/fd").exists() {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            match rustix::fs::open(dir, flags, mode) {
                Ok(fd) => {
                    let temp = TempFile { file: fd.into(), dir: dir.to_owned(), name: None };
                    temp.mark_alive();
                    return Ok(temp);
                }
                // The file system, or the kernel, has no such files (open(2), O_TMPFILE).
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            let name = fresh_name(dir)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file: File = match rustix::fs::open(&name, flags, mode) {
                Ok(fd) => fd.into(),
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            };
            let temp = TempFile { file, dir: dir.to_owned(), name: Some(name) };
            temp.mark_alive();
            // A cleaner may have come between creation and lock; then this file is gone.
            if temp.file.metadata()?.nlink() > 0 {
                return Ok(temp);
            }
        }
    }

    /// Takes the lock that says so. A file system without locks has no cleaner either: the lock fails there, too.
    fn mark_alive(&self) {
        let _ = self.file.lock();
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its final name, in place of a file that has it. The caller has brought the bytes to the disk;
    /// whether the name is there after a power failure is [`sync_dir`]'s.
    pub fn replace(mut self, path: &Path) -> io::Result<File> {
        if self.name.is_none() && self.link(path)? {
            return self.file.try_clone();
        }
        // A link cannot replace: first any name, then a rename.
        while self.name.is_none() {
            let name = fresh_name(&self.dir)?;
            if self.link(&name)? {
                self.name = Some(name);
            }
        }
        if let Some(name) = &self.name {
            fs::rename(name, path)?;
        }
        self.name = None;
        self.file.try_clone()
    }

    /// Gives it its final name unless there is a file of that name; `None` then, and this one is gone.
    pub fn link_new(self, path: &Path) -> io::Result<Option<File>> {
        if !self.link(path)? {
            return Ok(None);
        }
        // A temporary name that it may have goes with `self`.
        self.file.try_clone().map(Some)
    }

    /// One more name; `false` where it is taken.
    fn link(&self, path: &Path) -> io::Result<bool> {
        let linked = match &self.name {
            Some(name) => rustix::fs::linkat(CWD, name, CWD, path, AtFlags::empty()),
            None => return link_open(&self.file, path),
        };
        match linked {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Gives an open file one more name, on its own file system; `false` where it is taken.
pub fn link_open(file: &File, path: &Path) -> io::Result<bool> {
    // The way without privileges (open(2), O_TMPFILE).
    let this = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, this, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Best effort: what stays is recognised by its name.
            let _ = fs::remove_file(name);
        }
    }
}

/// Writes a small file whole or not at all: whoever comes after a kill finds the old bytes or the new ones.
///
/// `durable`: so does whoever comes after a power failure, and the new ones are there to stay when this returns.
/// Without it a power failure may leave an empty file in the place of the old one.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = TempFile::create_in(dir, mode, TempStyle::Auto)?;
    temp.file().write_all_at(bytes, 0)?;
    if durable {
        temp.file().sync_all()?;
    }
    let file = temp.replace(path)?;
    // The lock said that it was unfinished.
    let _ = file.unlock();
    if durable { sync_dir(dir) } else { Ok(()) }
}

/// A name in `dir` that nobody else has.
fn fresh_name(dir: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let random = u64::from_ne_bytes(random);
    Ok(dir.join(format!("{PREFIX}{}-{random:016x}", std::process::id())))
}

/// Whether a file of this name is one that was or is being written.
pub fn is_temp_name(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Removes unfinished files of dead processes from `dir`, and says which. Those of living ones stay.
pub fn clean_leftovers(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    each_leftover(dir, |path| {
        if fs::remove_file(&path).is_ok() {
            removed.push(path);
        }
    })?;
    Ok(removed)
}

/// Unfinished files of dead processes in `dir`.
pub fn leftovers(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    each_leftover(dir, |path| found.push(path))?;
    Ok(found)
}

/// Calls `each` with every leftover, which is locked meanwhile.
fn each_leftover(dir: &Path, mut each: impl FnMut(PathBuf)) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !is_temp_name(&entry.file_name()) || !entry.file_type()?.is_file() {
            continue;
        }
        let path = entry.path();
        // Somebody else's file, or one that is gone by now, is not ours to mind.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::open(&path, flags, Mode::empty()) else {
            continue;
        };
        let file = File::from(fd);
        if file.try_lock().is_ok() {
            each(path);
        }
    }
    Ok(())
}

/// Brings `dir`'s names to the disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
