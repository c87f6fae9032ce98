//! Frames of the guest taken apart, and packets for it put together. Pure.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr,
    UdpPacket, UdpRepr,
};

use crate::address::{GUEST_V4, GUEST_V6};
use crate::link::ethernet_header;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
const TTL: u8 = 64;
/// Bytes of a refused packet that go back with the refusal (RFC 1812, 4.3.2.3; any amount is allowed).
const QUOTED: usize = 512;

/// What a frame holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// For the gateway's own housekeeping: ARP, neighbour discovery, echo of the gateway.
    Local,
    /// A packet of the guest to somewhere.
    Ip(Packet<'a>),
    /// Nothing that we carry.
    Other,
}

/// An unfragmented IP packet from the guest's own address.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: IpProtocol,
    /// The whole packet, without padding.
    pub ip: &'a [u8],
    /// What follows the IP header.
    pub payload: &'a [u8],
}

/// Takes a frame apart.
pub fn parse(frame: &[u8]) -> Frame<'_> {
    let Some((head, body)) = frame.split_at_checked(ETHERNET) else { return Frame::Other };
    match head[12..] {
        [0x08, 0x06] => Frame::Local,
        [0x08, 0x00] => parse_v4(body).unwrap_or(Frame::Other),
        [0x86, 0xdd] => parse_v6(body).unwrap_or(Frame::Other),
        _ => Frame::Other,
    }
}

/// An IP packet of the guest that was kept.
pub fn packet(ip: &[u8]) -> Option<Packet<'_>> {
    let parsed = if ip.first()? >> 4 == 4 { parse_v4(ip) } else { parse_v6(ip) };
    match parsed? {
        Frame::Ip(packet) => Some(packet),
        _ => None,
    }
}

fn parse_v4(body: &[u8]) -> Option<Frame<'_>> {
    let packet = Ipv4Packet::new_checked(body).ok()?;
    let whole = packet.version() == 4 && !packet.more_frags() && packet.frag_offset() == 0;
    if !whole || packet.src_addr() != GUEST_V4 {
        return None;
    }
    let ip = body.get(..usize::from(packet.total_len()))?;
    let destination = IpAddr::V4(packet.dst_addr());
    let protocol = packet.next_header();
    if protocol == IpProtocol::Icmp && crate::address::is_gateway(destination) {
        return Some(Frame::Local);
    }
    let payload = ip.get(usize::from(packet.header_len())..)?;
    Some(Frame::Ip(Packet { source: GUEST_V4.into(), destination, protocol, ip, payload }))
}

fn parse_v6(body: &[u8]) -> Option<Frame<'_>> {
    let packet = Ipv6Packet::new_checked(body).ok()?;
    let destination = IpAddr::V6(packet.dst_addr());
    let protocol = packet.next_header();
    let ip = body.get(..packet.total_len())?;
    let payload = ip.get(packet.header_len()..)?;
    if protocol == IpProtocol::Icmpv6 {
        // Neighbour discovery (RFC 4861): types 133 to 137.
        let discovery = payload.first().is_some_and(|kind| (133..=137).contains(kind));
        if discovery || crate::address::is_gateway(destination) {
            return Some(Frame::Local);
        }
    }
    if packet.version() != 6 || packet.src_addr() != GUEST_V6 {
        return None;
    }
    Some(Frame::Ip(Packet { source: GUEST_V6.into(), destination, protocol, ip, payload }))
}

/// IP header between two addresses of one family.
fn ip_repr(from: IpAddr, to: IpAddr, protocol: IpProtocol, len: usize) -> Option<IpRepr> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
            Some(IpRepr::new(from.into(), to.into(), protocol, len, TTL))
        }
        _ => None,
    }
}

/// Room for an IP packet in `buffer`, its header written; `None` when it does not fit.
fn lay<'b>(
    buffer: &'b mut [u8],
    ip: &IpRepr,
    sums: &ChecksumCapabilities,
) -> Option<(&'b mut [u8], &'b mut [u8])> {
    let len = ETHERNET + ip.buffer_len();
    let frame = buffer.get_mut(..len)?;
    ip.emit(&mut frame[ETHERNET..], sums);
    ethernet_header(frame);
    Some(frame.split_at_mut(ETHERNET + ip.header_len()))
}

