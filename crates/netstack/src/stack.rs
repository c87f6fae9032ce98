//! The whole: a guest's frames in, socket events in, timers; frames out through the [`Link`].

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Poller, Ready};
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Medium};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpProtocol, UdpPacket};

use crate::address::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, PREFIX_V4, PREFIX_V6, is_gateway};
use crate::echo::Echoes;
use crate::flows::{Deadlines, Kind, Token};
use crate::frame::{Frame, Packet, parse};
use crate::link::{Link, MAX_FRAME, Wire, checksums};
use crate::peers::{Directory, Peers};
use crate::policy::{Policy, Reason};
use crate::report::Reporter;
use crate::resolver::Resolver;
use crate::tcp::Connections;
use crate::udp::{Flows, Published as Doors};

/// Most frames and bytes of the guest in one round, before the host's sockets are looked at again: a queue of its frames,
/// and no more than a connection's buffers hold. A frame begun is taken whole.
pub const ROUND_FRAMES: usize = 256;
pub const ROUND_BYTES: usize = 1 << 20;
const DNS: u16 = 53;
/// Most bytes of one datagram.
const DATAGRAM: usize = 65536;

/// A UDP port of the host that leads to one of the guest.
#[derive(Debug)]
pub struct Published {
    /// Bound; becomes non-blocking.
    pub socket: UdpSocket,
    pub guest: u16,
}

/// What a network is made of.
#[derive(Debug, Default)]
pub struct Config {
    pub policy: Policy,
    /// Whom to forward DNS queries to; those of the host's `/etc/resolv.conf` when empty.
    pub resolvers: Vec<SocketAddr>,
    pub published: Vec<Published>,
    /// Other machines that are reached by name.
    pub peers: Option<Arc<dyn Directory>>,
}

/// Bytes that a round moved, of TCP's and UDP's payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub to_host: usize,
    pub to_guest: usize,
}

/// What all parts work with.
pub struct Core {
    pub poller: Arc<Poller>,
    pub policy: Policy,
    pub reporter: Reporter,
    pub deadlines: Deadlines,
    /// Flows with something for a guest that had no room.
    pub blocked: BTreeSet<Token>,
    /// Connections that owe an acknowledgement, held while an answer may come; new ones only while `hold`.
    pub held: BTreeSet<Token>,
    pub hold: bool,
    pub moved: Moved,
    /// The guest's driver needs no TCP and UDP checksums.
    pub offload: bool,
    /// Where frames are built.
    pub buffer: Vec<u8>,
    /// Other machines.
    pub peers: Peers,
    /// Where datagrams are received.
    pub scratch: Vec<u8>,
    begin: Instant,
}

impl Core {
    /// Asks the policy; a refusal is noted, but for multicast, which guests send unasked.
    pub fn admit(&self, protocol: &str, target: SocketAddr, now: Instant) -> Result<(), Reason> {
        let verdict = self.policy.check(target.ip(), now);
        match verdict {
            Err(reason) if reason != Reason::NotUnicast => {
                self.reporter.refuse_address(protocol, target, reason);
            }
            _ => {}
        }
        verdict
    }

    pub fn checksums(&self) -> ChecksumCapabilities {
        checksums(self.offload)
    }

    /// smoltcp's time.
    pub fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.begin).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// And back.
    pub fn instant(&self, at: smoltcp::time::Instant) -> Instant {
        self.begin + Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))
    }

    /// For sequence numbers that nobody guesses.
    pub fn seed(&self) -> u64 {
        let mut seed = [0; 8];
        // Without random numbers the host could not have started a machine.
        let _ = host::fill_random(&mut seed);
        u64::from_ne_bytes(seed)
    }

    /// Sends what was built in `buffer`, when it was.
    pub fn send_built(&self, link: &mut dyn Link, built: Option<usize>) {
        if let Some(frame) = built.and_then(|len| self.buffer.get(..len)) {
            link.send(frame);
        }
    }

    /// Sends the guest a datagram.
    pub fn send_udp(&mut self, link: &mut dyn Link, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        self.moved.to_guest += payload.len();
        let sums = self.checksums();
        let built = crate::frame::udp(&mut self.buffer, from, to, payload, &sums);
        self.send_built(link, built);
    }
}

