//! A host's connection: bytes in through the frame decoder, bytes out through a bounded queue.

use crate::poll::{Interest, Poller, Token};
use agent_protocol::FrameDecoder;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;

/// Above so many queued bytes nothing more is produced for a connection.
pub const HIGH_WATER: usize = 256 << 10;

/// What a connection does after its request.
pub enum Role {
    /// The request has not come yet.
    Fresh,
    /// Wants a process while the machine is frozen, and gets it when the machine goes on.
    Held(Box<agent_protocol::ExecSpec>),
    /// Feeds a session and shows its output.
    Attached(u64),
    /// Waits for a session's end.
    Waiting(u64),
    /// Reads the service's log from record `next` on: to the end (and `until` is none) or to a record.
    Logs {
        /// The next record to send.
        next: u64,
        /// Where a reader that does not follow stops.
        until: Option<u64>,
    },
    /// Waits for a line in the service's log.
    ReadyLog(Box<crate::ready::LogWatch>),
    /// Joined to a port of the guest.
    Forward(Box<crate::forward::Forward>),
    /// A forked copy serves it; we only watch for the host going away.
    Worker(rustix::process::Pid),
    /// Answered; nothing more is expected from the host.
    Answered,
}

/// One connection.
pub struct Conn {
    /// The stream.
    pub fd: OwnedFd,
    /// Bytes that came and are not yet whole frames.
    pub decoder: FrameDecoder,
    /// What it does.
    pub role: Role,
    /// Whether reading stands still until the session's input has room.
    pub paused: bool,
    /// Whether it is closed once the queue is empty.
    pub finish: bool,
    /// Whether the stream failed or the host went away.
    pub dead: bool,
    /// Whether it was there when the machine was frozen: its loss says nothing about the host's wishes.
    pub before_freeze: bool,
    out: VecDeque<u8>,
    interest: Interest,
}

impl Conn {
    /// A connection just accepted.
    pub fn new(fd: OwnedFd) -> Conn {
        Conn {
            fd,
            decoder: FrameDecoder::new(),
            role: Role::Fresh,
            paused: false,
            finish: false,
            dead: false,
            before_freeze: false,
            out: VecDeque::new(),
            interest: Interest::default(),
        }
    }

    /// Whether the host's bytes are not frames for the loop (any more).
    pub fn raw(&self) -> bool {
        match &self.role {
            Role::Forward(forward) => forward.raw(),
            Role::Worker(_) => true,
            _ => false,
        }
    }

    /// Bytes queued for the host.
    pub fn queued(&self) -> usize {
        self.out.len()
    }

    /// Sends bytes, or queues what the stream does not take now.
    pub fn send(&mut self, mut bytes: &[u8]) {
        while self.out.is_empty() && !bytes.is_empty() && !self.dead {
            match rustix::io::write(&self.fd, bytes) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.dead = true,
            }
        }
        if !self.dead {
            self.out.extend(bytes);
        }
    }

    /// Writes queued bytes as far as the stream takes them.
    pub fn flush(&mut self) {
        while !self.out.is_empty() && !self.dead {
            match rustix::io::write(&self.fd, self.out.as_slices().0) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.dead = true,
            }
        }
        // A burst's memory is not kept for an idle connection.
        self.out = VecDeque::new();
    }

    /// Watches for what the connection needs next.
    pub fn watch(&mut self, poller: &Poller, id: u64) {
        let close = matches!(self.role, Role::Worker(_) | Role::Held(_));
        let want =
            Interest { read: !self.paused && !self.finish && !close, write: !self.out.is_empty(), close };
        poller.set(&self.fd, Token::Conn(id), &mut self.interest, want);
    }

    /// Stops watching, before the descriptor is closed or handed over.
    pub fn unwatch(&mut self, poller: &Poller, id: u64) {
        poller.set(&self.fd, Token::Conn(id), &mut self.interest, Interest::default());
    }
}
