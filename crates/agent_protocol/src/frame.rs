//! Frames: `type: u8, length: u32 little endian, payload`.
//!
//! Every type has its own bound for `length`, checked before anything is stored: a decoder never holds more than
//! one frame beyond what it was given, and grows only by bytes that really arrived.

use crate::error::ProtocolError;
use crate::request::Request;
use crate::{PROTOCOL_VERSION, error::Failure};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// The largest payload of a message (request, reply, failure), in bytes.
pub const MAX_CONTROL: usize = 1 << 20;
/// The largest payload of stream data, in bytes.
pub const MAX_DATA: usize = 64 << 10;
/// Bytes before the payload.
pub const HEADER: usize = 5;

/// What a frame carries. Values are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Host to guest, first frame: version byte, then a [`Request`].
    Request = 0x01,
    /// A [`crate::Reply`].
    Reply = 0x02,
    /// A [`Failure`]; the operation is over.
    Error = 0x03,
    /// [`crate::Started`]: the process runs (after a successful exec of the program).
    Started = 0x04,
    /// [`crate::Exit`]: the process ended, all its output was sent before.
    Exit = 0x05,
    /// Bytes for the process's standard input.
    Stdin = 0x10,
    /// The end of standard input. No payload.
    StdinEof = 0x11,
    /// [`crate::WinSize`]: the terminal's new size.
    Resize = 0x12,
    /// [`crate::SignalSpec`]: a signal for the process.
    Signal = 0x13,
    /// The process's standard output (or the terminal's).
    Stdout = 0x20,
    /// The process's standard error.
    Stderr = 0x21,
    /// Bytes of a tar stream, a kernel log, or one datagram.
    Data = 0x30,
    /// The end of the data. No payload.
    DataEnd = 0x31,
    /// A [`crate::LogRecord`] in its own layout.
    Log = 0x32,
}

