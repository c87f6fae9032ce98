//! A checked descriptor chain and the two views of guest memory that it gives.

use guestmem::GuestMemory;
use thiserror::Error;

/// Segments in one chain, indirect tables included. Linux splits far below it.
pub const MAX_CHAIN: usize = 1024;

/// A piece of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

/// One request of the driver: what it wrote for us, then room for what we answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Vec<Segment>,
    pub(crate) writable: Vec<Segment>,
}

/// A view ran out or met something that is not RAM.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ViewError {
    /// Fewer bytes are left than asked for; none were moved.
    #[error("{asked} bytes asked for, {left} left in the request")]
    Short { asked: u64, left: u64 },
    /// Guest memory refused.
    #[error(transparent)]
    Memory(#[from] guestmem::Error),
}

impl Chain {
    /// Names the chain in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The pieces of room, for a device to which the memory itself is the message.
    pub fn writable_segments(&self) -> &[Segment] {
        &self.writable
    }

    /// What the driver wrote for the device.
    pub fn readable<'a>(&'a self, memory: &'a GuestMemory) -> Reader<'a> {
        Reader(Cursor::new(memory, &self.readable))
    }

    /// Room for the device's answer.
    pub fn writable<'a>(&'a self, memory: &'a GuestMemory) -> Writer<'a> {
        Writer(Cursor::new(memory, &self.writable))
    }
}

#[derive(Clone)]
struct Cursor<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    skip: u32,
    left: u64,
    done: u64,
}

impl<'a> Cursor<'a> {
    fn new(memory: &'a GuestMemory, segments: &'a [Segment]) -> Self {
        let left = segments.iter().map(|s| u64::from(s.len)).sum();
        Self { memory, segments, skip: 0, left, done: 0 }
    }

    /// Address and length of the next contiguous piece of at most `max` bytes; moves past it.
    fn piece(&mut self, max: u64) -> Option<(u64, usize)> {
        let first = self.segments.first().filter(|_| self.left > 0 && max > 0)?;
        let here = u64::from(first.len - self.skip).min(max).min(self.left);
        let gpa = first.gpa + u64::from(self.skip);
        self.skip += here as u32;
        if self.skip == first.len {
            self.segments = self.segments.get(1..).unwrap_or(&[]);
            self.skip = 0;
        }
        self.left -= here;
        self.done += here;
        Some((gpa, here as usize))
    }

    fn need(&self, asked: u64) -> Result<(), ViewError> {
        if asked <= self.left { Ok(()) } else { Err(ViewError::Short { asked, left: self.left }) }
    }

    fn skip(&mut self, len: u64) -> Result<(), ViewError> {
        self.need(len)?;
        let mut left = len;
        while let Some((_, n)) = self.piece(left) {
            left -= n as u64;
        }
        Ok(())
    }

    fn split(&mut self, at: u64) -> Result<Self, ViewError> {
        let mut tail = self.clone();
        tail.skip(at)?;
        tail.done = 0;
        self.left = at;
        Ok(tail)
    }
}

/// Reads a chain's readable part from its beginning.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl Reader<'_> {
    /// Bytes left.
    pub fn remaining(&self) -> u64 {
        self.0.left
    }

    /// Reads as much as there is, up to `to.len()`; returns how much.
    ///
    /// # Errors
    /// [`ViewError::Memory`].
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, ViewError> {
        let mut done = 0;
        while let Some((gpa, n)) = self.0.piece((to.len() - done) as u64) {
            self.0.memory.read(gpa, &mut to[done..done + n])?;
            done += n;
        }
        Ok(done)
    }

    /// Fills `to`.
    ///
    /// # Errors
    /// [`ViewError::Short`] and nothing read, or [`ViewError::Memory`].
    pub fn read_exact(&mut self, to: &mut [u8]) -> Result<(), ViewError> {
        self.0.need(to.len() as u64)?;
        self.read(to).map(drop)
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// [`ViewError::Short`].
    pub fn skip(&mut self, len: u64) -> Result<(), ViewError> {
        self.0.skip(len)
    }
}

/// Fills a chain's writable part from its beginning.
#[derive(Clone)]
pub struct Writer<'a>(Cursor<'a>);

impl Writer<'_> {
    /// Bytes left.
    pub fn remaining(&self) -> u64 {
        self.0.left
    }

    /// Bytes written or skipped through this view.
    pub fn written(&self) -> u64 {
        self.0.done
    }

    /// Writes as much as fits; returns how much.
    ///
    /// # Errors
    /// [`ViewError::Memory`].
    pub fn write(&mut self, from: &[u8]) -> Result<usize, ViewError> {
        let mut done = 0;
        while let Some((gpa, n)) = self.0.piece((from.len() - done) as u64) {
            self.0.memory.write(gpa, &from[done..done + n])?;
            done += n;
        }
        Ok(done)
    }

    /// Writes all of `from`.
    ///
    /// # Errors
    /// [`ViewError::Short`] and nothing written, or [`ViewError::Memory`].
    pub fn write_all(&mut self, from: &[u8]) -> Result<(), ViewError> {
        self.0.need(from.len() as u64)?;
        self.write(from).map(drop)
    }

    /// Cuts the view after `at` bytes: `self` keeps the front, the rest is returned.
    ///
    /// # Errors
    /// [`ViewError::Short`] when there are fewer.
    pub fn split_off(&mut self, at: u64) -> Result<Self, ViewError> {
        self.0.split(at).map(Self)
    }
}
