//! Who may be reached. Decided for each flow, on the host's side, when it begins.
//!
//! 1. Multicast, broadcast and unspecified addresses: never.
//! 2. The host's loopback, its own addresses, link-local and cloud metadata addresses: only where the host's user opened
//!    them on the command line. What a machine file asks for can only narrow.
//! 3. Without lists everything else is open; with lists only what they name is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Names learned at a time; the oldest give way.
const LEARNED: usize = 4096;
/// A learned address stays good for at least this long: programs keep what they resolved.
const LEAST: Duration = Duration::from_secs(600);
/// And at most.
const MOST: Duration = Duration::from_secs(24 * 3600);

/// A range of addresses: `10.0.0.0/8`, `192.0.2.7`, `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Cidr {
    Cidr { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6(first: u16, second: u16, last: u16, prefix: u8) -> Cidr {
    Cidr { address: IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, last)), prefix }
}

/// Rule 1.
const NEVER: [Cidr; 5] =
    [v4(0, 0, 0, 0, 8), v4(224, 0, 0, 0, 4), v4(240, 0, 0, 0, 4), v6(0, 0, 0, 128), v6(0xff00, 0, 0, 8)];

/// Rule 2, but for the host's own addresses, which are asked of the host.
const GUARDED: [(Cidr, Reason); 9] = [
    (v4(127, 0, 0, 0, 8), Reason::Loopback),
    (v6(0, 0, 1, 128), Reason::Loopback),
    (v4(169, 254, 0, 0, 16), Reason::LinkLocal),
    (v6(0xfe80, 0, 0, 10), Reason::LinkLocal),
    (v6(0xfec0, 0, 0, 10), Reason::LinkLocal),
    // Metadata services outside the link-local range.
    (v6(0xfd00, 0xec2, 0, 32), Reason::Metadata),
    (v4(100, 100, 100, 200, 32), Reason::Metadata),
    (v4(168, 63, 129, 16, 32), Reason::Metadata),
    (v4(192, 0, 0, 192, 32), Reason::Metadata),
];