impl FrameKind {
    /// The type with this wire value.
    pub fn from_byte(byte: u8) -> Option<FrameKind> {
        use FrameKind::*;
        const ALL: [FrameKind; 14] = [
            Request, Reply, Error, Started, Exit, Stdin, StdinEof, Resize, Signal, Stdout, Stderr, Data,
            DataEnd, Log,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The largest payload a frame of this type may announce, in bytes.
    pub fn max_payload(self) -> usize {
        use FrameKind::*;
        match self {
            Request | Reply | Error => MAX_CONTROL,
            Stdin | Stdout | Stderr | Data => MAX_DATA,
            Log => MAX_DATA + crate::log::HEADER,
            Started | Exit | Resize | Signal => 64,
            StdinEof | DataEnd => 0,
        }
    }
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameKind,
    /// The payload, at most [`FrameKind::max_payload`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Decodes the payload as the message `T`; trailing bytes (fields of a later version) are ignored.
    ///
    /// # Errors
    /// [`ProtocolError::BadPayload`] when the bytes are not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ProtocolError> {
        postcard::from_bytes(&self.payload).map_err(|_| ProtocolError::BadPayload(self.kind as u8))
    }

    /// Decodes a request frame's payload.
    ///
    /// # Errors
    /// [`ProtocolError::Version`] for another protocol version, [`ProtocolError::BadPayload`] otherwise.
    pub fn decode_request(&self) -> Result<Request, ProtocolError> {
        let bad = ProtocolError::BadPayload(self.kind as u8);
        if self.kind != FrameKind::Request {
            return Err(bad);
        }
        let (version, message) = self.payload.split_first().ok_or(bad)?;
        if *version != PROTOCOL_VERSION {
            return Err(ProtocolError::Version(*version));
        }
        postcard::from_bytes(message).map_err(|_| bad)
    }
}

/// The header of a frame of `kind` with `length` payload bytes.
pub fn header(kind: FrameKind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// The bytes of a message frame.
///
/// # Errors
/// [`ProtocolError::MessageTooLarge`] when `message` takes more than the type may carry.
pub fn encode<T: Serialize>(kind: FrameKind, message: &T) -> Result<Vec<u8>, ProtocolError> {
    let payload = postcard::to_stdvec(message).map_err(|_| ProtocolError::BadPayload(kind as u8))?;
    encode_bytes(kind, &payload)
}

/// The bytes of a frame with a raw payload.
///
/// # Errors
/// [`ProtocolError::MessageTooLarge`] when `payload` is longer than the type may carry.
pub fn encode_bytes(kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    if payload.len() > kind.max_payload() {
        return Err(ProtocolError::MessageTooLarge(payload.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&header(kind, payload.len()));
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// The bytes of a request frame.
///
/// # Errors
/// [`ProtocolError::MessageTooLarge`] when the request (its environment, for one) exceeds [`MAX_CONTROL`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, ProtocolError> {
    let mut payload = vec![PROTOCOL_VERSION];
    let message =
        postcard::to_stdvec(request).map_err(|_| ProtocolError::BadPayload(FrameKind::Request as u8))?;
    payload.extend_from_slice(&message);
    encode_bytes(FrameKind::Request, &payload)
}

/// The bytes of an error frame; a text that does not fit is cut.
pub fn encode_failure(failure: &Failure) -> Vec<u8> {
    encode(FrameKind::Error, failure).unwrap_or_else(|_| {
        let text: String = failure.text.chars().take(4096).collect();
        encode(FrameKind::Error, &Failure { kind: failure.kind, text }).unwrap_or_default()
    })
}

/// Writes stream data as one or more frames of at most [`MAX_DATA`] bytes.
///
/// # Errors
/// Whatever the writer reports.
pub fn write_data(writer: &mut impl Write, kind: FrameKind, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let (now, later) = bytes.split_at(bytes.len().min(MAX_DATA));
        writer.write_all(&header(kind, now.len()))?;
        writer.write_all(now)?;
        bytes = later;
    }
    Ok(())
}

/// Reads one frame from a blocking stream; `None` at a clean end between frames.
///
/// # Errors
/// `UnexpectedEof` inside a frame, `InvalidData` for a [`ProtocolError`], else the reader's.
pub fn read_frame(reader: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0u8; HEADER];
    let first = loop {
        match reader.read(&mut head) {
            Ok(0) => return Ok(None),
            Ok(n) => break n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    reader.read_exact(head.get_mut(first..).unwrap_or_default())?;
    let (kind, length) = parse_header(head)?;
    // Grows with what arrives: a length is a promise, not a reason to allocate.
    let mut payload = Vec::new();
    reader.take(length as u64).read_to_end(&mut payload)?;
    if payload.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { kind, payload }))
}

fn parse_header(head: [u8; HEADER]) -> Result<(FrameKind, usize), ProtocolError> {
    let [kind, a, b, c, d] = head;
    let length = u32::from_le_bytes([a, b, c, d]);
    let known = FrameKind::from_byte(kind).ok_or(ProtocolError::UnknownKind(kind))?;
    let size = length as usize;
    if size > known.max_payload() {
        return Err(ProtocolError::TooLong { kind, length });
    }
    Ok((known, size))
}

/// Takes bytes as they come and gives back whole frames.
///
/// Between calls of [`FrameDecoder::next_frame`] it holds what was pushed and not yet taken, so a caller that takes
/// frames until `None` after each push holds at most one incomplete frame.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl FrameDecoder {
    /// An empty decoder; allocates nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 && (self.taken == self.buffer.len() || self.taken >= MAX_DATA) {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held and not yet taken.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.taken
    }

    /// The next whole frame, `None` when more bytes are needed.
    ///
    /// # Errors
    /// A [`ProtocolError`]; the stream cannot be read further after it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let held = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((head, rest)) = held.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (kind, length) = parse_header(*head)?;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.taken += HEADER + length;
        Ok(Some(Frame { kind, payload }))
    }

    /// Takes everything held, for a connection that goes on with raw bytes; frees the buffer.
    pub fn take_rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        rest.drain(..self.taken);
        self.taken = 0;
        rest
    }
}
