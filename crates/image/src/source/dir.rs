//! Directories and files of the host, read as an ordinary user.
//!
//! File contents are copied to the spool at once, so that what the lock's digest says and what
//! the image holds cannot differ when somebody edits the directory meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::content::{Content, Spool, SpoolError};
use crate::tree::{Device, Item, Meta, OnSymlink, Time, Tree, TreeError, Xattrs};

/// Largest single attribute that is read; Linux's own limit is the same.
const XATTR_MAX: usize = 64 * 1024;

/// Who owns what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Everything belongs to this user and group.
    Fixed(u32, u32),
    /// As on the host.
    Keep,
}

/// When what comes in was modified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtimes {
    /// As on the host.
    Keep,
    /// Always then; makes two checkouts of the same files equal.
    Fixed(Time),
}

/// Which permissions what comes in has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// As on the host.
    Keep,
    /// 0755 for directories and files that somebody may execute, 0644 for others: what a version
    /// control system keeps, whatever the umask was.
    Checkout,
}

/// How a directory of the host comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirOptions {
    pub owner: Owner,
    pub mtimes: Mtimes,
    pub modes: Modes,
}

impl DirOptions {
    /// A whole root as a directory: everything as it is, but owned by root, since an ordinary
    /// user's directory cannot say otherwise.
    pub const ROOT: Self = Self { owner: Owner::Fixed(0, 0), mtimes: Mtimes::Keep, modes: Modes::Keep };

    /// Files beside a definition: only what version control keeps, so that the image is the same
    /// from every checkout.
    pub const fn checkout(time: Time) -> Self {
        Self { owner: Owner::Fixed(0, 0), mtimes: Mtimes::Fixed(time), modes: Modes::Checkout }
    }
}

/// What came in, and what did not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub entries: u64,
    pub bytes: u64,
    /// What was left out and why, one line each; to be shown to the user.
    pub skipped: Vec<String>,
}

/// One entry of the definition's `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// A file or directory; a symbolic link here is followed.
    pub host: PathBuf,
    /// Where it goes: the path itself, or, ending in `/`, the directory it goes into.
    pub guest: String,
}

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{doing} {path} failed: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not a directory; name a tar as `tar`, single files under `files`")]
    NotADirectory { path: PathBuf },
    #[error("{path} has no name that it could keep below `{guest}`; give the full path it shall have")]
    NoName { path: PathBuf, guest: String },
    #[error("keeping {path}: {source}")]
    Spool { path: PathBuf, source: SpoolError },
    #[error("{path}: {source}")]
    Tree { path: PathBuf, source: TreeError },
}

/// Brings the directory `host` into `tree` below `guest` (empty for the root), itself included.
/// Symbolic links stay as they are; hard links within it stay together; sockets and other file
/// systems mounted in it are left out and reported.
///
/// # Errors
/// [`SourceError`]: what could not be read (an unreadable file is an error, not a gap).
pub fn add_dir(
    tree: &mut Tree,
    spool: &Spool,
    host: &Path,
    guest: &str,
    options: &DirOptions,
) -> Result<Report, SourceError> {
    let meta = fs::metadata(host).map_err(|e| failed("looking at", host, e))?;
    if !meta.is_dir() {
        return Err(SourceError::NotADirectory { path: host.to_owned() });
    }
    let mut walk =
        Walk { tree, spool, options, device: meta.dev(), links: HashMap::new(), report: Report::default() };
    walk.add(host, guest.as_bytes().to_vec(), &meta)?;
    Ok(walk.report)
}

/// Brings single files and directories to the places that `sources` give, in that order.
///
/// # Errors
/// As [`add_dir`].
pub fn add_files(
    tree: &mut Tree,
    spool: &Spool,
    sources: &[FileSource],
    options: &DirOptions,
) -> Result<Report, SourceError> {
    let mut report = Report::default();
    for source in sources {
        let host = fs::canonicalize(&source.host).map_err(|e| failed("looking for", &source.host, e))?;
        let meta = fs::metadata(&host).map_err(|e| failed("looking at", &host, e))?;
        let mut guest = source.guest.clone().into_bytes();
        if guest.ends_with(b"/") && !meta.is_dir() {
            let name = source.host.file_name().ok_or_else(|| SourceError::NoName {
                path: source.host.clone(),
                guest: source.guest.clone(),
            })?;
            guest.extend_from_slice(name.as_bytes());
        }
        let mut walk = Walk {
            tree,
            spool,
            options,
            device: meta.dev(),
            links: HashMap::new(),
            report: std::mem::take(&mut report),
        };
        walk.add(&host, guest, &meta)?;
        report = walk.report;
    }
    Ok(report)
}

struct Walk<'a> {
    tree: &'a mut Tree,
    spool: &'a Spool,
    options: &'a DirOptions,
    device: u64,
    /// Files with several names: where the first one went.
    links: HashMap<u64, Vec<u8>>,
    report: Report,
}