/// The network of one machine. Its owner waits with the poller that it was made with, and brings what happens.
pub struct Stack {
    core: Core,
    /// ARP, neighbour discovery and echo of the gateway.
    gateway: Interface,
    connections: Connections,
    datagrams: Flows,
    published: Doors,
    echoes: Echoes,
    resolver: Resolver,
    /// When this round's first frame came: what its others go by, too.
    round: Option<Instant>,
}

/// A link that leads nowhere, for making an interface.
struct Nowhere;

impl Link for Nowhere {
    fn ready(&mut self) -> bool {
        false
    }

    fn send(&mut self, _frame: &[u8]) {}
}

impl Stack {
    /// A network that waits for `config`'s guest; its sockets are watched by `poller`, with tokens below `0xff << 56`.
    ///
    /// # Errors
    /// The host's: a published socket cannot be watched.
    pub fn new(config: Config, poller: Arc<Poller>) -> io::Result<Self> {
        let mut core = Core {
            poller,
            policy: config.policy,
            reporter: Reporter::default(),
            deadlines: Deadlines::default(),
            blocked: BTreeSet::new(),
            held: BTreeSet::new(),
            hold: false,
            moved: Moved::default(),
            offload: false,
            buffer: vec![0; MAX_FRAME],
            peers: Peers::new(config.peers),
            scratch: vec![0; DATAGRAM],
            begin: Instant::now(),
        };
        let doors = config.published.into_iter().map(|p| (p.socket, p.guest)).collect();
        let published = Doors::new(doors, &core)?;
        let gateway = gateway(&mut core);
        Ok(Self {
            core,
            gateway,
            connections: Connections::new(),
            datagrams: Flows::new(),
            published,
            echoes: Echoes::new(),
            resolver: Resolver::new(config.resolvers),
            round: None,
        })
    }

    /// What may be asked from other threads.
    pub fn reporter(&self) -> Reporter {
        self.core.reporter.clone()
    }

    /// Forgets every flow: the guest's driver started anew. `offload`: it needs no TCP and UDP checksums.
    pub fn reset(&mut self, offload: bool) {
        self.core.offload = offload;
        self.core.deadlines.clear();
        self.core.blocked.clear();
        self.core.held.clear();
        self.connections.clear();
        self.datagrams.clear();
        self.published.clear();
        self.echoes.clear();
        self.resolver.clear();
        self.gateway = gateway(&mut self.core);
    }

    /// Takes a frame of the guest. What comes of it may wait for the end of the round, which [`Stack::tick`] is.
    pub fn input(&mut self, frame: &[u8], link: &mut dyn Link) {
        self.core.reporter.count_out(frame.len());
        let now = *self.round.get_or_insert_with(Instant::now);
        match parse(frame) {
            Frame::Local => {
                let time = self.core.time(now);
                let mut wire = Wire::new(link, Some(frame), &mut self.core.buffer, self.core.offload);
                wire.medium = Medium::Ethernet;
                self.gateway.poll_ingress_single(time, &mut wire, &mut SocketSet::new([]));
            }
            Frame::Ip(packet) => match packet.protocol {
                IpProtocol::Tcp => self.segment(&packet, link, now),
                IpProtocol::Udp => self.datagram(&packet, link, now),
                IpProtocol::Icmp | IpProtocol::Icmpv6 => self.echoes.send(&mut self.core, &packet, now),
                _ => {}
            },
            Frame::Other => {}
        }
    }

    fn segment(&mut self, packet: &Packet<'_>, link: &mut dyn Link, now: Instant) {
        // Long answers come over TCP; with lists they would lead past them.
        let server = if is_gateway(packet.destination) && !self.core.policy.is_restricted() {
            self.resolver.servers().first().copied()
        } else {
            None
        };
        let target = |remote: SocketAddr| server.filter(|_| remote.port() == DNS);
        self.connections.segment(&mut self.core, link, packet, target, now);
    }

    fn datagram(&mut self, packet: &Packet<'_>, link: &mut dyn Link, now: Instant) {
        let Ok(datagram) = UdpPacket::new_checked(packet.payload) else { return };
        let guest = SocketAddr::new(packet.source, datagram.src_port());
        let remote = SocketAddr::new(packet.destination, datagram.dst_port());
        let payload = datagram.payload();
        self.core.moved.to_host += payload.len();
        if is_gateway(remote.ip()) {
            if remote.port() == DNS {
                return self.resolver.query(&mut self.core, link, guest, remote, payload, now);
            }
            if self.published.answer(guest.port(), remote.port(), payload, now) {
                return;
            }
        }
        match self.datagrams.send(&mut self.core, guest, remote, payload, now) {
            Ok(()) | Err(Reason::NotUnicast) => {}
            Err(_) => {
                let sums = self.core.checksums();
                let built = crate::frame::unreachable(&mut self.core.buffer, packet, &sums);
                self.core.send_built(link, built);
            }
        }
    }

