//! Archives that expand without end are noticed while they do.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ArchiveError, decompress};

/// An archive may expand to so many bytes whatever its size, and above that to so many times its size: honest ones
/// reach 20, gzip's limit is 1032.
pub(crate) const EXPANDED: u64 = 1 << 30;
pub(crate) const RATIO: u64 = 100;

/// [`decompress`] of an archive whose size nobody announced: reading fails where it expands further than the bytes
/// that were read so far account for.
///
/// # Errors
/// As [`decompress`].
pub fn decompress_bounded<'a>(archive: impl Read + Send + 'a) -> Result<impl Read + Send + 'a, ArchiveError> {
    let packed = Arc::new(AtomicU64::new(0));
    let plain = decompress(Counted { inner: archive, seen: packed.clone() })?;
    Ok(Bounded { inner: plain, seen: 0, packed })
}

struct Counted<R> {
    inner: R,
    seen: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.seen.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

struct Bounded<R> {
    inner: R,
    seen: u64,
    packed: Arc<AtomicU64>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.seen += got as u64;
        let packed = self.packed.load(Ordering::Relaxed);
        let limit = EXPANDED.max(packed.saturating_mul(RATIO));
        if self.seen <= limit {
            return Ok(got);
        }
        let why = format!(
            "its first {packed} bytes expand to more than {limit}, as a decompression bomb does; if it is to be trusted, decompress it first"
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}
