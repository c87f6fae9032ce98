//! From tar entries to files below a directory of the guest.
//!
//! Every lookup starts at the guest's root and is confined to it by the kernel (`RESOLVE_IN_ROOT`), so neither the
//! archive's `..` and links nor the guest's own links lead anywhere else. Files are made anew, never written through
//! what stands in their place.

use crate::copy::path_failure;
use crate::tar::read::Reader;
use crate::tar::{Entry, Kind};
use crate::world::World;
use agent_protocol::{ErrorKind, Failure};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::io::{self, Read, Write};

/// Directories whose times are set at the end; beyond that they keep the time of unpacking.
const DIRECTORIES: usize = 1 << 18;
/// Bytes copied at once.
const PIECE: usize = 64 << 10;

/// Unpacks an archive into `path`.
///
/// # Errors
/// `NotFound` when `path` is no directory, `BadRequest` for what is no archive or holds paths with `..`, else what
/// the guest's file system says. What was unpacked before stays.
pub fn unpack(
    world: &World,
    input: &mut impl Read,
    path: &str,
    owner: Option<(u32, u32)>,
) -> Result<(), Failure> {
    crate::walk::open_directory(world, path).map_err(|error| path_failure("unpacking into", path, &error))?;
    let mut unpacker =
        Unpacker { world, base: path.trim_end_matches('/'), owner, parent: None, times: Vec::new() };
    let mut reader = Reader::new(input);
    let refused = |error: io::Error| {
        Failure::new(ErrorKind::BadRequest, format!("what was sent is no archive: {error}"))
    };
    while let Some(entry) = reader.next_entry().map_err(refused)? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        unpacker.entry(&entry, &mut reader).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Failure::new(ErrorKind::BadRequest, format!("{name}: {error}")),
            _ => path_failure("unpacking", &format!("{path}/{name}"), &error),
        })?;
    }
    unpacker.finish();
    Ok(())
}

struct Unpacker<'a> {
    world: &'a World,
    base: &'a str,
    owner: Option<(u32, u32)>,
    /// The directory that the last entry was in.
    parent: Option<(Vec<u8>, OwnedFd)>,
    times: Vec<(Vec<u8>, (i64, u32))>,
}

/// The components of an archive's path; `.` and leading slashes mean nothing.
fn components(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) || path.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the archive holds a path with '..' in it"));
    }
    Ok(parts)
}

