//! One TCP connection of the guest: smoltcp on the guest's side, a host socket on the other, bytes moved between.
//!
//! ```text
//!   SYN ──> policy, connect ──> Opening ──connected──> SYN into smoltcp ──> Open ──both ends closed──> over
//!                 │                 └──refused──> reset to the guest
//!                 └──refused──> reset to the guest
//! ```
//! The guest's SYN is held until the host is connected, so the guest sees exactly the outcome. Each connection has a
//! smoltcp interface of its own whose only address is the remote's: handling a packet never looks at other connections.
//! Bytes wait in smoltcp's two buffers and nowhere else; a side that does not read stops the other by its window.
//! Segments of one round are taken in first, and served once at its end ([`Connections::settle_round`]): one write to
//! the host and one acknowledgement for all of them (docs/adr/0150). Where the owner looks for the answer before it
//! sleeps, the acknowledgement of a short segment is held for that long, to go with the answer (docs/adr/0176).

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use host::{Interest, Ready};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, TcpPacket};

use crate::address::on_host;
use crate::flows::{Kind, Slots, Token};
use crate::frame::Packet;
use crate::link::{Link, Wire};
use crate::peers::Host;
use crate::policy::Reason;
use crate::stack::{Core, Moved};

/// Connections at a time; more are reset.
pub const MAX_TCP: usize = 1536;
/// How long the host may take to connect.
const CONNECT: Duration = Duration::from_secs(60);
/// The least time before a connection is looked at again without an event.
const SOON: Duration = Duration::from_millis(1);
/// Buffer of each direction, by how many connections there are: (up to so many, bytes). Below 200 MiB in all, and memory
/// is only taken as it is used. What fits is also what is on its way to the guest at most: with few connections so much
/// that guest, host and we each work without waiting for the others (docs/adr/0176).
const BUFFERS: [(usize, usize); 4] = [(8, 2 << 20), (32, 512 << 10), (160, 128 << 10), (MAX_TCP, 32 << 10)];

/// Connections at a time from which on their buffers are given back to the host when the last one has ended: less is not
/// worth the look at the heap.
const MANY: usize = 64;

/// Bytes of the guest that are passed on before its round ends.
const PIECE: usize = 256 << 10;
/// Bytes of the guest from which on an acknowledgement is not held: less than a full segment of any MTU, so that a guest
/// that sends much is never kept waiting (RFC 9293, 3.8.6.3).
const HELD: usize = 1400;

struct Flow {
    guest: SocketAddr,
    remote: SocketAddr,
    host: Host,
    stage: Stage,
    sides: Sides,
    armed: Option<Instant>,
    /// Took segments in since it was served.
    unserved: bool,
    /// Bytes taken in since the guest was last sent something.
    taken: usize,
}

/// How far the two ends are.
#[derive(Default)]
struct Sides {
    /// The host's socket may have room or bytes: set by events, cleared by "would block".
    writable: bool,
    readable: bool,
    /// Reading goes on until "would block": [`Ready::drain`].
    drain: bool,
    /// The host will send no more.
    host_ended: bool,
    /// The guest said that it will send no more.
    guest_fin: bool,
    /// That was passed on, after all its bytes.
    shut: bool,
}

enum Stage {
    /// Waits for the host; holds the guest's SYN packet.
    Opening(Vec<u8>),
    Open(Box<Open>),
}

struct Open {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The handshake with the guest is over.
    established: bool,
}

/// Whether a flow goes on.
#[derive(PartialEq, Eq)]
enum After {
    GoesOn,
    Over,
}

/// A connection's ends: the guest's, the remote.
type Ends = (SocketAddr, SocketAddr);

/// All connections.
pub struct Connections {
    flows: Slots<Flow>,
    index: HashMap<Ends, Token>,
    /// The flow of the last segment: mostly the next one's, too, which then costs no hash.
    last: Option<(Ends, Token)>,
    /// Flows that took segments in this round; each once, so no longer than the table.
    unserved: Vec<Token>,
    /// There were [`MANY`] at a time since there was none.
    many: bool,
}