/// A datagram for the guest; gives the frame's length.
pub fn udp(
    buffer: &mut [u8],
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    sums: &ChecksumCapabilities,
) -> Option<usize> {
    let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let len = repr.header_len() + payload.len();
    let ip = ip_repr(from.ip(), to.ip(), IpProtocol::Udp, len)?;
    let (head, body) = lay(buffer, &ip, sums)?;
    let mut packet = UdpPacket::new_unchecked(body);
    let copy = |to: &mut [u8]| to.copy_from_slice(payload);
    repr.emit(&mut packet, &ip.src_addr(), &ip.dst_addr(), payload.len(), copy, sums);
    Some(head.len() + len)
}

/// A reset in answer to a segment that belongs to no connection (RFC 9293, 3.10.7.1); `None` where none is due.
pub fn reset(buffer: &mut [u8], packet: &Packet<'_>, sums: &ChecksumCapabilities) -> Option<usize> {
    let segment = TcpPacket::new_checked(packet.payload).ok()?;
    if segment.rst() {
        return None;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (Default::default(), Some(segment.seq_number() + segment.segment_len()))
    };
    let repr = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = ip_repr(packet.destination, packet.source, IpProtocol::Tcp, repr.buffer_len())?;
    let (head, body) = lay(buffer, &ip, sums)?;
    repr.emit(&mut TcpPacket::new_unchecked(body), &ip.src_addr(), &ip.dst_addr(), sums);
    Some(head.len() + repr.buffer_len())
}

/// "Port unreachable" in answer to a packet that is not carried, so that the guest's program hears of it at once.
pub fn unreachable(buffer: &mut [u8], packet: &Packet<'_>, sums: &ChecksumCapabilities) -> Option<usize> {
    let data = &packet.payload[..packet.payload.len().min(QUOTED)];
    match (packet.destination, packet.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Packet::new_checked(packet.ip).ok()?;
            let header = Ipv4Repr::parse(&header, &ChecksumCapabilities::ignored()).ok()?;
            let repr =
                Icmpv4Repr::DstUnreachable { reason: Icmpv4DstUnreachable::PortUnreachable, header, data };
            let ip = ip_repr(from.into(), to.into(), IpProtocol::Icmp, repr.buffer_len())?;
            let (head, body) = lay(buffer, &ip, sums)?;
            repr.emit(&mut Icmpv4Packet::new_unchecked(body), sums);
            Some(head.len() + repr.buffer_len())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Packet::new_checked(packet.ip).ok()?;
            let header = Ipv6Repr::parse(&header).ok()?;
            let repr =
                Icmpv6Repr::DstUnreachable { reason: Icmpv6DstUnreachable::PortUnreachable, header, data };
            let ip = ip_repr(from.into(), to.into(), IpProtocol::Icmpv6, repr.buffer_len())?;
            let (head, body) = lay(buffer, &ip, sums)?;
            repr.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(body), sums);
            Some(head.len() + repr.buffer_len())
        }
        _ => None,
    }
}

/// An echo reply for the guest.
pub fn echo_reply(
    buffer: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    ident: u16,
    seq_no: u16,
    data: &[u8],
    sums: &ChecksumCapabilities,
) -> Option<usize> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let repr = Icmpv4Repr::EchoReply { ident, seq_no, data };
            let ip = ip_repr(from, to, IpProtocol::Icmp, repr.buffer_len())?;
            let (head, body) = lay(buffer, &ip, sums)?;
            repr.emit(&mut Icmpv4Packet::new_unchecked(body), sums);
            Some(head.len() + repr.buffer_len())
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let repr = Icmpv6Repr::EchoReply { ident, seq_no, data };
            let ip = ip_repr(from, to, IpProtocol::Icmpv6, repr.buffer_len())?;
            let (head, body) = lay(buffer, &ip, sums)?;
            repr.emit(&a, &b, &mut Icmpv6Packet::new_unchecked(body), sums);
            Some(head.len() + repr.buffer_len())
        }
        _ => None,
    }
}
