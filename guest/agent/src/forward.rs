//! Ports: a host's connection joined to a port of the guest's loopback.
//!
//! TCP: after the reply the connection carries raw bytes. Either side may end its direction alone; each end is passed
//! on once the bytes before it are. UDP: each datagram is a data frame.

use crate::agent::Agent;
use crate::conn::{Conn, HIGH_WATER, Role};
use crate::poll::{Interest, Ready, Token};
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{ErrorKind, Failure, Frame, Reply, Transport};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes moved at once.
const PIECE: usize = 64 << 10;

/// The guest's end of a forwarded connection.
pub struct Forward {
    fd: OwnedFd,
    interest: Interest,
    transport: Transport,
    port: u16,
    /// Whether the guest's end is connected and the host was told.
    open: bool,
    /// Whether the IPv6 loopback was tried.
    second: bool,
    /// Bytes from the host that the guest's end did not take yet.
    pending: VecDeque<u8>,
    host_ended: bool,
    host_end_passed: bool,
    guest_ended: bool,
    guest_end_passed: bool,
}

fn connect(transport: Transport, address: IpAddr, port: u16) -> Result<(OwnedFd, bool), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match rustix::net::connect(&fd, &SocketAddr::new(address, port)) {
        Ok(()) => Ok((fd, true)),
        Err(Errno::INPROGRESS) => Ok((fd, false)),
        Err(error) => Err(error),
    }
}

impl Forward {
    /// Whether bytes from the host are to be read now.
    pub fn wants_host(&self) -> bool {
        self.open && !self.host_ended && (self.transport == Transport::Udp || self.pending.is_empty())
    }

    /// Whether the host's bytes go on as they are, or wait for that until the guest's end is connected.
    pub fn raw(&self) -> bool {
        self.transport == Transport::Tcp || !self.open
    }

    fn finished(&self) -> bool {
        self.host_end_passed && self.guest_end_passed
    }