impl Connections {
    pub fn new() -> Self {
        Self {
            flows: Slots::new(Kind::Tcp, MAX_TCP),
            index: HashMap::new(),
            last: None,
            unserved: Vec::new(),
            many: false,
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn clear(&mut self) {
        self.flows.clear();
        self.index.clear();
        self.last = None;
        self.unserved.clear();
    }

    /// Takes a segment of the guest; what comes of it may wait for [`Connections::settle_round`]. `target` is where a
    /// new connection really goes.
    pub fn segment(
        &mut self,
        core: &mut Core,
        link: &mut dyn Link,
        packet: &Packet<'_>,
        target: impl FnOnce(SocketAddr) -> Option<SocketAddr>,
        now: Instant,
    ) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
        let guest = SocketAddr::new(packet.source, segment.src_port());
        let remote = SocketAddr::new(packet.destination, segment.dst_port());
        if guest.port() == 0 || remote.port() == 0 {
            return;
        }
        match self.find((guest, remote)) {
            Some(token) => {
                let Some(flow) = self.flows.get_mut(token) else { return };
                let after = match &flow.stage {
                    Stage::Opening(_) if segment.rst() => After::Over,
                    // The SYN again, or nonsense.
                    Stage::Opening(_) => After::GoesOn,
                    Stage::Open(_) => {
                        let plain = !(segment.syn() || segment.fin() || segment.rst());
                        if flow.take(core, link, packet.ip, now) && plain {
                            if !std::mem::replace(&mut flow.unserved, true) {
                                self.unserved.push(token);
                            }
                            return;
                        }
                        flow.serve(core, link, token, now)
                    }
                };
                self.settle(core, token, after);
            }
            None if segment.syn() && !segment.ack() && !segment.rst() => {
                if self.open(core, guest, remote, target, packet, now).is_err() {
                    refuse(core, link, packet);
                }
            }
            None => refuse(core, link, packet),
        }
    }

    fn find(&mut self, ends: Ends) -> Option<Token> {
        match self.last {
            Some((last, token)) if last == ends => Some(token),
            _ => {
                let token = *self.index.get(&ends)?;
                self.last = Some((ends, token));
                Some(token)
            }
        }
    }

    fn open(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        remote: SocketAddr,
        target: impl FnOnce(SocketAddr) -> Option<SocketAddr>,
        packet: &Packet<'_>,
        now: Instant,
    ) -> Result<(), Reason> {
        let peer = core.peers.socket(remote.ip());
        let target = match (&peer, target(remote)) {
            // Named by the host's user: no list says more.
            (Some(_), _) => remote,
            (None, Some(target)) => target,
            (None, None) => {
                let target = SocketAddr::new(on_host(remote.ip()), remote.port());
                core.admit("tcp", target, now)?;
                target
            }
        };
        let opened = self.flows.insert_with(|token| {
            let host = match &peer {
                Some(socket) => Host::peer(socket.as_ref()?, remote.port()).ok()?,
                None => Host::Net(connect(target).ok()?),
            };
            core.poller.add(&host, token.0, Interest::BOTH).ok()?;
            Some(Flow {
                guest,
                remote,
                host,
                stage: Stage::Opening(packet.ip.to_vec()),
                sides: Sides::default(),
                armed: None,
                unserved: false,
                taken: 0,
            })
        });
        let Some(token) = opened else {
            core.reporter.refuse_address("tcp", target, Reason::NoRoom);
            return Err(Reason::NoRoom);
        };
        self.index.insert((guest, remote), token);
        self.many |= self.flows.len() >= MANY;
        if let Some(flow) = self.flows.get_mut(token) {
            core.deadlines.arm(&mut flow.armed, Some(now + CONNECT), token);
        }
        Ok(())
    }

    fn settle(&mut self, core: &mut Core, token: Token, after: After) {
        if after == After::Over
            && let Some(flow) = self.flows.remove(token)
        {
            self.index.remove(&(flow.guest, flow.remote));
            self.last = None;
            core.blocked.remove(&token);
            core.held.remove(&token);
            if self.flows.len() == 0 && std::mem::take(&mut self.many) {
                host::give_back_heap();
            }
        }
    }

    /// Serves the flows that took segments in this round.
    pub fn settle_round(&mut self, core: &mut Core, link: &mut dyn Link, now: Instant) {
        let mut round = std::mem::take(&mut self.unserved);
        for token in round.drain(..) {
            if let Some(flow) = self.flows.get_mut(token).filter(|flow| flow.unserved) {
                let after = flow.serve(core, link, token, now);
                self.settle(core, token, after);
            }
        }
        self.unserved = round;
    }

    /// The host's socket changed.
    pub fn ready(
        &mut self,
        core: &mut Core,
        link: &mut dyn Link,
        token: Token,
        ready: Option<&Ready>,
        now: Instant,
    ) {
        let count = self.flows.len();
        let Some(flow) = self.flows.get_mut(token) else { return };
        if let Some(ready) = ready {
            flow.sides.writable |= ready.writable || ready.closed;
            flow.sides.readable |= ready.readable;
            flow.sides.drain |= ready.drain;
        }
        let after = match &flow.stage {
            Stage::Opening(_) => flow.connected(core, link, token, count, now),
            Stage::Open(_) => flow.serve(core, link, token, now),
        };
        self.settle(core, token, after);
    }

    /// A timer of the connection ran out.
    pub fn late(&mut self, core: &mut Core, link: &mut dyn Link, token: Token, when: Instant, now: Instant) {
        let Some(flow) = self.flows.get_mut(token).filter(|flow| flow.armed == Some(when)) else { return };
        flow.armed = None;
        let after = match &flow.stage {
            Stage::Opening(syn) => {
                refuse_bytes(core, link, syn);
                After::Over
            }
            Stage::Open(_) => flow.serve(core, link, token, now),
        };
        self.settle(core, token, after);
    }
}

/// Answers a segment with a reset.
fn refuse(core: &mut Core, link: &mut dyn Link, packet: &Packet<'_>) {
    let sums = core.checksums();
    let built = crate::frame::reset(&mut core.buffer, packet, &sums);
    core.send_built(link, built);
}

fn refuse_bytes(core: &mut Core, link: &mut dyn Link, ip: &[u8]) {
    if let Some(packet) = crate::frame::packet(ip) {
        refuse(core, link, &packet);
    }
}

/// A socket on its way to `target`.
fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &target) {
        // Refused at once is found by the first look, as refused later is.
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    Ok(socket.into())
}

