//! DNS: queries to the gateway go to the host's resolvers, each on a socket (and so a port) of its own.
//!
//! Answers are passed on as they are; addresses in them are learned for the policy's host names. With lists, only names
//! on them are asked for at all, over UDP: anything else would be a way out.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use host::Interest;

use crate::address::{GATEWAY_V4, GATEWAY_V6, HOST_NAME};
use crate::dns;
use crate::flows::{Kind, Slots, Token};
use crate::link::Link;
use crate::policy::Reason;
use crate::stack::Core;

/// Queries under way at a time; more are dropped, and asked again by who wants to know.
pub const MAX_QUERIES: usize = 128;
/// How long one resolver is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Resolvers asked in turn.
const TRIES: usize = 3;
const PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";

struct Query {
    socket: UdpSocket,
    guest: SocketAddr,
    gateway: SocketAddr,
    message: Vec<u8>,
    name: String,
    servers: Vec<SocketAddr>,
    tries: usize,
    armed: Option<Instant>,
}

/// Forwards queries.
pub struct Resolver {
    queries: Slots<Query>,
    /// From the command line; the host's own when empty.
    configured: Vec<SocketAddr>,
    read: (Option<SystemTime>, Vec<SocketAddr>),
}

impl Resolver {
    pub fn new(configured: Vec<SocketAddr>) -> Self {
        Self { queries: Slots::new(Kind::Query, MAX_QUERIES), configured, read: (None, Vec::new()) }
    }

    pub fn len(&self) -> usize {
        self.queries.len()
    }

    pub fn clear(&mut self) {
        self.queries.clear();
    }

    /// The resolvers of now: a laptop changes networks while machines run.
    pub fn servers(&mut self) -> &[SocketAddr] {
        if !self.configured.is_empty() {
            return &self.configured;
        }
        let changed = std::fs::metadata(RESOLV_CONF).and_then(|m| m.modified()).ok();
        if changed.is_none() || changed != self.read.0 {
            let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            self.read = (changed, parse_resolv_conf(&text));
        }
        &self.read.1
    }

    /// Takes a datagram of the guest to port 53 of the gateway.
    pub fn query(
        &mut self,
        core: &mut Core,
        link: &mut dyn Link,
        guest: SocketAddr,
        gateway: SocketAddr,
        message: &[u8],
        now: Instant,
    ) {
        let Some(asked) = dns::question(message) else { return };
        if asked.name == HOST_NAME {
            let answer = dns::known(message, &asked, GATEWAY_V4, Some(GATEWAY_V6));
            return core.send_udp(link, gateway, guest, &answer);
        }
        if let Some(address) = core.peers.address(&asked.name) {
            return core.send_udp(link, gateway, guest, &dns::known(message, &asked, address, None));
        }
        if !core.policy.may_ask(&asked.name) {
            core.reporter.refuse("dns", asked.name.clone(), Reason::NotListed);
            return core.send_udp(link, gateway, guest, &dns::refusal(message, &asked));
        }
        let servers = self.servers().to_vec();
        let Some(first) = servers.first().copied() else { return };
        let inserted = self.queries.insert_with(|token| {
            let socket = ask(core, token, first, message)?;
            let (message, name) = (message.to_vec(), asked.name);
            Some(Query { socket, guest, gateway, message, name, servers, tries: 1, armed: None })
        });
        let query = inserted.and_then(|token| Some((token, self.queries.get_mut(token)?)));
        if let Some((token, query)) = query {
            core.deadlines.arm(&mut query.armed, Some(now + PATIENCE), token);
        }
    }

    /// Something came back.
    pub fn ready(&mut self, core: &mut Core, link: &mut dyn Link, token: Token, now: Instant) {
        let Some(query) = self.queries.get_mut(token) else { return };
        let mut scratch = std::mem::take(&mut core.scratch);
        while let Ok(n) = query.socket.recv(&mut scratch) {
            let answer = scratch.get(..n).unwrap_or_default();
            if !dns::answers(&query.message, answer) {
                continue;
            }
            for (address, ttl) in dns::addresses(answer) {
                core.policy.learn(&query.name, address, ttl, now);
            }
            core.send_udp(link, query.gateway, query.guest, answer);
            self.queries.remove(token);
            break;
        }
        core.scratch = scratch;
    }

    /// Nothing came back in time: the next resolver.
    pub fn late(&mut self, core: &mut Core, token: Token, when: Instant, now: Instant) {
        let Some(query) = self.queries.get_mut(token).filter(|q| q.armed == Some(when)) else { return };
        query.armed = None;
        let next = query.servers.get(query.tries % query.servers.len().max(1)).copied();
        let again = next.filter(|_| query.tries < TRIES);
        let socket = again.and_then(|server| ask(core, token, server, &query.message));
        match socket {
            Some(socket) => {
                query.socket = socket;
                query.tries += 1;
                core.deadlines.arm(&mut query.armed, Some(now + PATIENCE), token);
            }
            None => drop(self.queries.remove(token)),
        }
    }
}

/// A socket on which this resolver was asked.
fn ask(core: &Core, token: Token, server: SocketAddr, message: &[u8]) -> Option<UdpSocket> {
    let socket = crate::udp::connected(server).ok()?;
    core.poller.add(&socket, token.0, Interest::READ).ok()?;
    // One that cannot be sent to is waited for all the same; then comes the next.
    let _ = socket.send(message);
    Some(socket)
}

/// The `nameserver` lines.
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let word = words.next().filter(|w| *w == "nameserver").and_then(|_| words.next())?;
        Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, PORT))
    };
    text.lines().filter_map(server).take(TRIES).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn resolv_conf_is_read() {
        let text =
            "# a\nsearch example.org\nnameserver 192.0.2.53\n nameserver\t2001:db8::1 \nnameserver x\n";
        let expected = ["192.0.2.53:53", "[2001:db8::1]:53"].map(|s| s.parse().unwrap());
        assert_eq!(super::parse_resolv_conf(text), expected);
    }
}
