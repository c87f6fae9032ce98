//! From a place in the guest's file tree to tar entries, by descriptors: nothing is looked up twice, links are never
//! followed on the way down, and every lookup from outside is confined to the guest's root by the kernel.

use crate::tar::write::Writer;
use crate::tar::{Entry, Kind};
use crate::world::World;
use agent_protocol::{PathKind, PathStat};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::mem::MaybeUninit;

/// Directories in directories; as deep as a path can name.
const DEPTH: usize = 2048;
/// Files with several names that are remembered, to write the others as links.
const LINKS: usize = 1 << 20;
/// Symbolic links followed at the end of a path, as the kernel does.
const FOLLOWED: usize = 40;
/// The longest list of attributes, and the longest attribute (the kernel's limits).
const XATTR: usize = 64 << 10;

/// A place: a directory, and a name in it (empty for the directory itself).
pub struct Place {
    /// The directory.
    pub parent: OwnedFd,
    /// The name in it; empty for the directory itself.
    pub name: CString,
}

impl Place {
    /// The name to look up in the directory.
    pub fn own_name(&self) -> &CStr {
        if self.name.is_empty() { c"." } else { &self.name }
    }

    /// The name an archive gives it.
    pub fn archive_name(&self) -> Vec<u8> {
        self.name.to_bytes().to_vec()
    }
}

/// Splits a path into its directory and its last component, which is empty when the directory itself is meant.
pub fn split(path: &str) -> (&str, &str) {
    let trimmed = path.trim_end_matches('/');
    let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    match name {
        "" | "." | ".." => (path, ""),
        name => (parent, name),
    }
}

fn nul(_: std::ffi::NulError) -> io::Error {
    io::Error::from(Errno::INVAL)
}

/// Opens a directory of the guest's root to look things up in.
///
/// # Errors
/// The kernel's.
pub fn open_directory(world: &World, path: &str) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "/" } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(&world.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

/// Finds a path of the guest; with `follow`, what a link at its end leads to.
///
/// # Errors
/// The kernel's; ELOOP after too many links.
pub fn find(world: &World, path: &str, follow: bool) -> io::Result<Place> {
    let mut path = path.to_string();
    for _ in 0..FOLLOWED {
        let (parent, name) = split(&path);
        let place = Place { parent: open_directory(world, parent)?, name: CString::new(name).map_err(nul)? };
        let stat = rustix::fs::statat(&place.parent, place.own_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        if !follow || FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(place);
        }
        let target = rustix::fs::readlinkat(&place.parent, place.own_name(), Vec::new())?;
        let target = target.to_string_lossy();
        path = if target.starts_with('/') { target.into_owned() } else { format!("{parent}/{target}") };
    }
    Err(Errno::LOOP.into())
}

/// What is at a place.
///
/// # Errors
/// The kernel's.
pub fn describe(place: &Place) -> io::Result<PathStat> {
    let stat = rustix::fs::statat(&place.parent, place.own_name(), AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => PathKind::File,
        FileType::Directory => PathKind::Directory,
        FileType::Symlink => PathKind::Symlink,
        _ => PathKind::Other,
    };
    let link = if kind == PathKind::Symlink {
        Some(
            rustix::fs::readlinkat(&place.parent, place.own_name(), Vec::new())?
                .to_string_lossy()
                .into_owned(),
        )
    } else {
        None
    };
    Ok(PathStat {
        name: place.name.to_string_lossy().into_owned(),
        kind,
        mode: stat.st_mode & 0o7777,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: stat.st_mtime,
        link_target: link,
    })
}

/// What a walk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Files as they are.
    Plain,
    /// An overlay's upper directory: whiteouts and opaque marks are kept, the overlay's bookkeeping is not.
    Upper,
    /// Files as they are, on one file system only: what an overlay shows in place of a moved directory.
    Merged,
}

/// A walk that writes what it finds.
pub struct Walk<'a, W> {
    world: &'a World,
    writer: &'a mut Writer<W>,
    what: What,
    links: BTreeMap<(u64, u64), Vec<u8>>,
    depth: usize,
}

impl<'a, W: Write> Walk<'a, W> {
    /// A walk into `writer`.
    pub fn new(world: &'a World, writer: &'a mut Writer<W>, what: What) -> Self {
        Walk { world, writer, what, links: BTreeMap::new(), depth: 0 }
    }