impl Open {
    fn new(
        remote: SocketAddr,
        wire: &mut Wire<'_>,
        count: usize,
        now: smoltcp::time::Instant,
        seed: u64,
    ) -> Option<Self> {
        let mut config = smoltcp::iface::Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, wire, now);
        // The whole world is this interface's neighbour: there is no route to look up.
        interface.update_ip_addrs(|all| {
            // The first always fits.
            let _ = all.push(IpCidr::new(remote.ip().into(), 0));
        });
        let size = BUFFERS.iter().find(|(upto, _)| count <= *upto).map_or(16 << 10, |(_, size)| *size);
        let mut socket = Socket::new(SocketBuffer::new(vec![0; size]), SocketBuffer::new(vec![0; size]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.listen((remote.ip(), remote.port())).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self { interface, sockets, handle, established: false })
    }
}

impl Flow {
    /// The host's socket says how connecting went.
    fn connected(
        &mut self,
        core: &mut Core,
        link: &mut dyn Link,
        token: Token,
        count: usize,
        now: Instant,
    ) -> After {
        let Stage::Opening(syn) = &mut self.stage else { return After::GoesOn };
        let Some(outcome) = self.host.opened(self.sides.writable) else { return After::GoesOn };
        let syn = std::mem::take(syn);
        let (time, seed, offload) = (core.time(now), core.seed(), core.offload);
        let mut wire = Wire::new(link, None, &mut core.buffer, offload);
        let open = outcome.ok().and_then(|()| Open::new(self.remote, &mut wire, count, time, seed));
        let Some(open) = open else {
            refuse_bytes(core, link, &syn);
            return After::Over;
        };
        self.stage = Stage::Open(Box::new(open));
        self.take(core, link, &syn, now);
        self.serve(core, link, token, now)
    }