    /// Takes an event of the poller; tokens that are not ours are ignored.
    pub fn ready(&mut self, ready: &Ready, link: &mut dyn Link) {
        // What comes after it in this round comes later.
        self.round = None;
        self.look(Token(ready.token), Some(ready), link, Instant::now());
    }

    fn look(&mut self, token: Token, ready: Option<&Ready>, link: &mut dyn Link, now: Instant) {
        match token.kind() {
            Some(Kind::Tcp) => self.connections.ready(&mut self.core, link, token, ready, now),
            Some(Kind::Udp) => self.datagrams.ready(&mut self.core, link, token, now),
            Some(Kind::Echo) => self.echoes.ready(&mut self.core, link, token),
            Some(Kind::Query) => self.resolver.ready(&mut self.core, link, token, now),
            Some(Kind::Published) => self.published.ready(&mut self.core, link, token, now),
            None => {}
        }
    }

    /// The link has room again.
    pub fn unblocked(&mut self, link: &mut dyn Link) {
        self.round = None;
        let now = Instant::now();
        for token in std::mem::take(&mut self.core.blocked) {
            if link.ready() {
                self.look(token, None, link, now);
            } else {
                self.core.blocked.insert(token);
            }
        }
    }

    /// Ends a round: does what the frames taken in it ask for, and what is due by time.
    pub fn tick(&mut self, link: &mut dyn Link) {
        self.end_round(link);
        let now = Instant::now();
        for token in std::mem::take(&mut self.core.held) {
            self.look(token, None, link, now);
        }
    }

    /// As [`Stack::tick`], but an acknowledgement that might go with an answer of the host's is held: for an owner that
    /// looks for one and, when none came soon, ticks. Whether any is held.
    pub fn hold(&mut self, link: &mut dyn Link) -> bool {
        self.core.hold = true;
        self.end_round(link);
        self.core.hold = false;
        !self.core.held.is_empty()
    }

    /// What was moved since the last call.
    pub fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.core.moved)
    }

    fn end_round(&mut self, link: &mut dyn Link) {
        let now = Instant::now();
        self.round = None;
        self.connections.settle_round(&mut self.core, link, now);
        while let Some((token, when)) = self.core.deadlines.due(now) {
            match token.kind() {
                Some(Kind::Tcp) => self.connections.late(&mut self.core, link, token, when, now),
                Some(Kind::Udp) => self.datagrams.late(&mut self.core, token, when, now),
                Some(Kind::Echo) => self.echoes.late(&mut self.core, token, when, now),
                Some(Kind::Query) => self.resolver.late(&mut self.core, token, when, now),
                Some(Kind::Published) | None => {}
            }
        }
        self.core.reporter.set_flows(self.flows());
    }

    /// How long until [`Stack::tick`] has something to do; `None`: never.
    pub fn timeout(&self) -> Option<Duration> {
        self.core.deadlines.timeout(Instant::now())
    }

    /// Flows of every kind.
    pub fn flows(&self) -> usize {
        self.connections.len() + self.datagrams.len() + self.echoes.len() + self.resolver.len()
    }
}

fn gateway(core: &mut Core) -> Interface {
    let mut config = smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(GATEWAY_MAC)));
    config.random_seed = core.seed();
    let (now, offload) = (core.time(Instant::now()), core.offload);
    let mut nowhere = Nowhere;
    let mut wire = Wire::new(&mut nowhere, None, &mut core.buffer, offload);
    wire.medium = Medium::Ethernet;
    let mut interface = Interface::new(config, &mut wire, now);
    interface.update_ip_addrs(|all| {
        // There is room for three.
        let _ = all.push(IpCidr::new(GATEWAY_V4.into(), PREFIX_V4));
        let _ = all.push(IpCidr::new(GATEWAY_V6.into(), PREFIX_V6));
    });
    interface
}
