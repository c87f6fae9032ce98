//! The guest's subnet. Every machine has the same: each is alone on its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The guest's interface. Locally administered (IEEE 802, second-lowest bit of the first byte).
pub const GUEST_MAC: [u8; 6] = [0x02, 0x53, 0x4d, 0x4f, 0x4c, 0x02];
/// Ours.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x53, 0x4d, 0x4f, 0x4c, 0x01];
/// The guest's IPv4 address, in a /[`PREFIX_V4`].
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Gateway, resolver, and the host's loopback where the policy opens it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const PREFIX_V4: u8 = 24;
/// The guest's IPv6 address (a unique local one, RFC 4193), in a /[`PREFIX_V6`].
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6d6f, 0x6c76, 0, 0, 0, 0, 0x15);
/// As [`GATEWAY_V4`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6d6f, 0x6c76, 0, 0, 0, 0, 2);
pub const PREFIX_V6: u8 = 64;
/// A name that our resolver answers itself: the host.
pub const HOST_NAME: &str = "host.smolvm.internal";
/// Bytes of an IP packet in both directions (docs/adr/0095). The largest multiple of 16 that leaves room for an
/// Ethernet header below 64 KiB.
pub const MTU: usize = 65520;

/// Whether this is the gateway, and so the host itself.
pub(crate) fn is_gateway(address: IpAddr) -> bool {
    address == GATEWAY_V4 || address == GATEWAY_V6
}

/// Where a socket of the host connects to for what the guest calls `address`: the gateway is the host's loopback.
pub(crate) fn on_host(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(GATEWAY_V4) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(GATEWAY_V6) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}