impl Unpacker<'_> {
    /// A path below the base as the guest's root sees it.
    fn inside(&self, path: &[u8]) -> Result<CString, Errno> {
        let slash: &[u8] = b"/";
        let whole = [b"/", self.base.trim_start_matches('/').as_bytes(), slash, path].concat();
        CString::new(whole).map_err(|_| Errno::INVAL)
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.world.root, self.inside(path)?, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// The directory with these components below the base, made where it is missing.
    fn directory(&mut self, parts: &[&[u8]]) -> io::Result<&OwnedFd> {
        let path = parts.join(&b'/');
        if self.parent.as_ref().is_none_or(|(known, _)| *known != path) {
            let fd = match self.open(&path, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    let (last, before) = parts.split_last().ok_or(io::ErrorKind::NotFound)?;
                    let name = CString::new(*last)?;
                    match rustix::fs::mkdirat(self.directory(before)?, &name, Mode::from_bits_retain(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.open(&path, OFlags::PATH | OFlags::DIRECTORY)?
                }
                other => other?,
            };
            self.parent = Some((path, fd));
        }
        self.parent.as_ref().map(|(_, fd)| fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn entry(&mut self, entry: &Entry, contents: &mut Reader<impl Read>) -> io::Result<()> {
        let parts = components(&entry.path)?;
        let Some((last, before)) = parts.split_last() else {
            // The directory that everything goes into: it is there, and stays as it is.
            return Ok(());
        };
        let name = CString::new(*last)?;
        let target = match entry.kind {
            Kind::Hardlink => Some(self.link_target(&entry.link)?),
            _ => None,
        };
        let parent = self.directory(before)?.try_clone()?;
        let parent = &parent;
        if entry.kind == Kind::Directory {
            make_directory(parent, &name)?;
            if self.times.len() < DIRECTORIES {
                self.times.push((parts.join(&b'/'), entry.mtime));
            }
        } else {
            remove(parent, &name)?;
        }
        let mode = Mode::from_bits_retain(entry.mode);
        match (entry.kind, target) {
            (Kind::Hardlink, Some((directory, file))) => {
                rustix::fs::linkat(&directory, &file, parent, &name, AtFlags::empty())?;
                return Ok(());
            }
            (Kind::File, _) => write_file(parent, &name, contents)?,
            (Kind::Symlink, _) => rustix::fs::symlinkat(CString::new(entry.link.clone())?, parent, &name)?,
            (Kind::Directory | Kind::Hardlink, _) => {}
            (Kind::Character | Kind::Block | Kind::Fifo, _) => make_node(parent, &name, entry)?,
        }
        self.dress(parent, &name, entry, mode)
    }

    /// Where a hard link's other name is: like every path, below the base.
    fn link_target(&mut self, link: &[u8]) -> io::Result<(OwnedFd, CString)> {
        let parts = components(link)?;
        let missing =
            || io::Error::new(io::ErrorKind::InvalidInput, "the archive holds a hard link to nothing");
        let (last, before) = parts.split_last().ok_or_else(missing)?;
        let directory = self.open(&before.join(&b'/'), OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((directory, CString::new(*last)?))
    }

    /// Owner, attributes, mode and time, in the order in which none undoes another.
    fn dress(&self, parent: &OwnedFd, name: &CString, entry: &Entry, mode: Mode) -> io::Result<()> {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            // An agent that is not root (in a test) owns what it makes.
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {}
            other => other?,
        }
        let path = format!("/proc/self/fd/{}/{}", parent.as_raw_fd(), name.to_string_lossy());
        for (key, value) in &entry.xattrs {
            let known = key.starts_with(b"user.")
                || key.starts_with(b"security.capability")
                || key.starts_with(b"system.posix_acl_");
            if let (true, Ok(key)) = (known, CString::new(key.clone())) {
                // A file system without attributes still takes the file.
                let _ = rustix::fs::lsetxattr(path.as_str(), key.as_c_str(), value, XattrFlags::empty());
            }
        }
        if entry.kind != Kind::Symlink {
            // What was just made (or is a directory) is no link, so nothing is followed here.
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        if entry.kind != Kind::Directory {
            rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Sets the times of directories, which unpacking into them had changed.
    fn finish(self) {
        for (path, mtime) in &self.times {
            if let Ok(directory) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
                let _ = rustix::fs::futimens(&directory, &times(*mtime));
            }
        }
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// Takes away what stands where a file is to be made; a directory stays, and is an error.
fn remove(parent: &OwnedFd, name: &CString) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a directory stands where the archive has a file",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory, or takes the one that is there.
fn make_directory(parent: &OwnedFd, name: &CString) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_bits_retain(0o755)) {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "something else stands where the archive has a directory",
    ))
}

fn write_file(parent: &OwnedFd, name: &CString, contents: &mut Reader<impl Read>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file =
        std::fs::File::from(rustix::fs::openat(parent, name, flags, Mode::from_bits_retain(0o600))?);
    let mut piece = vec![0u8; PIECE];
    let mut from = contents.contents();
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            got => file.write_all(piece.get(..got).unwrap_or_default())?,
        }
    }
}

fn make_node(parent: &OwnedFd, name: &CString, entry: &Entry) -> io::Result<()> {
    let kind = match entry.kind {
        Kind::Character => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    Ok(rustix::fs::mknodat(parent, name, kind, Mode::from_bits_retain(0o600), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below() {
        assert_eq!(components(b"/a//./b/").expect("fine"), [b"a".as_slice(), b"b"]);
        assert!(components(b"./").expect("fine").is_empty());
        for bad in [b"../x".as_slice(), b"a/../../x", b"..", b"a\0b"] {
            assert!(components(bad).is_err());
        }
    }
}