impl Walk<'_> {
    fn add(&mut self, host: &Path, guest: Vec<u8>, meta: &Metadata) -> Result<(), SourceError> {
        let mut todo = Vec::new();
        self.entry(host, guest, meta, &mut todo)?;
        while let Some((dir, guest)) = todo.pop() {
            for name in sorted_names(&dir)? {
                let path = dir.join(OsStr::from_bytes(&name));
                let meta = fs::symlink_metadata(&path).map_err(|e| failed("looking at", &path, e))?;
                let below = match guest.is_empty() {
                    true => name,
                    false => [&guest, &b"/"[..], &name].concat(),
                };
                self.entry(&path, below, &meta, &mut todo)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        host: &Path,
        guest: Vec<u8>,
        meta: &Metadata,
        todo: &mut Vec<(PathBuf, Vec<u8>)>,
    ) -> Result<(), SourceError> {
        let kind = meta.file_type();
        if kind.is_socket() {
            let line = format!("{}: a socket", host.display());
            self.report.skipped.push(line);
            return Ok(());
        }
        let refused = |source| SourceError::Tree { path: host.to_owned(), source };
        if meta.nlink() > 1 && !kind.is_dir() {
            if let Some(first) = self.links.get(&meta.ino()) {
                self.tree.link(&guest, first).map_err(refused)?;
                self.report.entries += 1;
                return Ok(());
            }
            self.links.insert(meta.ino(), guest.clone());
        }
        let item = self.item(host, meta)?;
        if matches!(item, Item::Dir) {
            match meta.dev() == self.device {
                true => todo.push((host.to_owned(), guest.clone())),
                false => self
                    .report
                    .skipped
                    .push(format!("{}: what is in it, another file system is mounted there", host.display())),
            }
        }
        if let Item::File(content) = &item {
            self.report.bytes += content.len();
        }
        let new = self.meta(host, meta)?;
        self.tree.insert(&guest, item, new, OnSymlink::Keep).map_err(refused)?;
        self.report.entries += 1;
        Ok(())
    }

    fn item(&self, host: &Path, meta: &Metadata) -> Result<Item, SourceError> {
        let kind = meta.file_type();
        let device =
            || Device { major: rustix::fs::major(meta.rdev()), minor: rustix::fs::minor(meta.rdev()) };
        Ok(if kind.is_dir() {
            Item::Dir
        } else if kind.is_symlink() {
            let target = fs::read_link(host).map_err(|e| failed("reading the link", host, e))?;
            Item::Symlink(target.as_os_str().as_bytes().into())
        } else if kind.is_char_device() {
            Item::CharDevice(device())
        } else if kind.is_block_device() {
            Item::BlockDevice(device())
        } else if kind.is_fifo() {
            Item::Fifo
        } else {
            Item::File(self.content(host)?)
        })
    }

    /// Opened without following a link and without waiting on a fifo that came in between.
    fn content(&self, host: &Path) -> Result<Content, SourceError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file: File = rustix::fs::open(host, flags, Mode::empty())
            .map_err(|e| failed("opening", host, e.into()))?
            .into();
        let len = file.metadata().map_err(|e| failed("looking at", host, e))?.len();
        self.spool.add(&mut file, len).map_err(|source| SourceError::Spool { path: host.to_owned(), source })
    }

    fn meta(&self, host: &Path, meta: &Metadata) -> Result<Meta, SourceError> {
        let mode = (meta.mode() & 0o7777) as u16;
        let symlink = meta.file_type().is_symlink();
        let (uid, gid) = match self.options.owner {
            Owner::Fixed(uid, gid) => (uid, gid),
            Owner::Keep => (meta.uid(), meta.gid()),
        };
        Ok(Meta {
            mode: match self.options.modes {
                _ if symlink => 0o777,
                Modes::Keep => mode,
                Modes::Checkout if meta.is_dir() || mode & 0o111 != 0 => 0o755,
                Modes::Checkout => 0o644,
            },
            uid,
            gid,
            mtime: match self.options.mtimes {
                Mtimes::Fixed(time) => time,
                Mtimes::Keep => Time { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 },
            },
            xattrs: match self.options.modes {
                Modes::Checkout => Xattrs::new(),
                Modes::Keep if symlink => Xattrs::new(),
                Modes::Keep => xattrs(host)?,
            },
        })
    }
}

fn sorted_names(dir: &Path) -> Result<Vec<Vec<u8>>, SourceError> {
    let failed = |e| failed("listing", dir, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().as_bytes().to_vec());
    }
    names.sort_unstable();
    Ok(names)
}

/// The attributes that mean the same in a guest: capabilities, ACLs, `user.`. Labels of the
/// host's security module and `trusted.` are not the guest's business.
fn xattrs(path: &Path) -> Result<Xattrs, SourceError> {
    let mut xattrs = Xattrs::new();
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(xattrs),
        Err(e) => return Err(failed("listing the attributes of", path, e.into())),
    };
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let wanted = name.starts_with(b"user.")
            || name.starts_with(b"system.posix_acl_")
            || name == b"security.capability";
        if !wanted {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])
            .map_err(|e| failed("reading an attribute of", path, e.into()))?;
        xattrs.insert(name.into(), value[..len].into());
    }
    Ok(xattrs)
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io { doing, path: path.to_owned(), source }
}
