//! Frames on a Unix stream socket, each behind its length (four bytes, big end first): what QEMU's `-netdev stream`
//! and passt speak.
//!
//! Reads and writes are batched: one read takes whatever is there, one write gives whatever was queued. What is queued
//! is bounded by its users, who ask [`Wire::has_room`] first.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes that one read takes at most.
const INPUT: usize = 1 << 20;
/// Queued bytes from which on there is no room.
const OUTPUT: usize = 1 << 20;
/// Bytes from which on a frame is not copied to be written with others.
const DIRECT: usize = 16 << 10;
/// Longest frame that QEMU or passt sends, with some to spare.
const MAX_FRAME: usize = 1 << 17;

/// One end.
pub struct Wire {
    stream: UnixStream,
    input: Vec<u8>,
    /// What of `input` was read and not taken.
    begin: usize,
    end: usize,
    /// The last read got less than it had room for.
    short: bool,
    output: Vec<u8>,
    /// How much of `output` is written.
    written: usize,
}

impl Wire {
    /// Takes a stream over.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: vec![0; INPUT],
            begin: 0,
            end: 0,
            short: false,
            output: Vec::new(),
            written: 0,
        })
    }

    /// Reads once; `false`: there was nothing.
    ///
    /// # Errors
    /// The other end is gone, or sent a length that no frame has.
    pub fn fill(&mut self) -> io::Result<bool> {
        self.input.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        match self.stream.read(&mut self.input[self.end..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.end += n;
                self.short = self.end < self.input.len();
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether the last [`Wire::fill`] took all that there was.
    pub fn was_short(&self) -> bool {
        self.short
    }

    /// The next whole frame: where it is in [`Wire::frame`]'s terms. It stays there until the next [`Wire::fill`].
    ///
    /// # Errors
    /// A length that no frame has.
    pub fn take_next(&mut self) -> io::Result<Option<(usize, usize)>> {
        let Some(head) = self.input[self.begin..self.end].first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*head) as usize;
        if len > MAX_FRAME {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {len} bytes")));
        }
        let at = self.begin + 4;
        if at + len > self.end {
            return Ok(None);
        }
        self.begin = at + len;
        Ok(Some((at, at + len)))
    }

    /// The bytes of a frame.
    pub fn frame(&self, (from, to): (usize, usize)) -> &[u8] {
        &self.input[from..to]
    }

    /// Whether more should be queued now.
    pub fn has_room(&self) -> bool {
        self.output.len() < OUTPUT
    }

    /// Whether something waits for [`Wire::flush`].
    pub fn is_waiting(&self) -> bool {
        self.written < self.output.len()
    }

    /// Queues one frame, which `build` appends.
    pub fn queue(&mut self, build: impl FnOnce(&mut Vec<u8>)) {
        let at = self.output.len();
        self.output.extend_from_slice(&[0; 4]);
        build(&mut self.output);
        let len = (self.output.len() - at - 4) as u32;
        self.output[at..at + 4].copy_from_slice(&len.to_be_bytes());
    }

    /// Gives one frame of two parts: a long one is written at once, from where it is.
    pub fn give(&mut self, head: &[u8], body: &[u8]) {
        let len = ((head.len() + body.len()) as u32).to_be_bytes();
        let parts = [&len, head, body];
        let mut written = 0;
        if self.output.is_empty() && body.len() >= DIRECT {
            // What keeps it from being written, the next flush meets again.
            written = self.stream.write_vectored(&parts.map(IoSlice::new)).unwrap_or(0);
        }
        for part in parts {
            let done = written.min(part.len());
            self.output.extend_from_slice(&part[done..]);
            written -= done;
        }
    }

    /// Writes what the other end takes now.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.is_waiting() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
