//! A blocking host-side client over any stream that reads and writes. One client is one operation's connection.
//!
//! Simple calls are one method each. For streaming operations [`Client::start`] sends the request, and the caller
//! goes on with [`Client::next`], [`Client::send_data`] or the stream itself ([`Client::into_stream`]).

use crate::error::{ErrorKind, Failure, ProtocolError};
use crate::frame::{self, Frame, FrameKind};
use crate::reply::{Exit, Pong, Reply, Started};
use crate::request::{ExecSpec, Request, ServiceSpec};
use serde::Serialize;
use std::fmt;
use std::io::{self, Read, Write};

/// A call did not give its result.
#[derive(Debug)]
pub enum ClientError {
    /// The stream failed or ended early.
    Io(io::Error),
    /// The agent says no.
    Failed(Failure),
    /// The agent sent a frame that does not belong here.
    Unexpected(FrameKind),
    /// What came is not the protocol.
    Protocol(ProtocolError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Io(error) => write!(f, "connection to the guest's agent: {error}"),
            ClientError::Failed(failure) => failure.fmt(f),
            ClientError::Unexpected(kind) => write!(f, "the guest's agent sent a {kind:?} frame out of turn"),
            ClientError::Protocol(error) => write!(f, "the guest's agent: {error}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        ClientError::Io(error)
    }
}

impl From<ProtocolError> for ClientError {
    fn from(error: ProtocolError) -> Self {
        ClientError::Protocol(error)
    }
}

impl ClientError {
    /// The class of the failure; what is not the agent's word is `Other`.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ClientError::Failed(failure) => failure.kind,
            _ => ErrorKind::Other,
        }
    }
}

/// One operation's connection.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
}

impl<S: Read + Write> Client<S> {
    /// A client on a fresh connection to the agent's port.
    pub fn new(stream: S) -> Self {
        Client { stream }
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The stream's, or a request too large for a frame.
    pub fn start(&mut self, request: &Request) -> Result<(), ClientError> {
        self.stream.write_all(&frame::encode_request(request)?)?;
        self.stream.flush()?;
        Ok(())
    }

    /// The next frame; an error frame becomes [`ClientError::Failed`], an end `UnexpectedEof`.
    ///
    /// # Errors
    /// As said, and the stream's.
    pub fn next_frame(&mut self) -> Result<Frame, ClientError> {
        let Some(frame) = frame::read_frame(&mut self.stream)? else {
            return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into()));
        };
        if frame.kind == FrameKind::Error {
            return Err(ClientError::Failed(frame.decode()?));
        }
        Ok(frame)
    }

    /// The next frame, which must be a reply.
    ///
    /// # Errors
    /// As [`Client::next_frame`].
    pub fn reply(&mut self) -> Result<Reply, ClientError> {
        let frame = self.next_frame()?;
        match frame.kind {
            FrameKind::Reply => Ok(frame.decode()?),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// Sends the request and takes its one reply.
    ///
    /// # Errors
    /// As [`Client::next_frame`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.start(request)?;
        self.reply()
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// As [`Client::next_frame`].
    pub fn ping(mut self) -> Result<Pong, ClientError> {
        match self.call(&Request::Ping)? {
            Reply::Pong(pong) => Ok(pong),
            _ => Err(ClientError::Unexpected(FrameKind::Reply)),
        }
    }

    /// Starts the main service.
    ///
    /// # Errors
    /// As [`Client::next_frame`]; `Busy` when one runs.
    pub fn service(mut self, spec: ServiceSpec) -> Result<Started, ClientError> {
        self.start(&Request::Service(spec))?;
        self.started()
    }

    /// The next frame, which must say that the process runs.
    ///
    /// # Errors
    /// As [`Client::next_frame`]; the kinds that [`ErrorKind::exit_code`] maps when the program could not start.
    pub fn started(&mut self) -> Result<Started, ClientError> {
        let frame = self.next_frame()?;
        match frame.kind {
            FrameKind::Started => Ok(frame.decode()?),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// Runs a command for what it brings about in passing, to its end; its output is dropped. That it cannot be started is
    /// an end, too.
    ///
    /// # Errors
    /// As [`Client::next_frame`].
    pub fn run_through(&mut self, argv: &[&str]) -> Result<(), ClientError> {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        self.start(&Request::Exec(ExecSpec { argv, ..ExecSpec::default() }))?;
        loop {
            match self.next_frame() {
                Ok(frame) if frame.kind == FrameKind::Exit => return Ok(()),
                Ok(_) => {}
                Err(ClientError::Failed(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for a session's end.
    ///
    /// # Errors
    /// As [`Client::next_frame`].
    pub fn wait(mut self, session: u64) -> Result<Exit, ClientError> {
        self.start(&Request::Wait { session })?;
        let frame = self.next_frame()?;
        match frame.kind {
            FrameKind::Exit => Ok(frame.decode()?),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// Sends stream data.
    ///
    /// # Errors
    /// The stream's.
    pub fn send_data(&mut self, kind: FrameKind, bytes: &[u8]) -> Result<(), ClientError> {
        frame::write_data(&mut self.stream, kind, bytes)?;
        Ok(())
    }

    /// Sends a message frame (a new window size, a signal).
    ///
    /// # Errors
    /// The stream's.
    pub fn send<T: Serialize>(&mut self, kind: FrameKind, message: &T) -> Result<(), ClientError> {
        self.stream.write_all(&frame::encode(kind, message)?)?;
        Ok(())
    }

    /// Sends a frame without payload ([`FrameKind::StdinEof`], [`FrameKind::DataEnd`]).
    ///
    /// # Errors
    /// The stream's.
    pub fn send_mark(&mut self, kind: FrameKind) -> Result<(), ClientError> {
        self.stream.write_all(&frame::header(kind, 0))?;
        self.stream.flush()?;
        Ok(())
    }

    /// The stream, to go on with by other means.
    pub fn into_stream(self) -> S {
        self.stream
    }
}
