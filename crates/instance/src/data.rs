//! What an agent sends in data frames, as a reader.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use agent_protocol::{Client, ClientError, FrameKind, Request};

use crate::error::Error;

/// The bytes of one operation's data frames, to their end.
pub struct DataStream {
    client: Client<UnixStream>,
    frame: Vec<u8>,
    at: usize,
    ended: bool,
}

impl DataStream {
    /// What the machine behind `stream` changed on its root: a tar of the overlay's upper directory.
    ///
    /// # Errors
    /// The agent's.
    pub fn upper(stream: UnixStream) -> Result<Self, Error> {
        let mut client = Client::new(stream);
        client.start(&Request::ExportUpper)?;
        Ok(Self { client, frame: Vec::new(), at: 0, ended: false })
    }
}

impl Read for DataStream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.frame.len() && !self.ended {
            let frame = self.client.next_frame().map_err(io::Error::other)?;
            match frame.kind {
                FrameKind::Data => (self.frame, self.at) = (frame.payload, 0),
                FrameKind::DataEnd => self.ended = true,
                other => return Err(io::Error::other(ClientError::Unexpected(other))),
            }
        }
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let n = rest.len().min(to.len());
        to[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}
