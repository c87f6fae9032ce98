//! Translated code of a frozen machine, beside what it was frozen into: so that it need not be translated again.
//!
//! Problem: code that this host is to execute must never come from anybody but this user's own process. So it is not in
//! machine files, which travel; and what lies here counts only if it is whole, this user's alone, of this very program
//! and of this very state. Everything else is no error: the engine does without.
//!
//! ```text
//! "SMVKEPT1" build (32 bytes) state (32 bytes)
//! pieces: length (u32, little-endian), digest (32 bytes), bytes
//! the last one has no bytes
//! ```
//! A piece's digest is BLAKE3 of the digest before it (the first one's: of what stands before) and its bytes. What is in
//! the pieces is the engine's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use artifact::Digest;
use artifact::hash::Hasher;
use artifact::temp::{TempFile, TempStyle};
use machine::CodeSource;
use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::vmm::Vmm;

/// Its name in an instance's directory.
pub const KEPT_CODE: &str = "code";

const MAGIC: &[u8; 8] = b"SMVKEPT1";
const HEAD: usize = 8 + 2 * 32;
/// Bytes of a piece at most.
const PIECE: usize = 64 << 10;
/// Bytes of all of it at most: what is more is not kept.
const MOST: u64 = 128 << 20;

/// Which program this is: no other file of this host has had this place, length and times.
fn build() -> io::Result<Digest> {
    // A link of the kernel's to the file that runs, wherever it is by now.
    let meta = fs::metadata("/proc/self/exe")?;
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
    let numbers = [meta.dev(), meta.ino(), meta.len()].into_iter().chain(times.map(i64::cast_unsigned));
    let mut bytes = env!("CARGO_PKG_VERSION").as_bytes().to_vec();
    numbers.for_each(|number| bytes.extend(number.to_le_bytes()));
    Ok(Digest::of(&bytes))
}

fn head(state: &Digest) -> io::Result<[u8; HEAD]> {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..40].copy_from_slice(build()?.as_bytes());
    head[40..].copy_from_slice(state.as_bytes());
    Ok(head)
}

fn chained(before: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(before.as_bytes());
    hasher.update(bytes);
    hasher.finish()
}

/// Bytes into pieces.
struct Sealing<'a> {
    to: &'a File,
    last: Digest,
    piece: Vec<u8>,
    written: u64,
}

impl Sealing<'_> {
    fn pass(&mut self) -> io::Result<()> {
        self.last = chained(&self.last, &self.piece);
        let mut head = [0; 36];
        head[..4].copy_from_slice(&(self.piece.len() as u32).to_le_bytes());
        head[4..].copy_from_slice(self.last.as_bytes());
        self.written += (head.len() + self.piece.len()) as u64;
        if self.written > MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.to.write_all(&head)?;
        self.to.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            self.pass()?;
        }
        let some = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend(bytes.iter().take(some));
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Pieces into bytes: none is given before its digest was looked at.
struct Opened {
    from: File,
    last: Digest,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Opened {
    fn next(&mut self) -> io::Result<()> {
        let mut head = [0; 36];
        self.from.read_exact(&mut head)?;
        let [a, b, c, d, digest @ ..] = head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > PIECE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.piece.resize(len, 0);
        self.at = 0;
        self.from.read_exact(&mut self.piece)?;
        self.last = chained(&self.last, &self.piece);
        self.ended = len == 0;
        if self.last == Digest::from_bytes(digest) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

impl Read for Opened {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.ended {
            self.next()?;
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let some = rest.len().min(to.len());
        to[..some].copy_from_slice(&rest[..some]);
        self.at += some;
        Ok(some)
    }
}

/// Writes what `keep` says, of a machine that was frozen into `state`, to `path`; nothing where `keep` says that there is
/// nothing.
fn write(
    path: &Path,
    state: &Digest,
    keep: impl FnOnce(&mut dyn Write) -> io::Result<bool>,
) -> io::Result<bool> {
    let head = head(state)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    // It can be made again: nobody waits for the disk.
    let temp = TempFile::create_in(dir, 0o600, TempStyle::Auto)?;
    let mut to = temp.file();
    to.write_all(&head)?;
    let last = Digest::of(&head);
    let mut sealing = Sealing { to, last, piece: Vec::with_capacity(PIECE), written: HEAD as u64 };
    if !keep(&mut sealing)? {
        return Ok(false);
    }
    if !sealing.piece.is_empty() {
        sealing.pass()?;
    }
    sealing.pass()?;
    temp.replace(path)?.unlock()?;
    Ok(true)
}

/// Opens what was kept of a machine that was frozen into `state`.
fn open(path: &Path, state: &Digest) -> io::Result<Opened> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned());
    store::dirs::ensure_private(path.parent().unwrap_or(Path::new(".")))
        .map_err(|e| refused(&e.to_string()))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut from = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = from.metadata()?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(refused("it is not this user's alone"));
    }
    if meta.len() > MOST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut found = [0; HEAD];
    from.read_exact(&mut found)?;
    if found != head(state)? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "of another program or state"));
    }
    Ok(Opened { from, last: Digest::of(&found), piece: Vec::new(), at: 0, ended: false })
}

