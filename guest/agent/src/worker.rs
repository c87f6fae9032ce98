//! Operations that take long or may block run in a forked copy of the agent, with plain blocking code.
//!
//! The copy owns the connection until it ends; the agent watches only for the host going away (then it kills the
//! copy) and for a copy that died (then it tells the host). One operation's fault or memory is gone with it.

use crate::agent::Agent;
use crate::conn::Role;
use crate::sys::process::{Fork, exit_now, fork};
use crate::world::World;
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{ErrorKind, Failure, Frame, Reply};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io::{self, Read, Write};

/// The host's connection in a forked copy: blocking, in frames.
pub struct Channel {
    fd: OwnedFd,
    decoder: agent_protocol::FrameDecoder,
}

impl Channel {
    /// Sends a frame; a host that is gone ends the copy.
    pub fn send(&mut self, bytes: &[u8]) {
        if self.write_all(bytes).is_err() {
            exit_now(0);
        }
    }

    /// Sends a reply.
    pub fn reply(&mut self, reply: &Reply) {
        match frame::encode(FrameKind::Reply, reply) {
            Ok(bytes) => self.send(&bytes),
            Err(error) => self.fail(&Failure::new(ErrorKind::Other, error.to_string())),
        }
    }

    /// Sends a failure.
    pub fn fail(&mut self, failure: &Failure) {
        self.send(&frame::encode_failure(failure));
    }

    /// Sends raw data in frames.
    pub fn data(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(agent_protocol::MAX_DATA) {
            self.send(&frame::header(FrameKind::Data, piece.len()));
            self.send(piece);
        }
    }

    /// The next frame from the host; `None` when it is gone or speaks nonsense.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut piece = vec![0u8; 64 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame().ok()? {
                return Some(frame);
            }
            let n = self.read(&mut piece).ok().filter(|n| *n > 0)?;
            self.decoder.push(piece.get(..n)?);
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.fd, bytes) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Agent {
    /// Serves connection `id` with `job` in a forked copy, which ends when the job returns.
    ///
    /// # Errors
    /// The kernel's refusal to make a process.
    pub fn work(&mut self, id: u64, job: impl FnOnce(&World, &mut Channel)) -> Result<(), Failure> {
        let forked = fork(None).map_err(|error| {
            Failure::new(ErrorKind::Other, format!("starting a helper process in the guest: {error}"))
        })?;
        match forked {
            Fork::Parent(pid) => {
                self.workers.insert(pid.as_raw_nonzero().get(), id);
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.role = Role::Worker(pid);
                    conn.decoder = agent_protocol::FrameDecoder::new();
                }
                self.touched.push(id);
                Ok(())
            }
            Fork::Child => {
                let Some(conn) = self.conns.remove(&id) else { exit_now(1) };
                // Duplicates of the others' descriptors would keep their connections and pipes open.
                self.conns.clear();
                self.sessions.clear();
                let _ = rustix::process::setsid();
                crate::sys::signals::unblock();
                let _ = rustix::io::ioctl_fionbio(&conn.fd, false);
                let mut channel = Channel { fd: conn.fd, decoder: conn.decoder };
                job(&self.world, &mut channel);
                exit_now(0)
            }
        }
    }
}
