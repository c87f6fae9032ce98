//! What can go wrong: on the wire ([`ProtocolError`]) and in an operation ([`Failure`]).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why an operation failed, so that a host can choose the exit code and the advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The command, path or session does not exist.
    NotFound,
    /// The command exists and cannot be executed.
    NotExecutable,
    /// The user or group is in neither /etc/passwd nor /etc/group.
    NoSuchUser,
    /// The working directory does not exist or cannot be entered.
    NoSuchDirectory,
    /// The session does not exist (never started, or its end was already collected).
    NoSuchSession,
    /// The machine is frozen, shutting down, or already does what was asked.
    Busy,
    /// The time given was not enough.
    TimedOut,
    /// Nothing listens there.
    Refused,
    /// This agent does not know the request or its version.
    Unsupported,
    /// The request is malformed or contradicts itself.
    BadRequest,
    /// Someone else took over what this connection was attached to.
    Replaced,
    /// The main service ended while something waited for it to become ready.
    ServiceExited,
    /// Any other failure of the guest's system.
    Other,
}

impl ErrorKind {
    /// The exit code of a command line whose command failed to start this way (126, 127 as in the shell;
    /// 125 when the machine rather than the command failed).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::NotFound => 127,
            ErrorKind::NotExecutable => 126,
            ErrorKind::NoSuchDirectory => 126,
            _ => 125,
        }
    }
}

/// An operation's failure as the agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class of the failure.
    pub kind: ErrorKind,
    /// What was attempted, on what, and why it failed; one line, for people.
    pub text: String,
}

impl Failure {
    /// A failure of `kind` told as `text`.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Failure { kind, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The stream carries something that is not this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// The first byte of a frame names no type.
    UnknownKind(u8),
    /// A frame announces more bytes than its type may carry.
    TooLong {
        /// The frame's type.
        kind: u8,
        /// The announced length in bytes.
        length: u32,
    },
    /// A payload does not decode as the message its type promises.
    BadPayload(u8),
    /// A message is larger than a frame may be; nothing was sent.
    MessageTooLarge(usize),
    /// The request is of another protocol version.
    Version(u8),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::UnknownKind(kind) => write!(f, "frame of unknown type {kind:#04x}"),
            ProtocolError::TooLong { kind, length } => {
                write!(f, "frame of type {kind:#04x} announces {length} bytes, more than it may carry")
            }
            ProtocolError::BadPayload(kind) => {
                write!(f, "payload of a frame of type {kind:#04x} does not decode")
            }
            ProtocolError::MessageTooLarge(size) => {
                write!(f, "a message of {size} bytes does not fit in a frame")
            }
            ProtocolError::Version(version) => {
                write!(
                    f,
                    "protocol version {version} is not spoken here (this is {})",
                    crate::PROTOCOL_VERSION
                )
            }
        }
    }
}

impl std::error::Error for ProtocolError {}

impl From<ProtocolError> for std::io::Error {
    fn from(error: ProtocolError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}