fn source(path: PathBuf, state: Digest) -> CodeSource {
    Box::new(move || Ok(Box::new(open(&path, &state)?)))
}

impl Vmm {
    /// Keeps, in `path`, the code that the engine made of the guest's, for a start from `state`, the file that it was just
    /// frozen into: it stands still since. Where that cannot be, there is no such file.
    ///
    /// # Errors
    /// The host's.
    pub fn keep_code(&self, path: &Path, state: &Digest) -> Result<(), Error> {
        let kept = write(path, state, |to| self.machine().keep_code(to));
        if matches!(kept, Ok(true)) {
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(crate::io_error("remove", path)(e)),
            _ => kept.map(drop).map_err(crate::io_error("write", path)),
        }
    }

    /// Lets the engine go on with what [`Vmm::keep_code`] kept in `path` of a machine that was frozen into `state`, if
    /// that is there and sound. Before the machine runs.
    pub fn offer_code(&self, path: PathBuf, state: Digest) {
        self.machine().offer_code(source(path, state));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LEN: usize = 3 * PIECE + 100;

    fn bytes() -> Vec<u8> {
        (0..LEN).map(|n| (n / 7) as u8).collect()
    }

    fn kept() -> (tempfile::TempDir, PathBuf, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let (path, state) = (dir.path().join(KEPT_CODE), Digest::of(b"state"));
        assert!(write(&path, &state, |to| to.write_all(&bytes()).map(|()| true)).unwrap());
        (dir, path, state)
    }

    fn read(path: &Path, state: &Digest) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        source(path.to_owned(), *state)()?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn what_is_kept_is_read_again_and_is_this_users_alone() {
        let (_dir, path, state) = kept();
        assert!(read(&path, &state).unwrap() == bytes());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn of_another_state_or_program_it_is_not_read() {
        let (_dir, path, state) = kept();
        assert_eq!(read(&path, &Digest::of(b"other")).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut file = fs::read(&path).unwrap();
        file[8] ^= 1;
        fs::write(&path, file).unwrap();
        assert_eq!(read(&path, &state).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn damage_shows_before_what_is_damaged_is_given() {
        let (_dir, path, state) = kept();
        let whole = fs::read(&path).unwrap();
        for at in [HEAD, HEAD + 5, HEAD + 40, HEAD + 36 + PIECE + 50, whole.len() - 1] {
            let mut file = whole.clone();
            file[at] ^= 0x10;
            fs::write(&path, &file).unwrap();
            let mut opened = open(&path, &state).unwrap();
            let mut got = Vec::new();
            assert!(opened.read_to_end(&mut got).is_err(), "byte {at}");
            assert!(bytes().starts_with(&got), "byte {at}");
        }
        for len in [0, HEAD - 1, HEAD, HEAD + 36 + PIECE, whole.len() - 36, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(read(&path, &state).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_others_may_have_written_is_not_read() {
        let (dir, path, state) = kept();
        let refused = |why: &str| {
            assert_eq!(read(&path, &state).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{why}");
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        refused("a file that a group may write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        refused("a directory that anybody may write");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(read(&path, &state).is_ok());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            refused("a file of another user");
        }
        let real = dir.path().join("real");
        fs::rename(&path, &real).unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        assert!(read(&path, &state).is_err());
    }

    #[test]
    fn more_than_there_may_be_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, state) = (dir.path().join(KEPT_CODE), Digest::of(b"state"));
        let piece = vec![7; PIECE];
        let much = |to: &mut dyn Write| {
            (0..MOST / PIECE as u64 + 1).try_for_each(|_| to.write_all(&piece)).map(|()| true)
        };
        assert_eq!(write(&path, &state, much).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(!write(&path, &state, |_| Ok(false)).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
