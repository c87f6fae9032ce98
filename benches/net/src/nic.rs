//! The guest's network card with a TCP behind it: the same generator of frames for every relay.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::frames::{self, Frame};
use crate::tcp::{State, Tcp};
use crate::wire::Wire;

/// Without any frame for so long, what is not acknowledged is sent again.
const QUIET: Duration = Duration::from_millis(400);
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);
const FIRST_PORT: u16 = 10_000;

/// What went over the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub sent: u64,
    pub received: u64,
}

/// See the module.
pub struct Nic {
    wire: Wire,
    gateway: Option<[u8; 6]>,
    connections: HashMap<u16, Tcp>,
    /// Connections with a segment due, or perhaps.
    busy: Vec<u16>,
    next_port: u16,
    /// The largest segment that new connections take.
    pub offer: u16,
    pub counts: Counts,
}

impl Nic {
    /// A card on this wire that knows the gateway.
    ///
    /// # Errors
    /// The relay is gone, or does not answer.
    pub fn new(stream: UnixStream, offer: u16) -> Result<Self> {
        let mut nic = Self {
            wire: Wire::new(stream)?,
            gateway: None,
            connections: HashMap::new(),
            busy: Vec::new(),
            next_port: FIRST_PORT,
            offer,
            counts: Counts::default(),
        };
        nic.queue(|out| frames::arp(out, None));
        nic.until("the gateway's address", |nic| nic.gateway.is_some())?;
        Ok(nic)
    }

    /// Begins a connection to a port of the host's loopback; its name.
    pub fn connect(&mut self, port: u16) -> u16 {
        let local = self.next_port;
        self.next_port = local.checked_add(1).unwrap_or(FIRST_PORT);
        self.connections.insert(local, Tcp::new(local, port, self.offer));
        self.busy.push(local);
        local
    }

    /// A connection, to be asked, or to be given something to do.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn tcp(&mut self, name: u16) -> Result<&mut Tcp> {
        self.busy.push(name);
        self.connections.get_mut(&name).with_context(|| format!("no connection {name}"))
    }

    /// A connection, to be looked at.
    pub fn peek(&self, name: u16) -> Option<&Tcp> {
        self.connections.get(&name)
    }

    /// Ends a connection's own direction, waits for the other, and forgets it.
    ///
    /// # Errors
    /// It does not end.
    pub fn finish(&mut self, names: &[u16]) -> Result<()> {
        for name in names {
            self.tcp(*name)?.close();
        }
        let over = |nic: &mut Self| names.iter().all(|n| nic.connections.get(n).is_none_or(Tcp::is_over));
        self.until("the end of connections", over)?;
        self.connections.retain(|name, _| !names.contains(name));
        Ok(())
    }

    /// Works until `done`.
    ///
    /// # Errors
    /// It takes too long, or the relay is gone.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let end = Instant::now() + LIMIT;
        self.send_due()?;
        while !done(self) {
            self.step().with_context(|| format!("waiting for {what}"))?;
            if Instant::now() > end {
                bail!("{what} did not come within {} s", LIMIT.as_secs());
            }
        }
        Ok(())
    }

    /// Waits for frames, takes them, sends what is due.
    fn step(&mut self) -> Result<()> {
        if !self.wire.fill()? && !self.wait()? {
            self.connections.values_mut().for_each(Tcp::go_back);
            self.busy.extend(self.connections.keys());
        }
        while let Some(at) = self.wire.take_next()? {
            self.take(at);
        }
        self.send_due()
    }

    /// Whether something came before it became too quiet.
    fn wait(&mut self) -> Result<bool> {
        let end = Instant::now() + QUIET;
        loop {
            let more = if self.wire.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: 0, tv_nsec: left.as_nanos() as _ };
            let mut fds = [PollFd::new(&self.wire, PollFlags::IN | more)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
            self.wire.flush()?;
            if self.wire.fill()? {
                return Ok(true);
            }
            if self.wire.has_room() && !self.busy.is_empty() {
                return Ok(true);
            }
        }
    }

    fn take(&mut self, at: (usize, usize)) {
        self.counts.received += 1;
        match frames::parse(self.wire.frame(at)) {
            Frame::Gateway(mac) => self.gateway = Some(mac),
            Frame::WhoHas(mac, address) => self.queue(|out| frames::arp(out, Some((mac, address)))),
            Frame::Tcp(segment) => {
                if let Some(tcp) = self.connections.get_mut(&segment.to) {
                    tcp.take(&segment);
                    if self.busy.last() != Some(&segment.to) {
                        self.busy.push(segment.to);
                    }
                }
            }
            Frame::Other => {}
        }
    }

    fn queue(&mut self, build: impl FnOnce(&mut Vec<u8>)) {
        self.counts.sent += 1;
        self.wire.queue(build);
    }

    /// Sends as the wire has room.
    fn send_due(&mut self) -> Result<()> {
        let gateway = self.gateway.unwrap_or([0xff; 6]);
        while let Some(name) = self.busy.last().copied() {
            if !self.wire.has_room() {
                self.wire.flush()?;
                if !self.wire.has_room() {
                    return Ok(());
                }
            }
            match self.connections.get_mut(&name).and_then(Tcp::due) {
                Some(out) => self.queue(|bytes| frames::tcp(bytes, &gateway, &out)),
                None => {
                    self.busy.pop();
                }
            }
        }
        Ok(self.wire.flush()?)
    }

    /// Waits until connections are open.
    ///
    /// # Errors
    /// One is refused.
    pub fn open(&mut self, names: &[u16]) -> Result<()> {
        let is = |nic: &Self, name: &u16, state| nic.connections.get(name).is_some_and(|t| t.state == state);
        self.until("connections", |nic| {
            names.iter().all(|n| is(nic, n, State::Open)) || names.iter().any(|n| is(nic, n, State::Reset))
        })?;
        match names.iter().find(|n| is(self, n, State::Reset)) {
            Some(name) => bail!("connection {name} was refused"),
            None => Ok(()),
        }
    }

    /// Times that something had to be sent again.
    pub fn losses(&self) -> u64 {
        self.connections.values().map(|tcp| tcp.losses).sum()
    }
}