impl Cidr {
    fn bits(address: IpAddr) -> (u128, u8) {
        match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)) << 96, 32),
            IpAddr::V6(a) => (u128::from(a), 128),
        }
    }

    /// Whether `address` lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        let ((mine, width), (theirs, other)) = (Self::bits(self.address), Self::bits(address));
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        width == other && (mine ^ theirs) & mask == 0
    }

    fn within(&self, wider: &Cidr) -> bool {
        self.prefix >= wider.prefix && wider.contains(self.address)
    }

    /// Whether this range asks for something that only the command line can open.
    pub fn is_guarded(&self) -> bool {
        GUARDED.iter().any(|(guarded, _)| self.within(guarded))
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{text}` is no range of addresses; write 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let width = Self::bits(address).1;
        let prefix = prefix.unwrap_or(width);
        if prefix > width { Err(bad()) } else { Ok(Self { address, prefix }) }
    }
}

/// A host name, or `*.` and the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// Lower case, without the star and its dot.
    name: String,
    below: bool,
}

impl HostPattern {
    /// Whether a name (lower case, no final dot) fits. `*.example.org` fits every name below example.org, not itself.
    pub fn fits(&self, name: &str) -> bool {
        match name.strip_suffix(self.name.as_str()) {
            Some("") => !self.below,
            Some(front) => self.below && front.len() > 1 && front.ends_with('.'),
            None => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim_end_matches('.').to_ascii_lowercase();
        let (name, below) = match lower.strip_prefix("*.") {
            Some(name) => (name.to_owned(), true),
            None => (lower, false),
        };
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 253 || name.contains("..") || !name.bytes().all(fine) {
            return Err(format!("`{text}` is no host name; write example.org or *.example.org"));
        }
        Ok(Self { name, below })
    }
}

/// Why a flow was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Rule 1.
    NotUnicast,
    Loopback,
    LinkLocal,
    Metadata,
    /// An address of the host.
    OwnAddress,
    /// On no list.
    NotListed,
    /// Too many flows at a time, or the host is out of descriptors.
    NoRoom,
    /// The host does not let this user do that (ping sockets).
    NotPermitted,
}

/// The rules, and what was learned from DNS.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    hosts: Vec<HostPattern>,
    cidrs: Vec<Cidr>,
    opened: Vec<Cidr>,
    learned: HashMap<IpAddr, (Instant, String)>,
}

impl Policy {
    /// `hosts` and `cidrs`: the lists, if any. `opened`: ranges from the host's user, which are on the list too and also
    /// open what lies within a guarded range (and an own address of the host when it is named exactly).
    pub fn new(hosts: Vec<HostPattern>, cidrs: Vec<Cidr>, opened: Vec<Cidr>) -> Self {
        Self { hosts, cidrs, opened, learned: HashMap::new() }
    }

    /// Nothing may be reached, and no name asked for.
    pub fn nothing() -> Self {
        // A pattern that no name fits.
        let none = HostPattern { name: String::new(), below: true };
        Self::new(vec![none], Vec::new(), Vec::new())
    }

    /// Whether there are lists.
    pub fn is_restricted(&self) -> bool {
        !(self.hosts.is_empty() && self.cidrs.is_empty() && self.opened.is_empty())
    }

    /// Whether queries for this name (lower case) are forwarded: with a list of hosts, DNS would otherwise be a way out.
    pub fn may_ask(&self, name: &str) -> bool {
        !self.is_restricted() || self.hosts.iter().any(|host| host.fits(name))
    }

    /// Notes that an allowed name has this address.
    pub fn learn(&mut self, name: &str, address: IpAddr, ttl: Duration, now: Instant) {
        if !self.hosts.iter().any(|host| host.fits(name)) {
            return;
        }
        let address = canonical(address);
        if self.learned.len() >= LEARNED && !self.learned.contains_key(&address) {
            self.learned.retain(|_, (until, _)| *until > now);
            let oldest = self.learned.iter().min_by_key(|(_, (until, _))| *until).map(|(a, _)| *a);
            if let Some(oldest) = oldest.filter(|_| self.learned.len() >= LEARNED) {
                self.learned.remove(&oldest);
            }
        }
        self.learned.insert(address, (now + ttl.clamp(LEAST, MOST), name.to_owned()));
    }

    /// The allowed name that an address was learned for.
    pub fn name_of(&self, address: IpAddr) -> Option<&str> {
        self.learned.get(&canonical(address)).map(|(_, name)| name.as_str())
    }

    /// Whether a flow to `address` (an address as the host sees it) may begin.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, address: IpAddr, now: Instant) -> Result<(), Reason> {
        let address = canonical(address);
        if NEVER.iter().any(|never| never.contains(address)) {
            return Err(Reason::NotUnicast);
        }
        let opened = |wide: &Cidr| self.opened.iter().any(|o| o.within(wide) && o.contains(address));
        for (guarded, reason) in &GUARDED {
            if guarded.contains(address) {
                return if opened(guarded) { Ok(()) } else { Err(*reason) };
            }
        }
        let exactly = Cidr { address, prefix: Cidr::bits(address).1 };
        if opened(&exactly) {
            return Ok(());
        }
        if is_own(address) {
            return Err(Reason::OwnAddress);
        }
        let listed = |list: &[Cidr]| list.iter().any(|cidr| cidr.contains(address));
        let known = || self.learned.get(&address).is_some_and(|(until, _)| *until > now);
        if !self.is_restricted() || listed(&self.cidrs) || listed(&self.opened) || known() {
            Ok(())
        } else {
            Err(Reason::NotListed)
        }
    }
}

/// An IPv4 address in IPv6 clothes (RFC 4291 2.5.5, RFC 6052) is judged as what it is.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0, 0, 0, 0, 0, 0, a, b]
            if v6 != Ipv6Addr::UNSPECIFIED && v6 != Ipv6Addr::LOCALHOST =>
        {
            Ipv4Addr::from(u32::from(a) << 16 | u32::from(b)).into()
        }
        _ => address,
    }
}

/// Whether an address is one of this host's: exactly those can be bound. Asked anew each time, since hosts move.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(list: &[&str]) -> Vec<Cidr> {
        list.iter().map(|c| c.parse().unwrap()).collect()
    }

    fn check(policy: &Policy, address: &str) -> Result<(), Reason> {
        policy.check(address.parse().unwrap(), Instant::now())
    }

    #[test]
    fn without_lists_the_world_is_open_and_the_host_is_not() {
        let policy = Policy::default();
        for open in ["203.0.113.1", "10.9.9.9", "2001:db8::1", "::ffff:203.0.113.1"] {
            assert_eq!(check(&policy, open), Ok(()), "{open}");
        }
        let refused = [
            ("127.0.0.1", Reason::Loopback),
            ("127.8.8.8", Reason::Loopback),
            ("::1", Reason::Loopback),
            ("::ffff:127.0.0.1", Reason::Loopback),
            ("64:ff9b::7f00:1", Reason::Loopback),
            ("169.254.169.254", Reason::LinkLocal),
            ("::ffff:169.254.169.254", Reason::LinkLocal),
            ("fe80::1", Reason::LinkLocal),
            ("fd00:ec2::254", Reason::Metadata),
            ("100.100.100.200", Reason::Metadata),
            ("224.0.0.1", Reason::NotUnicast),
            ("255.255.255.255", Reason::NotUnicast),
            ("0.0.0.0", Reason::NotUnicast),
            ("::", Reason::NotUnicast),
            ("ff02::1", Reason::NotUnicast),
        ];
        for (address, reason) in refused {
            assert_eq!(check(&policy, address), Err(reason), "{address}");
        }
    }

    #[test]
    fn a_list_in_a_file_narrows_and_only_the_user_opens() {
        let file = Policy::new(vec![], cidrs(&["203.0.113.0/24", "127.0.0.1/32", "0.0.0.0/0"]), vec![]);
        assert_eq!(check(&file, "203.0.113.9"), Ok(()));
        assert_eq!(check(&file, "127.0.0.1"), Err(Reason::Loopback));
        assert_eq!(check(&file, "2001:db8::1"), Err(Reason::NotListed));
        let user = Policy::new(vec![], vec![], cidrs(&["127.0.0.1", "0.0.0.0/0"]));
        assert_eq!(check(&user, "127.0.0.1"), Ok(()));
        // Everything is not meant to be this.
        assert_eq!(check(&user, "127.0.0.2"), Err(Reason::Loopback));
        assert_eq!(check(&user, "169.254.169.254"), Err(Reason::LinkLocal));
        assert_eq!(check(&user, "198.51.100.1"), Ok(()));
    }

    #[test]
    fn names_are_learned_for_as_long_as_they_are_good() {
        let now = Instant::now();
        let hosts = ["example.org", "*.example.net"].map(|h| h.parse().unwrap());
        let mut policy = Policy::new(hosts.to_vec(), vec![], vec![]);
        assert!(policy.may_ask("example.org") && policy.may_ask("a.b.example.net"));
        for no in ["www.example.org", "example.net", "badexample.net", "notexample.org", ".example.net"] {
            assert!(!policy.may_ask(no), "{no}");
        }
        let (good, bad) = ("203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap());
        policy.learn("example.org", good, Duration::ZERO, now);
        policy.learn("other.org", bad, Duration::ZERO, now);
        policy.learn("example.org", "127.0.0.1".parse().unwrap(), Duration::ZERO, now);
        assert_eq!(policy.check(good, now), Ok(()));
        assert_eq!(policy.name_of(good), Some("example.org"));
        assert_eq!(policy.check(bad, now), Err(Reason::NotListed));
        assert_eq!(check(&policy, "127.0.0.1"), Err(Reason::Loopback), "a rebound name opens nothing");
        assert_eq!(policy.check(good, now + LEAST * 2), Err(Reason::NotListed));
        for i in 0..2 * LEARNED as u32 {
            policy.learn("example.org", Ipv4Addr::from(i).into(), MOST, now);
        }
        assert!(policy.learned.len() <= LEARNED);
    }

    #[test]
    fn words_that_are_no_range_or_name_are_refused() {
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "x", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        for bad in ["", "*", "*.", "a..b", "a b", "*.*.org", "http://a"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
        assert!("127.0.0.0/9".parse::<Cidr>().unwrap().is_guarded());
        assert!(!"0.0.0.0/0".parse::<Cidr>().unwrap().is_guarded());
    }
}
