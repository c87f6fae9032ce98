//! Datagrams: flows that the guest begins, and published ports where the world does.
//!
//! A flow is one connected host socket, so the host's kernel tells its answers from everybody else's. A peer of a
//! published port appears to the guest as a port of the gateway.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use host::Interest;

use crate::address::{GATEWAY_V4, GUEST_V4, on_host};
use crate::flows::{Kind, Slots, Token};
use crate::link::Link;
use crate::policy::Reason;
use crate::stack::Core;

/// Flows at a time; the one that was silent longest gives way.
pub const MAX_UDP: usize = 512;
/// Peers of published ports at a time; likewise.
const MAX_PEERS: usize = 1024;
/// A flow without a datagram for so long is over.
const IDLE: Duration = Duration::from_secs(60);
/// First port of the gateway for peers of published ports.
const FIRST_PORT: u16 = 49152;

/// A non-blocking socket that speaks with `remote` only.
pub fn connected(remote: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(remote)?;
    Ok(socket)
}

struct Flow {
    socket: UdpSocket,
    guest: SocketAddr,
    /// As the guest calls it.
    remote: SocketAddr,
    last: Instant,
    armed: Option<Instant>,
}

/// All flows that the guest began.
pub struct Flows {
    flows: Slots<Flow>,
    index: HashMap<(SocketAddr, SocketAddr), Token>,
}

