//! The asking side.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use super::{Answer, LINE_MAX, Request, passing};
use crate::error::{Error, io_error};
use crate::record::Instance;

/// Talks to the VMM of one instance.
pub struct Client<'a> {
    instance: &'a Instance,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn new(instance: &'a Instance) -> Result<Self, Error> {
        instance.require_running()?;
        Ok(Self { instance })
    }

    /// Sends a request and waits for its answer, as long as the work takes.
    ///
    /// # Errors
    /// [`Error::Refused`] with the VMM's words; the connection's.
    pub fn call(&self, request: &Request) -> Result<serde_json::Value, Error> {
        self.exchange(request).map(|(report, _)| report)
    }

    /// A stream to a vsock port of the guest.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn connect(&self, port: u32) -> Result<UnixStream, Error> {
        self.connect_told(port).map(|(_, stream)| stream)
    }

    /// [`Client::connect`], with what the VMM says of its machine.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn connect_told(&self, port: u32) -> Result<(serde_json::Value, UnixStream), Error> {
        let (told, stream) = self.exchange(&Request::Connect { port })?;
        let missing = || Error::Refused("the VMM sent no stream; is it of another version?".into());
        Ok((told, stream.ok_or_else(missing)?))
    }

    fn exchange(&self, request: &Request) -> Result<(serde_json::Value, Option<UnixStream>), Error> {
        let path = self.instance.socket();
        let failed = || io_error("talk to the machine's process at", &path);
        let mut stream = UnixStream::connect(&path).map_err(failed())?;
        let mut line = serde_json::to_vec(request).map_err(io::Error::other).map_err(failed())?;
        line.push(b'\n');
        stream.write_all(&line).map_err(failed())?;
        let mut fd = None;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(b"\n") && (text.len() as u64) < LINE_MAX {
            let (n, passed) = passing::receive(&stream, &mut buffer).map_err(failed())?;
            fd = passed.or(fd);
            text.extend_from_slice(buffer.get(..n).unwrap_or_default());
            if n == 0 {
                break;
            }
        }
        if text.is_empty() {
            return Err(Error::Refused(format!("the machine `{}` ended", self.instance.name())));
        }
        match serde_json::from_slice(&text).map_err(io::Error::other).map_err(failed())? {
            Answer::Done { report } => Ok((report, fd.map(UnixStream::from))),
            Answer::Failed { text } => Err(Error::Refused(text)),
        }
    }
}
