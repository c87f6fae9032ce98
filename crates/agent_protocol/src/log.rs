//! Records of a service's output. They are many and small, so they have their own fixed layout:
//! `time: u64 LE (ns since the epoch), stream: u8 (1 or 2), bytes`.

use crate::error::ProtocolError;
use crate::frame::{FrameKind, MAX_DATA, encode_bytes};

/// Bytes of a record before its text.
pub const HEADER: usize = 9;

/// Which of the service's streams a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LogStream {
    /// Standard output, or the terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// One line of output, or a piece of one: a line is whole when its last byte is `\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// When the agent read it: nanoseconds since the epoch by the guest's clock.
    pub time_ns: u64,
    /// The stream it came from.
    pub stream: LogStream,
    /// The bytes, with the line end.
    pub bytes: Vec<u8>,
}

impl LogRecord {
    /// The bytes of a log frame; text beyond [`MAX_DATA`] is cut (the agent keeps no such record).
    pub fn encode(time_ns: u64, stream: LogStream, bytes: &[u8]) -> Vec<u8> {
        let bytes = bytes.get(..bytes.len().min(MAX_DATA)).unwrap_or_default();
        let mut payload = Vec::with_capacity(HEADER + bytes.len());
        payload.extend_from_slice(&time_ns.to_le_bytes());
        payload.push(stream as u8);
        payload.extend_from_slice(bytes);
        encode_bytes(FrameKind::Log, &payload).unwrap_or_default()
    }

    /// Reads a log frame's payload.
    ///
    /// # Errors
    /// [`ProtocolError::BadPayload`] when it is too short or names no stream.
    pub fn decode(payload: &[u8]) -> Result<LogRecord, ProtocolError> {
        let bad = ProtocolError::BadPayload(FrameKind::Log as u8);
        let (head, bytes) = payload.split_first_chunk::<HEADER>().ok_or(bad)?;
        let (time, stream) = head.split_last_chunk::<1>().ok_or(bad)?;
        let time: [u8; 8] = time.try_into().map_err(|_| bad)?;
        let stream = match stream {
            [1] => LogStream::Stdout,
            [2] => LogStream::Stderr,
            _ => return Err(bad),
        };
        Ok(LogRecord { time_ns: u64::from_le_bytes(time), stream, bytes: bytes.to_vec() })
    }
}