    /// Takes a packet in; whether what comes of it may wait for more of the guest's.
    fn take(&mut self, core: &mut Core, link: &mut dyn Link, packet: &[u8], now: Instant) -> bool {
        let Stage::Open(open) = &mut self.stage else { return false };
        let time = core.time(now);
        let mut wire = Wire::new(link, Some(packet), &mut core.buffer, core.offload);
        let before = open.sockets.get::<Socket<'_>>(open.handle).recv_queue();
        open.interface.poll_ingress_single(time, &mut wire, &mut open.sockets);
        let socket = open.sockets.get::<Socket<'_>>(open.handle);
        self.taken += socket.recv_queue().saturating_sub(before);
        // With half of the window used up the guest would soon wait for us; of much, the host can begin with some.
        open.established && socket.recv_queue() < PIECE.min(socket.recv_capacity() / 2)
    }

    /// Moves bytes both ways until neither side goes on, says what became of the flow.
    fn serve(&mut self, core: &mut Core, link: &mut dyn Link, token: Token, now: Instant) -> After {
        self.unserved = false;
        let Stage::Open(open) = &mut self.stage else { return After::GoesOn };
        let time = core.time(now);
        let mut wire = Wire::new(link, None, &mut core.buffer, core.offload);
        let socket = open.sockets.get_mut::<Socket<'_>>(open.handle);
        open.established |= !matches!(socket.state(), State::Listen | State::SynReceived);
        self.sides.guest_fin |=
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        let (host, sides) = (&mut self.host, &mut self.sides);
        let failed = open.established && exchange(socket, host, sides, &mut core.moved).is_err();
        if failed {
            socket.abort();
        }
        if core.hold && (1..HELD).contains(&self.taken) && is_quiet(socket) {
            core.held.insert(token);
            return After::GoesOn;
        }
        self.taken = 0;
        core.held.remove(&token);
        loop {
            let before = wire.sent;
            let result = open.interface.poll_egress(time, &mut wire, &mut open.sockets);
            if result == PollResult::None || wire.sent == before {
                break;
            }
        }
        let full = !wire.link.ready();
        let wants = open.interface.poll_at(time, &open.sockets);
        let socket = open.sockets.get_mut::<Socket<'_>>(open.handle);
        let ended = matches!(socket.state(), State::Closed | State::Listen | State::TimeWait);
        if failed || (ended && (socket.recv_queue() == 0 || !self.sides.guest_fin)) {
            if !self.sides.guest_fin {
                // The guest's reset becomes the host's.
                let _ = sockopt::set_socket_linger(&self.host, Some(Duration::ZERO));
            }
            return After::Over;
        }
        if full && wants.is_some() {
            core.blocked.insert(token);
        } else {
            // "Now" after everything was done means soon.
            let due = wants.map(|at| core.instant(at).max(now + SOON));
            core.deadlines.arm(&mut self.armed, due, token);
        }
        After::GoesOn
    }
}

/// Whether the guest is owed nothing but acknowledgements.
fn is_quiet(socket: &Socket<'_>) -> bool {
    socket.state() == State::Established && socket.send_queue() == 0 && socket.recv_queue() == 0
}

/// Moves what can be moved between the two sockets.
fn exchange(
    socket: &mut Socket<'_>,
    host: &mut Host,
    sides: &mut Sides,
    moved: &mut Moved,
) -> io::Result<()> {
    while sides.writable && socket.can_recv() {
        let sent = socket.recv(|bytes| match host.write(bytes) {
            Ok(n) => (n, Ok(n)),
            Err(e) => (0, Err(e)),
        });
        match sent {
            Ok(Ok(n)) if n > 0 => moved.to_host += n,
            Ok(Err(e)) if e.kind() == ErrorKind::WouldBlock => sides.writable = false,
            Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Ok(Ok(_)) | Err(_) => break,
        }
    }
    if sides.guest_fin && !sides.shut && !socket.may_recv() {
        sides.shut = true;
        let _ = host.shutdown(Shutdown::Write);
    }
    while sides.readable && !sides.host_ended && socket.can_send() {
        let got = socket.send(|room| match host.read(room) {
            Ok(n) => (n, Ok((n, n < room.len()))),
            Err(e) => (0, Err(e)),
        });
        match got {
            Ok(Ok((0, _))) => {
                sides.host_ended = true;
                socket.close();
            }
            Ok(Ok((n, short))) => {
                moved.to_guest += n;
                // Of what comes after a short read an event tells.
                sides.readable = !short || sides.drain;
            }
            Ok(Err(e)) if e.kind() == ErrorKind::WouldBlock => sides.readable = false,
            Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_) => break,
        }
    }
    Ok(())
}