impl Flows {
    pub fn new() -> Self {
        Self { flows: Slots::new(Kind::Udp, MAX_UDP), index: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn clear(&mut self) {
        self.flows.clear();
        self.index.clear();
    }

    /// Sends a datagram of the guest on.
    ///
    /// # Errors
    /// Why there is no flow for it; it was noted.
    pub fn send(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Reason> {
        let token = match self.index.get(&(guest, remote)) {
            Some(token) => *token,
            None => self.open(core, guest, remote, now)?,
        };
        if let Some(flow) = self.flows.get_mut(token) {
            flow.last = now;
            // A full socket loses datagrams, as any hop may. An old error (port unreachable) is told first and takes
            // the place of the send: try again then.
            if flow.socket.send(payload).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                let _ = flow.socket.send(payload);
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<Token, Reason> {
        let target = SocketAddr::new(on_host(remote.ip()), remote.port());
        core.admit("udp", target, now)?;
        if self.flows.is_full()
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.last).map(|(token, _)| token)
        {
            self.end(oldest);
        }
        let opened = self.flows.insert_with(|token| {
            let socket = connected(target).ok()?;
            core.poller.add(&socket, token.0, Interest::READ).ok()?;
            Some(Flow { socket, guest, remote, last: now, armed: None })
        });
        let Some(token) = opened else {
            core.reporter.refuse_address("udp", target, Reason::NoRoom);
            return Err(Reason::NoRoom);
        };
        self.index.insert((guest, remote), token);
        if let Some(flow) = self.flows.get_mut(token) {
            core.deadlines.arm(&mut flow.armed, Some(now + IDLE), token);
        }
        Ok(token)
    }

    fn end(&mut self, token: Token) {
        if let Some(flow) = self.flows.remove(token) {
            self.index.remove(&(flow.guest, flow.remote));
        }
    }

    /// Brings what arrived to the guest, as long as it has room.
    pub fn ready(&mut self, core: &mut Core, link: &mut dyn Link, token: Token, now: Instant) {
        let Some(flow) = self.flows.get_mut(token) else { return };
        let mut scratch = std::mem::take(&mut core.scratch);
        loop {
            if !link.ready() {
                core.blocked.insert(token);
                break;
            }
            match flow.socket.recv(&mut scratch) {
                Ok(n) => {
                    flow.last = now;
                    core.send_udp(link, flow.remote, flow.guest, scratch.get(..n).unwrap_or_default());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // What was sent before did not arrive; there may be more behind it.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => break,
            }
        }
        core.scratch = scratch;
    }

    /// Ends a flow that was silent, or looks again later.
    pub fn late(&mut self, core: &mut Core, token: Token, when: Instant, now: Instant) {
        let Some(flow) = self.flows.get_mut(token).filter(|flow| flow.armed == Some(when)) else { return };
        flow.armed = None;
        if now.saturating_duration_since(flow.last) >= IDLE {
            self.end(token);
        } else {
            core.deadlines.arm(&mut flow.armed, Some(flow.last + IDLE), token);
        }
    }
}

struct Door {
    socket: UdpSocket,
    guest: u16,
}

struct Peer {
    door: Token,
    address: SocketAddr,
    last: Instant,
}

/// Published ports and their peers.
pub struct Published {
    doors: Slots<Door>,
    peers: HashMap<u16, Peer>,
    index: HashMap<(u64, SocketAddr), u16>,
    next: u16,
}

impl Published {
    /// # Errors
    /// The host's: the sockets cannot be watched.
    pub fn new(sockets: Vec<(UdpSocket, u16)>, core: &Core) -> io::Result<Self> {
        let mut doors = Slots::new(Kind::Published, sockets.len());
        for (socket, guest) in sockets {
            socket.set_nonblocking(true)?;
            let mut watched = Ok(());
            doors.insert_with(|token| {
                watched = core.poller.add(&socket, token.0, Interest::READ);
                Some(Door { socket, guest })
            });
            watched?;
        }
        Ok(Self { doors, peers: HashMap::new(), index: HashMap::new(), next: FIRST_PORT })
    }

    /// Forgets the peers; the ports stay open.
    pub fn clear(&mut self) {
        self.peers.clear();
        self.index.clear();
    }

    /// Brings datagrams of the world to the guest.
    pub fn ready(&mut self, core: &mut Core, link: &mut dyn Link, token: Token, now: Instant) {
        let mut scratch = std::mem::take(&mut core.scratch);
        loop {
            if !link.ready() {
                core.blocked.insert(token);
                break;
            }
            let Some(door) = self.doors.get_mut(token) else { break };
            let guest = SocketAddr::new(GUEST_V4.into(), door.guest);
            match door.socket.recv_from(&mut scratch) {
                Ok((n, address)) => {
                    let from = SocketAddr::new(GATEWAY_V4.into(), self.port_of(token, address, now));
                    core.send_udp(link, from, guest, scratch.get(..n).unwrap_or_default());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => break,
            }
        }
        core.scratch = scratch;
    }

    fn port_of(&mut self, door: Token, address: SocketAddr, now: Instant) -> u16 {
        if let Some(port) = self.index.get(&(door.0, address)) {
            if let Some(peer) = self.peers.get_mut(port) {
                peer.last = now;
            }
            return *port;
        }
        if self.peers.len() >= MAX_PEERS
            && let Some(oldest) = self.peers.iter().min_by_key(|(_, peer)| peer.last).map(|(port, _)| *port)
            && let Some(peer) = self.peers.remove(&oldest)
        {
            self.index.remove(&(peer.door.0, peer.address));
        }
        // There are many more ports than peers, so this ends.
        while self.peers.contains_key(&self.next) {
            self.advance();
        }
        let port = self.next;
        self.advance();
        self.peers.insert(port, Peer { door, address, last: now });
        self.index.insert((door.0, address), port);
        port
    }

    fn advance(&mut self) {
        self.next = self.next.checked_add(1).unwrap_or(FIRST_PORT);
    }

    /// Sends a datagram of the guest to the peer behind a port of the gateway; `false` when there is none.
    pub fn answer(&mut self, from: u16, port: u16, payload: &[u8], now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&port) else { return false };
        let Some(door) = self.doors.get_mut(peer.door).filter(|door| door.guest == from) else {
            return false;
        };
        peer.last = now;
        let _ = door.socket.send_to(payload, peer.address);
        true
    }
}
