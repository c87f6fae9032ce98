//! File content as a reference: who holds the bytes and which of them are meant.
//!
//! A tree of a whole operating system must not live in RAM, so a [`Content`] is a range of
//! something that can be read at an offset (a [`Spool`], an image), or a few shared bytes.
//! Next: `spool.rs` (where bytes from archives go), then `erofs/writer.rs` (where they leave).

mod spool;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub use spool::{Spool, SpoolError};

/// A BLAKE3 digest of a content or a tree.
pub type Digest = [u8; 32];

/// Something whose bytes can be read at any offset, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset` on; fails with `UnexpectedEof` where the bytes end before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// How many bytes there are.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// A part of a file, as if it were alone.
#[derive(Debug)]
pub struct FileRange {
    pub file: File,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl ReadAt for FileRange {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.len);
        match self.offset.checked_add(offset).filter(|_| inside) {
            Some(at) => FileExt::read_exact_at(&self.file, buf, at),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.get(start..end).ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// The bytes of one regular file, wherever they are kept. Cloning copies no bytes.
#[derive(Clone)]
pub struct Content {
    len: u64,
    held: Held,
    digest: Option<Digest>,
}

#[derive(Clone)]
enum Held {
    Bytes(Arc<[u8]>),
    Range {
        source: Arc<dyn ReadAt>,
        offset: u64,
    },
    /// One after the other; what an EROFS file with an inline tail is.
    Joined(Arc<[Content]>),
}

impl Content {
    /// No bytes.
    pub fn empty() -> Self {
        Self::bytes(Vec::new())
    }

    /// Bytes that are kept in memory: for what we make up ourselves, not for what is read.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self {
            len: bytes.len() as u64,
            digest: Some(*blake3::hash(&bytes).as_bytes()),
            held: Held::Bytes(bytes),
        }
    }

    /// `len` bytes of `source` from `offset` on. `digest` is their BLAKE3, where it is known.
    pub fn range(source: Arc<dyn ReadAt>, offset: u64, len: u64, digest: Option<Digest>) -> Self {
        Self { len, digest, held: Held::Range { source, offset } }
    }

    /// `parts` one after the other. None when their lengths do not add up in 64 bits.
    pub fn joined(parts: Vec<Content>) -> Option<Self> {
        let len = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.len))?;
        Some(Self { len, digest: None, held: Held::Joined(parts.into()) })
    }

    /// Which bytes of which source these are, where no digest says what they are: equal places are
    /// equal bytes.
    pub(crate) fn place(&self) -> Option<(usize, u64)> {
        match &self.held {
            Held::Range { source, offset } => Some((Arc::as_ptr(source).cast::<()>().addr(), *offset)),
            Held::Joined(parts) => parts.first()?.place(),
            Held::Bytes(_) => None,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` with the bytes from `offset` on; `UnexpectedEof` where they end before.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &self.held {
            Held::Bytes(bytes) => {
                let start = offset as usize; // within len, which fits
                buf.copy_from_slice(&bytes[start..start + buf.len()]);
                Ok(())
            }
            Held::Range { source, offset: base } => {
                let at = base.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
                source.read_exact_at(buf, at)
            }
            Held::Joined(parts) => read_joined(parts, buf, offset),
        }
    }

    /// A reader over all bytes.
    pub fn reader(&self) -> ContentReader<'_> {
        ContentReader { content: self, at: 0 }
    }

    /// All bytes at once, for files that are known to be small.
    ///
    /// # Errors
    /// `FileTooLarge` above `limit` bytes, else what reading says.
    pub fn to_vec(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.len > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; self.len as usize];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// BLAKE3 of the bytes: the one recorded, else computed by reading them.
    pub fn digest(&self) -> io::Result<Digest> {
        if let Some(digest) = self.digest {
            return Ok(digest);
        }
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut self.reader(), &mut hasher)?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// The digest, where it was recorded when the bytes came in.
    pub fn known_digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.len)
    }
}

fn read_joined(parts: &[Content], buf: &mut [u8], offset: u64) -> io::Result<()> {
    let mut skip = offset;
    let mut done = 0;
    for part in parts {
        if done == buf.len() {
            break;
        }
        if skip >= part.len {
            skip -= part.len;
            continue;
        }
        let here = (part.len - skip).min((buf.len() - done) as u64) as usize;
        part.read_exact_at(&mut buf[done..done + here], skip)?;
        done += here;
        skip = 0;
    }
    if done == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads a [`Content`] from its start.
pub struct ContentReader<'a> {
    content: &'a Content,
    at: u64,
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let here = (self.content.len - self.at).min(buf.len() as u64) as usize;
        self.content.read_exact_at(&mut buf[..here], self.at)?;
        self.at += here as u64;
        Ok(here)
    }
}
