//! User-mode network: a guest's Ethernet frames become sockets of this process, and back. Knows no virtio, needs no
//! right that an ordinary user lacks.
//!
//! Problem: a guest must reach the world (and nothing of the host that it was not given) without a device, a bridge or
//! root on the host, at the speed of a few copies, and whatever a hostile guest sends must cost a bounded amount.
//!
//! Strategy: the guest is alone on a tiny subnet with a gateway that is us. Each TCP connection is terminated here by
//! smoltcp, in an interface of its own (so that a packet costs the same with one flow or a thousand), and joined to a
//! non-blocking host socket; UDP and ICMP echo flows are mapped to connected sockets; DNS queries to the gateway are
//! forwarded to the host's resolvers. The MTU is 65520 bytes: frames are large without segmentation offload
//! (docs/adr/0095). Every flow passes the [`Policy`] first; what it refuses is listed.
//!
//! ```text
//! stack.rs     the whole: frames in, socket events in, timers
//! frame.rs     parsing and building frames        link.rs    the way to the guest
//! tcp.rs       one connection                     udp.rs     datagram flows and published ports
//! resolver.rs  DNS forwarding (names in dns.rs)   echo.rs    ICMP echo
//! policy.rs    who may be reached                 report.rs  what was refused, counters
//! flows.rs     slots, tokens, deadlines         peers.rs   other machines by name
//! watch.rs     looking before sleeping
//! ```
//!
//! Invariants: nothing blocks; no frame is queued here: what the guest has no room for stays in the host's sockets;
//! every table has a cap below ([`MAX_TCP`] and others). Next: `devices/net` carries the frames.
#![forbid(unsafe_code)]

mod address;
mod dns;
mod echo;
mod flows;
mod frame;
mod link;
mod peers;
mod policy;
mod report;
mod resolver;
mod stack;
mod tcp;
mod udp;
mod watch;

pub use address::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, GUEST_V4, GUEST_V6, HOST_NAME, MTU, PREFIX_V4, PREFIX_V6,
};
pub use echo::MAX_ECHO;
pub use link::{Link, MAX_FRAME};
pub use peers::{Directory, PEER_CONNECTED};
pub use policy::{Cidr, HostPattern, Policy, Reason};
pub use report::{NetReport, Refused, Reporter};
pub use resolver::MAX_QUERIES;
pub use stack::{Config, Published, ROUND_BYTES, ROUND_FRAMES, Stack};
pub use tcp::MAX_TCP;
pub use udp::MAX_UDP;
pub use watch::Watch;
