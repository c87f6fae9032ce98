//! Where the bytes of archives and directories wait until the image is written.
//!
//! One unnamed file: nothing that an archive says can choose a path on the host, and nothing
//! is left behind when the process dies. Equal contents are kept once, by their BLAKE3, which
//! is also how the image writer finds out that two files may share their blocks.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Content, Digest};

/// Bytes moved at a time. Large enough that system calls don't count.
const CHUNK: usize = 256 * 1024;

/// Why bytes could not be spooled.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The temporary file could not be made.
    #[error(
        "making a temporary file in {dir} failed: {source}; choose another cache directory or make this one writable"
    )]
    Create { dir: PathBuf, source: io::Error },
    /// The bytes to keep could not be read.
    #[error("reading the bytes to keep failed: {0}")]
    Read(io::Error),
    /// What was announced and what came differ.
    #[error("{missing} of {announced} announced bytes are missing; the source is cut short")]
    Short { announced: u64, missing: u64 },
    /// Writing failed; a full disk, mostly.
    #[error("writing {len} bytes to the temporary file failed: {source}; is the disk full?")]
    Write { len: u64, source: io::Error },
    /// More than the caller allowed.
    #[error(
        "the files together are larger than the limit of {limit} bytes; leave out what need not be in the root (a folder or volume can be mounted with -v)"
    )]
    Limit { limit: u64 },
}

/// An append-only, content-addressed area on disk. Shared between threads by reference.
pub struct Spool {
    file: Arc<File>,
    next: AtomicU64,
    limit: u64,
    seen: Mutex<HashMap<Digest, Content>>,
}

impl Spool {
    /// Makes a spool as an unnamed file in `dir` that takes at most `limit` bytes.
    ///
    /// # Errors
    /// [`SpoolError::Create`] when no file can be made there.
    pub fn new(dir: &Path, limit: u64) -> Result<Self, SpoolError> {
        let file = tempfile::tempfile_in(dir)
            .map_err(|source| SpoolError::Create { dir: dir.to_owned(), source })?;
        Ok(Self { file: Arc::new(file), next: AtomicU64::new(0), limit, seen: Mutex::new(HashMap::new()) })
    }

    /// Takes exactly `len` bytes from `reader` and keeps them.
    ///
    /// # Errors
    /// [`SpoolError::Short`] when `reader` ends before; [`SpoolError::Limit`] before anything
    /// is written; reading and writing errors.
    pub fn add(&self, reader: &mut impl Read, len: u64) -> Result<Content, SpoolError> {
        if len == 0 {
            return Ok(Content::empty());
        }
        let start = self.reserve(len)?;
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; CHUNK.min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(buf.len() as u64) as usize;
            let got = match reader.read(&mut buf[..want]) {
                Ok(0) => {
                    return Err(SpoolError::Short { announced: len, missing: len - done });
                }
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(SpoolError::Read(e)),
            };
            hasher.update(&buf[..got]);
            self.file
                .write_all_at(&buf[..got], start + done)
                .map_err(|source| SpoolError::Write { len, source })?;
            done += got as u64;
        }
        Ok(self.known(*hasher.finalize().as_bytes(), start, len))
    }

    fn reserve(&self, len: u64) -> Result<u64, SpoolError> {
        let limit = self.limit;
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                at.checked_add(len).filter(|end| *end <= limit)
            })
            .map_err(|_| SpoolError::Limit { limit })
    }

    /// The first content with this digest stays the one that counts, so that equal files are
    /// equal ranges whichever thread came first.
    fn known(&self, digest: Digest, start: u64, len: u64) -> Content {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(digest)
            .or_insert_with(|| Content::range(self.file.clone(), start, len, Some(digest)))
            .clone()
    }

    /// Bytes of disk taken so far.
    pub fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}