    /// Adds what `name` is in `parent`, and everything below it, as `path`.
    ///
    /// # Errors
    /// The kernel's and the stream's. What vanishes meanwhile is left out.
    pub fn add(&mut self, parent: &OwnedFd, name: &CStr, path: &[u8]) -> io::Result<()> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if self.depth > 0 => return Ok(()),
            other => other?,
        };
        let Some(mut entry) = entry_of(parent, name, path, &stat)? else { return Ok(()) };
        entry.xattrs = self.attributes(parent, name);
        let several = stat.st_nlink > 1 && entry.kind != Kind::Directory;
        if several {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                (entry.kind, entry.link, entry.size) = (Kind::Hardlink, first.clone(), 0);
                entry.xattrs.clear();
                return self.writer.entry(&entry);
            }
            if self.links.len() < LINKS {
                self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
            }
        }
        match entry.kind {
            Kind::File => self.file(parent, name, &entry),
            Kind::Directory => self.directory(parent, name, path, entry, &stat),
            _ => self.writer.entry(&entry),
        }
    }

    fn file(&mut self, parent: &OwnedFd, name: &CStr, entry: &Entry) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
        let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            // Only the owner may ask not to be noticed.
            Err(Errno::PERM) => rustix::fs::openat(parent, name, flags - OFlags::NOATIME, Mode::empty())?,
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        self.writer.entry(entry)?;
        self.writer.contents(&mut std::fs::File::from(file), entry.size)
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        path: &[u8],
        entry: Entry,
        stat: &Stat,
    ) -> io::Result<()> {
        if self.depth >= DEPTH {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "directories nested too deep"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let here = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        if self.what == What::Upper && has_attribute(parent, name, c"trusted.overlay.redirect") {
            return self.moved_directory(path, entry);
        }
        self.writer.entry(&entry)?;
        self.depth += 1;
        let result = self.below(&here, path, stat.st_dev);
        self.depth -= 1;
        result
    }

    fn below(&mut self, here: &OwnedFd, path: &[u8], device: u64) -> io::Result<()> {
        let mut names = names_in(here)?;
        // The same tree always gives the same archive.
        names.sort_unstable();
        for name in names {
            if self.what == What::Merged {
                let stat = rustix::fs::statat(here, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| stat.st_dev != device) {
                    continue;
                }
            }
            let below =
                if path == b"." { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
            self.add(here, &name, &below)?;
        }
        Ok(())
    }

    /// A directory of the base that was renamed: its contents are still in the base, under its old name. A plain tar
    /// cannot say that, so it becomes an opaque directory with everything in it.
    fn moved_directory(&mut self, path: &[u8], mut entry: Entry) -> io::Result<()> {
        let text = String::from_utf8_lossy(path).into_owned();
        entry.xattrs.retain(|(name, _)| name != b"trusted.overlay.opaque");
        entry.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
        let here = open_directory(self.world, &text)?;
        let device = rustix::fs::fstat(&here)?.st_dev;
        self.writer.entry(&entry)?;
        self.depth += 1;
        let before = std::mem::replace(&mut self.what, What::Merged);
        let result = self.below(&here, path, device);
        self.what = before;
        self.depth -= 1;
        result
    }

    /// The attributes worth carrying; what cannot be read is left out.
    fn attributes(&self, parent: &OwnedFd, name: &CStr) -> Vec<(Vec<u8>, Vec<u8>)> {
        let path = attribute_path(parent, name);
        let mut list = Vec::new();
        match rustix::fs::llistxattr_query(path.as_c_str()) {
            Ok(0) | Err(_) => return Vec::new(),
            Ok(size) => list.resize(size.min(XATTR), 0),
        }
        let Ok(size) = rustix::fs::llistxattr(path.as_c_str(), &mut list[..]) else { return Vec::new() };
        let names = list.get(..size).unwrap_or_default().split(|byte| *byte == 0);
        let wanted = names.filter(|name| !name.is_empty() && self.carries(name));
        wanted.filter_map(|name| Some((name.to_vec(), attribute(&path, name)?))).collect()
    }

    fn carries(&self, name: &[u8]) -> bool {
        match self.what {
            What::Upper if name.starts_with(b"trusted.overlay.") => name == b"trusted.overlay.opaque",
            What::Upper => true,
            What::Plain | What::Merged => !name.starts_with(b"trusted."),
        }
    }
}

/// Where the path-based attribute calls find an entry of an open directory (there are no `at` forms before 6.13).
fn attribute_path(parent: &OwnedFd, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).unwrap_or_default()
}

fn attribute(path: &CStr, name: &[u8]) -> Option<Vec<u8>> {
    let name = CString::new(name).ok()?;
    let mut value = vec![0u8; rustix::fs::lgetxattr_query(path, name.as_c_str()).ok()?.min(XATTR)];
    if value.is_empty() {
        return Some(value);
    }
    let size = rustix::fs::lgetxattr(path, name.as_c_str(), &mut value[..]).ok()?;
    value.truncate(size);
    Some(value)
}

fn has_attribute(parent: &OwnedFd, name: &CStr, attribute: &CStr) -> bool {
    rustix::fs::lgetxattr_query(attribute_path(parent, name).as_c_str(), attribute).is_ok()
}

/// The names in a directory.
///
/// # Errors
/// The kernel's.
pub fn names_in(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// The tar entry of a file; `None` for what an archive cannot hold (sockets).
fn entry_of(parent: &OwnedFd, name: &CStr, path: &[u8], stat: &Stat) -> io::Result<Option<Entry>> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Character,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        _ => return Ok(None),
    };
    let mut entry = Entry::new(path, kind);
    (entry.mode, entry.uid, entry.gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    entry.mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    match kind {
        Kind::File => entry.size = u64::try_from(stat.st_size).unwrap_or(0),
        Kind::Symlink => entry.link = rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes(),
        Kind::Character | Kind::Block => {
            entry.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        }
        _ => {}
    }
    Ok(Some(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_at_their_last_name() {
        assert_eq!(split("/etc/passwd"), ("/etc", "passwd"));
        assert_eq!(split("/etc/"), ("", "etc"));
        assert_eq!(split("passwd"), ("", "passwd"));
        for whole in ["/", "", "/etc/.", "/etc/..", "/etc/./"] {
            assert_eq!(split(whole), (whole, ""));
        }
    }
}