    /// Writes to the guest's end what the host sent; false when that end is broken.
    fn push(&mut self) -> bool {
        while !self.pending.is_empty() {
            match rustix::net::send(&self.fd, self.pending.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        self.pending = VecDeque::new();
        if self.host_ended && !self.host_end_passed {
            self.host_end_passed = true;
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        }
        true
    }
}

impl Agent {
    /// Serves `Forward`.
    ///
    /// # Errors
    /// `Refused` when nothing listens there.
    pub fn forward(&mut self, id: u64, port: u16, transport: Transport) -> Result<(), Failure> {
        let (fd, open, second) = match connect(transport, Ipv4Addr::LOCALHOST.into(), port) {
            Ok((fd, open)) => (fd, open, false),
            Err(_) => self.connect_second(transport, port).map(|(fd, open)| (fd, open, true))?,
        };
        let forward = Forward {
            fd,
            interest: Interest::default(),
            transport,
            port,
            open: false,
            second,
            pending: VecDeque::new(),
            host_ended: false,
            host_end_passed: false,
            guest_ended: false,
            guest_end_passed: false,
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.role = Role::Forward(Box::new(forward));
        }
        if open {
            self.forward_open(id);
        }
        self.touched.push(id);
        Ok(())
    }

    fn connect_second(&self, transport: Transport, port: u16) -> Result<(OwnedFd, bool), Failure> {
        connect(transport, Ipv6Addr::LOCALHOST.into(), port).map_err(|_| refused(port))
    }

    /// The guest's end is connected: tell the host, then pass on what it sent already.
    fn forward_open(&mut self, id: u64) {
        let Ok(done) = frame::encode(FrameKind::Reply, &Reply::Done) else { return };
        self.send(id, &done);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Role::Forward(forward) = &mut conn.role else { return };
        forward.open = true;
        if forward.transport == Transport::Tcp {
            forward.pending.extend(conn.decoder.take_rest());
            conn.dead |= !forward.push();
        } else {
            self.frames(id);
        }
    }

    /// A forwarded connection's host has bytes.
    pub fn forward_from_host(&mut self, id: u64, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Role::Forward(forward) = &mut conn.role else { return };
        if forward.transport == Transport::Udp {
            conn.dead |= bytes.is_empty();
            conn.decoder.push(bytes);
            return self.frames(id);
        }
        forward.host_ended |= bytes.is_empty();
        forward.pending.extend(bytes);
        conn.dead |= !forward.push() || forward.finished();
    }

    /// A datagram from the host.
    pub fn forward_datagram(&mut self, id: u64, frame: &Frame) {
        let Some(Role::Forward(forward)) = self.conns.get(&id).map(|conn| &conn.role) else { return };
        match frame.kind {
            // A datagram that cannot be sent now is lost, as datagrams are.
            FrameKind::Data => drop(rustix::net::send(&forward.fd, &frame.payload, SendFlags::NOSIGNAL)),
            other => {
                let text = format!("a {other:?} frame among datagrams");
                self.fail(id, &Failure::new(ErrorKind::BadRequest, text));
            }
        }
    }

    /// The guest's end is connected, has bytes, has room, or is gone.
    pub fn upstream_event(&mut self, id: u64, ready: Ready) {
        self.touched.push(id);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let full = conn.queued() >= HIGH_WATER;
        let Role::Forward(forward) = &mut conn.role else { return };
        if !forward.open {
            return self.upstream_connected(id);
        }
        if ready.write {
            conn.dead |= !forward.push();
        }
        if !ready.read || forward.guest_ended || full {
            conn.dead |= forward.finished();
            return;
        }
        self.scratch.resize(PIECE, 0);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.take_from_guest(id, &mut scratch);
        self.scratch = scratch;
    }

    fn take_from_guest(&mut self, id: u64, scratch: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Role::Forward(forward) = &mut conn.role else { return };
        let udp = forward.transport == Transport::Udp;
        match rustix::net::recv(&forward.fd, &mut *scratch, RecvFlags::empty()) {
            Ok((0, _)) if !udp => forward.guest_ended = true,
            Ok((n, _)) => {
                let bytes = scratch.get(..n).unwrap_or_default();
                if udp {
                    conn.send(&frame::encode_bytes(FrameKind::Data, bytes).unwrap_or_default());
                } else {
                    conn.send(bytes);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody took an earlier datagram; a later one may be taken.
            Err(_) if udp => {}
            Err(_) => conn.dead = true,
        }
        pass_guest_end(conn);
    }

    fn upstream_connected(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Role::Forward(forward) = &mut conn.role else { return };
        if matches!(rustix::net::sockopt::socket_error(&forward.fd), Ok(Ok(()))) {
            return self.forward_open(id);
        }
        let (transport, port, second) = (forward.transport, forward.port, forward.second);
        self.poller.set(&forward.fd, Token::Upstream(id), &mut forward.interest, Interest::default());
        let next = if second { Err(refused(port)) } else { self.connect_second(transport, port) };
        match next {
            Ok((fd, open)) => {
                if let Some(Role::Forward(forward)) = self.conns.get_mut(&id).map(|conn| &mut conn.role) {
                    (forward.fd, forward.second) = (fd, true);
                }
                if open {
                    self.forward_open(id);
                }
            }
            Err(failure) => self.fail(id, &failure),
        }
    }
}

/// Passes the guest's end of bytes on once everything before it was sent.
pub fn pass_guest_end(conn: &mut Conn) {
    let empty = conn.queued() == 0;
    if let Role::Forward(forward) = &mut conn.role {
        if forward.guest_ended && !forward.guest_end_passed && empty {
            forward.guest_end_passed = true;
            let _ = rustix::net::shutdown(&conn.fd, Shutdown::Write);
        }
        conn.dead |= forward.finished();
    }
}

/// Watches the guest's end for what can be done next.
pub fn watch_upstream(conn: &mut Conn, poller: &crate::poll::Poller, id: u64) {
    let room = conn.queued() < HIGH_WATER;
    if let Role::Forward(forward) = &mut conn.role {
        let read = forward.open && room && !forward.guest_ended;
        let want = Interest { read, write: !forward.open || !forward.pending.is_empty(), close: false };
        poller.set(&forward.fd, Token::Upstream(id), &mut forward.interest, want);
    }
}

/// Stops watching the guest's end, before it is closed: a copy forked meanwhile may hold it open a little longer.
pub fn unwatch_upstream(forward: &mut Forward, poller: &crate::poll::Poller, id: u64) {
    poller.set(&forward.fd, Token::Upstream(id), &mut forward.interest, Interest::default());
}

fn refused(port: u16) -> Failure {
    Failure::new(ErrorKind::Refused, format!("nothing listens on port {port} in the guest"))
}
