//! ICMP echo through the host's unprivileged ping sockets (Linux, `net.ipv4.ping_group_range`). The kernel chooses the
//! identifier on the wire and gives each socket its own replies; the guest's identifier is put back here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use host::Interest;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use crate::address::{GUEST_V4, GUEST_V6};
use crate::flows::{Kind, Slots, Token};
use crate::frame::Packet;
use crate::link::{Link, checksums};
use crate::policy::Reason;
use crate::stack::Core;

/// Pairs of an identifier and a destination at a time; more are refused.
pub const MAX_ECHO: usize = 64;
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of an echo header: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;
const REPLY_V4: u8 = 0;
const REPLY_V6: u8 = 129;

struct Flow {
    socket: OwnedFd,
    to: IpAddr,
    ident: u16,
    last: Instant,
    armed: Option<Instant>,
}

/// All echo flows.
pub struct Echoes {
    flows: Slots<Flow>,
    index: HashMap<(IpAddr, u16), Token>,
}

impl Echoes {
    pub fn new() -> Self {
        Self { flows: Slots::new(Kind::Echo, MAX_ECHO), index: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn clear(&mut self) {
        self.flows.clear();
        self.index.clear();
    }

    /// Sends an echo request of the guest on; everything else of ICMP stays here.
    pub fn send(&mut self, core: &mut Core, packet: &Packet<'_>, now: Instant) {
        let expected = if packet.destination.is_ipv4() { REQUEST_V4 } else { REQUEST_V6 };
        let &[kind, 0, _, _, i0, i1, ..] = packet.payload else { return };
        if kind != expected || packet.payload.len() < HEADER {
            return;
        }
        let ident = u16::from_be_bytes([i0, i1]);
        let token = match self.index.get(&(packet.destination, ident)) {
            Some(token) => *token,
            None => match self.open(core, packet.destination, ident, now) {
                Some(token) => token,
                None => return,
            },
        };
        if let Some(flow) = self.flows.get_mut(token) {
            flow.last = now;
            let _ = rustix::net::send(&flow.socket, packet.payload, SendFlags::NOSIGNAL);
        }
    }

    fn open(&mut self, core: &mut Core, to: IpAddr, ident: u16, now: Instant) -> Option<Token> {
        let target = SocketAddr::new(to, 0);
        core.admit("icmp", target, now).ok()?;
        let mut why = Reason::NoRoom;
        let opened = self.flows.insert_with(|token| {
            let socket = ping_socket(target).map_err(|_| why = Reason::NotPermitted).ok()?;
            core.poller.add(&socket, token.0, Interest::READ).ok()?;
            Some(Flow { socket, to, ident, last: now, armed: None })
        });
        let Some(token) = opened else {
            core.reporter.refuse("icmp", to.to_string(), why);
            return None;
        };
        self.index.insert((to, ident), token);
        let flow = self.flows.get_mut(token)?;
        core.deadlines.arm(&mut flow.armed, Some(now + IDLE), token);
        Some(token)
    }

    /// Brings replies to the guest.
    pub fn ready(&mut self, core: &mut Core, link: &mut dyn Link, token: Token) {
        let Some(flow) = self.flows.get_mut(token) else { return };
        let mut scratch = std::mem::take(&mut core.scratch);
        let (guest, expected): (IpAddr, _) =
            if flow.to.is_ipv4() { (GUEST_V4.into(), REPLY_V4) } else { (GUEST_V6.into(), REPLY_V6) };
        while let Ok((_, n)) = rustix::net::recv(&flow.socket, &mut scratch[..], RecvFlags::empty()) {
            let reply = scratch.get(..n).unwrap_or_default();
            let Some((&[kind, _, _, _, _, _, s0, s1], data)) = reply.split_first_chunk::<HEADER>() else {
                continue;
            };
            if kind == expected {
                let (seq, sums) = (u16::from_be_bytes([s0, s1]), checksums(true));
                let built =
                    crate::frame::echo_reply(&mut core.buffer, flow.to, guest, flow.ident, seq, data, &sums);
                core.send_built(link, built);
            }
        }
        core.scratch = scratch;
    }

    /// Ends a flow that was silent, or looks again later.
    pub fn late(&mut self, core: &mut Core, token: Token, when: Instant, now: Instant) {
        let Some(flow) = self.flows.get_mut(token).filter(|flow| flow.armed == Some(when)) else { return };
        flow.armed = None;
        if now.saturating_duration_since(flow.last) < IDLE {
            return core.deadlines.arm(&mut flow.armed, Some(flow.last + IDLE), token);
        }
        if let Some(flow) = self.flows.remove(token) {
            self.index.remove(&(flow.to, flow.ident));
        }
    }
}

fn ping_socket(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let (family, protocol) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket)
}
