//! A disk that is written in place, and its copy as of one instant, while the guest goes on writing.
//!
//! Problem: a copy of a running machine needs its volumes as they were when it was copied. They may be large, and the
//! machine may stand still for milliseconds only; and not every file system can share blocks.
//!
//! Strategy: from the instant on, whoever is about to overwrite (or punch) a piece first brings its old bytes to the
//! copy. Everything else is copied piece by piece meanwhile, the holes left out.
//!
//! Invariants: a piece is copied once, before anything in it changes; a failure to copy fails the copy, never the guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::api::Disk;
use crate::bits::Bits;
use crate::file::FileDisk;

/// What is copied at a time, bytes: a write waits for so much at most for each piece that it touches.
const PIECE: u64 = 64 << 10;

/// A whole file, written in place, that can be copied meanwhile.
pub struct LiveDisk {
    disk: FileDisk,
    file: Arc<File>,
    copying: RwLock<Option<Copying>>,
}

/// What a change makes of holes: a large one that leaves them needs not look at each piece of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holes {
    Stay,
    Go,
}

/// The copy that is being made.
struct Copying {
    to: File,
    pieces: Mutex<Pieces>,
}

struct Pieces {
    done: Bits,
    failed: Option<io::Error>,
}

impl LiveDisk {
    /// # Errors
    /// As [`FileDisk::writable`].
    pub fn new(file: File, writable: bool) -> io::Result<Self> {
        let file = Arc::new(file);
        let disk = FileDisk::whole(file.clone(), writable)?;
        Ok(Self { disk, file, copying: RwLock::new(None) })
    }

    /// Begins a copy of what the disk holds now into the empty file `to`. Returns at once; [`LiveCopy::finish`] does the
    /// work. One at a time.
    ///
    /// # Errors
    /// `ResourceBusy` when there is one already; the host's.
    pub fn copy(self: &Arc<Self>, to: File) -> io::Result<LiveCopy> {
        to.set_len(self.size())?;
        let mut copying = self.write();
        if copying.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let pieces = Pieces { done: Bits::new(self.size().div_ceil(PIECE)), failed: None };
        *copying = Some(Copying { to, pieces: Mutex::new(pieces) });
        Ok(LiveCopy { disk: self.clone() })
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Copying>> {
        self.copying.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Copying>> {
        self.copying.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a range, when the copy has what is there now. A copy begins before or after this as a whole.
    fn change(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
        change: impl FnOnce(&FileDisk) -> io::Result<()>,
    ) -> io::Result<()> {
        let copying = self.read();
        if let Some(copying) = &*copying {
            let end = offset.saturating_add(len).min(self.size());
            let mut at = offset;
            while at < end {
                if holes == Holes::Stay {
                    at = match seek(&self.file, SeekFrom::Data(at)) {
                        Ok(data) => data,
                        Err(Errno::NXIO) => end,
                        // Where it cannot be told everything is data.
                        Err(_) => at,
                    };
                }
                if at < end {
                    copying.keep(&self.file, self.size(), at / PIECE);
                    at = (at / PIECE + 1) * PIECE;
                }
            }
        }
        change(&self.disk)
    }
}

impl Copying {
    /// Brings a piece to the copy that is not there yet.
    fn keep(&self, from: &File, size: u64, piece: u64) {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.done.has(piece) || pieces.failed.is_some() {
            return;
        }
        let start = piece * PIECE;
        let mut bytes = vec![0; PIECE.min(size - start) as usize];
        let copied = from.read_exact_at(&mut bytes, start).and_then(|()| {
            // What is not written reads as zeros.
            if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { self.to.write_all_at(&bytes, start) }
        });
        match copied {
            Ok(()) => pieces.done.put(piece, true),
            Err(error) => pieces.failed = Some(error),
        }
    }

    fn failed(&self) -> io::Result<()> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.failed.take().map_or(Ok(()), Err)
    }
}

/// A copy on its way. Dropped, it is given up.
pub struct LiveCopy {
    disk: Arc<LiveDisk>,
}

impl LiveCopy {
    /// Copies what is left. The file is not brought to the disk.
    ///
    /// # Errors
    /// The host's while reading or writing, now or when something was kept.
    pub fn finish(self) -> io::Result<()> {
        let size = self.disk.size();
        let mut at = 0;
        while at < size {
            // What is a hole by now was one, or is copied already.
            at = match seek(&self.disk.file, SeekFrom::Data(at)) {
                Ok(data) => data / PIECE * PIECE,
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let copying = self.disk.read();
            let Some(copying) = &*copying else { break };
            copying.keep(&self.disk.file, size, at / PIECE);
            copying.failed()?;
            at += PIECE;
        }
        self.disk.read().as_ref().map_or(Ok(()), Copying::failed)
    }
}

impl Drop for LiveCopy {
    fn drop(&mut self) {
        *self.disk.write() = None;
    }
}

impl Disk for LiveDisk {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, to)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.change(offset, from.len() as u64, Holes::Go, |disk| disk.write_at(offset, from))
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(offset, len, Holes::Stay, |disk| disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(offset, len, Holes::Stay, |disk| disk.write_zeroes(offset, len))
    }
}
