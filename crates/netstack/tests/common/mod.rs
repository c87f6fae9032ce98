//! A guest in miniature: smoltcp at the other end of a cable.
#![allow(dead_code)] // each test file uses a part

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::Poller;
use netstack::{
    Config, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, GUEST_V4, GUEST_V6, Link, MAX_FRAME, PREFIX_V4, PREFIX_V6,
    Policy, Stack,
};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// Frames on their way.
pub struct Cable {
    pub to_guest: VecDeque<Vec<u8>>,
    pub to_host: VecDeque<Vec<u8>>,
    /// Frames that the guest takes before the link is full.
    pub room: usize,
}

impl Link for Cable {
    fn ready(&mut self) -> bool {
        self.to_guest.len() < self.room
    }

    fn send(&mut self, frame: &[u8]) {
        assert!(frame.len() <= MAX_FRAME);
        if self.ready() {
            self.to_guest.push_back(frame.to_vec());
        }
    }
}

struct End<'a>(&'a mut Cable);
struct Received(Vec<u8>);
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for End<'_> {
    type RxToken<'b>
        = Received
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.0.to_guest.pop_front()?;
        Some((Received(frame), Sending(&mut self.0.to_host)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.0.to_host))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = MAX_FRAME;
        // The stack is told that it need not compute these, so they are not verified.
        caps.checksum.tcp = Checksum::Tx;
        caps.checksum.udp = Checksum::Tx;
        caps
    }
}

/// The guest and its network.
pub struct Guest {
    pub stack: Stack,
    pub cable: Cable,
    pub sockets: SocketSet<'static>,
    poller: Arc<Poller>,
    interface: Interface,
    begin: Instant,
    next_port: u16,
}

/// A policy to which the host's user opened these ranges.
pub fn opened(ranges: &[&str]) -> Config {
    let ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
    Config { policy: Policy::new(vec![], vec![], ranges), ..Config::default() }
}

impl Guest {
    pub fn new(config: Config) -> Self {
        let poller = Arc::new(Poller::new().unwrap());
        let mut stack = Stack::new(config, poller.clone()).unwrap();
        stack.reset(true);
        let mut cable = Cable { to_guest: VecDeque::new(), to_host: VecDeque::new(), room: 64 };
        let mac = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC));
        let config = smoltcp::iface::Config::new(mac);
        let mut interface =
            Interface::new(config, &mut End(&mut cable), smoltcp::time::Instant::from_micros(0));
        interface.update_ip_addrs(|all| {
            all.push(IpCidr::new(GUEST_V4.into(), PREFIX_V4)).unwrap();
            all.push(IpCidr::new(GUEST_V6.into(), PREFIX_V6)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY_V4).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY_V6).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { stack, cable, sockets, poller, interface, begin: Instant::now(), next_port: 10_000 }
    }

    /// One round of everything.
    pub fn step(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.begin.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut End(&mut self.cable), &mut self.sockets);
        self.stack.unblocked(&mut self.cable);
        let busy = !self.cable.to_host.is_empty();
        while let Some(frame) = self.cable.to_host.pop_front() {
            self.stack.input(&frame, &mut self.cable);
        }
        let mut ready = Vec::new();
        // Events of the host, which come from other threads, are waited for here.
        let limit = if busy || !self.cable.to_guest.is_empty() { 0 } else { 5 };
        self.poller.wait(&mut ready, Some(Duration::from_millis(limit))).unwrap();
        ready.iter().for_each(|r| self.stack.ready(r, &mut self.cable));
        self.stack.tick(&mut self.cable);
    }

    /// The guest sends what it has to, and nothing else happens; how many frames there are then.
    pub fn send(&mut self) -> usize {
        let now = smoltcp::time::Instant::from_micros(self.begin.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut End(&mut self.cable), &mut self.sockets);
        self.cable.to_host.len()
    }

    /// Waits for an event of the host, and lets the stack see it.
    pub fn host(&mut self) {
        let mut ready = Vec::new();
        self.poller.wait(&mut ready, Some(Duration::from_secs(60))).unwrap();
        assert!(!ready.is_empty(), "nothing came of the host");
        ready.iter().for_each(|r| self.stack.ready(r, &mut self.cable));
    }

    /// Steps until `done` gives something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < end, "{what} did not happen");
            self.step();
        }
    }

    /// Steps until nothing is under way in the stack.
    pub fn until_no_flows(&mut self) {
        self.until("the end of all flows", |g| (g.stack.flows() == 0).then_some(()));
    }

    pub fn connect(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffer]),
            tcp::SocketBuffer::new(vec![0; buffer]),
        );
        self.next_port += 1;
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn bind_udp(&mut self, address: IpAddr, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 80_000]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind((address, port)).unwrap();
        self.sockets.add(socket)
    }

    /// The next datagram, and from where.
    pub fn receive(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        self.until("a datagram", |g| {
            let (data, meta) = g.udp(handle).recv().ok()?;
            Some((data.to_vec(), SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port)))
        })
    }
}

/// Descriptors that this process has open.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The gateway, and so the host's loopback, at this port.
pub fn gateway(port: u16) -> SocketAddr {
    SocketAddr::new(GATEWAY_V4.into(), port)
}

impl Guest {
    pub fn until_established(&mut self, handle: SocketHandle) {
        self.until("a connection", |g| (g.tcp(handle).state() == tcp::State::Established).then_some(()));
    }
}

/// A frame with the first segment of a connection.
pub fn syn(from: std::net::Ipv4Addr, port: u16, to: std::net::Ipv4Addr, to_port: u16) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr};
    let tcp = TcpRepr {
        src_port: port,
        dst_port: to_port,
        control: TcpControl::Syn,
        seq_number: Default::default(),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let sums = ChecksumCapabilities::default();
    let mut frame = vec![0; 14 + ip.buffer_len() + tcp.buffer_len()];
    frame[12] = 8;
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &sums);
    let payload = &mut frame[14 + ip.buffer_len()..];
    tcp.emit(&mut TcpPacket::new_unchecked(payload), &from.into(), &to.into(), &sums);
    frame
}
