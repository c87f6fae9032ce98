//! The bytes of the guest's frames: ARP and TCP over IPv4. Every sent payload is [`FILL`] throughout, so its checksum
//! is known from its length and costs the generator nothing.

use std::net::Ipv4Addr;

/// Every byte of every payload.
pub const FILL: u8 = 0x5a;
/// The guest's own hardware address.
pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Bytes of the headers of a segment without options: Ethernet, IPv4, TCP.
pub const HEADERS: usize = 14 + 20 + 20;
/// Our receive window is told in units of two to this power.
pub const WINDOW_SHIFT: u8 = 7;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
/// Hardware Ethernet, protocol IPv4, their address lengths (RFC 826).
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const TCP: u8 = 6;

/// What a received frame is to the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Who has the guest's address? With the asker's address and hardware address.
    WhoHas([u8; 6], [u8; 4]),
    /// The gateway's hardware address.
    Gateway([u8; 6]),
    Tcp(Segment<'a>),
    Other,
}

/// A TCP segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub from: u16,
    pub to: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    options: &'a [u8],
    pub payload: &'a [u8],
}

/// A segment to be sent.
pub struct Out {
    pub from: u16,
    pub to: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Maximum segment size, of a SYN.
    pub mss: Option<u16>,
    pub payload: usize,
}

/// Takes a frame apart.
pub fn parse(frame: &[u8]) -> Frame<'_> {
    parse_known(frame).unwrap_or(Frame::Other)
}

fn parse_known(frame: &[u8]) -> Option<Frame<'_>> {
    let (head, body) = frame.split_at_checked(14)?;
    if head[12..] == ARP {
        let (kind, sender) = (body.get(6..8)?, *body.get(8..14)?.first_chunk()?);
        let (source, target) = (*body.get(14..18)?.first_chunk::<4>()?, body.get(24..28)?);
        return Some(match kind {
            [0, 1] if target == GUEST.octets() => Frame::WhoHas(sender, source),
            [0, 2] if source == GATEWAY.octets() => Frame::Gateway(sender),
            _ => Frame::Other,
        });
    }
    if head[12..] != IPV4 || body.get(9) != Some(&TCP) {
        return None;
    }
    let ip = body.get(..be16(body, 2)?.into())?;
    let tcp = ip.get(usize::from(ip[0] & 15) * 4..)?;
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Frame::Tcp(Segment {
        from: be16(tcp, 0)?,
        to: be16(tcp, 2)?,
        seq: be32(tcp, 4)?,
        ack: be32(tcp, 8)?,
        flags: *tcp.get(13)?,
        window: be16(tcp, 14)?,
        options: tcp.get(20..data)?,
        payload: tcp.get(data..)?,
    }))
}

impl Segment<'_> {
    /// The data of an option (RFC 9293, 3.1).
    fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = self.options;
        loop {
            match rest {
                [0, ..] | [] => return None,
                [1, after @ ..] => rest = after,
                [found, len, ..] => {
                    let whole = rest.get(..usize::from(*len).max(2))?;
                    if *found == kind {
                        return whole.get(2..);
                    }
                    rest = &rest[whole.len()..];
                }
                [_] => return None,
            }
        }
    }

    /// The largest segment that the other side takes; 536 when it says nothing.
    pub fn mss(&self) -> u16 {
        self.option(2).and_then(|data| be16(data, 0)).unwrap_or(536)
    }

    /// By how many bits its windows are shifted, where it can do that.
    pub fn window_shift(&self) -> Option<u8> {
        self.option(3).and_then(|data| data.first().copied()).map(|shift| shift.min(14))
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Appends an ARP request for the gateway (`to` is nobody), or the answer that the guest's address is here.
pub fn arp(out: &mut Vec<u8>, to: Option<([u8; 6], [u8; 4])>) {
    let (mac, address) = to.unwrap_or(([0xff; 6], GATEWAY.octets()));
    out.extend_from_slice(&mac);
    out.extend_from_slice(&MAC);
    out.extend_from_slice(&ARP);
    out.extend_from_slice(&ARP_HEAD);
    out.extend_from_slice(&[0, if to.is_some() { 2 } else { 1 }]);
    out.extend_from_slice(&MAC);
    out.extend_from_slice(&GUEST.octets());
    out.extend_from_slice(if to.is_some() { &mac } else { &[0; 6] });
    out.extend_from_slice(&address);
}

/// Appends a segment from the guest to the gateway.
pub fn tcp(out: &mut Vec<u8>, gateway: &[u8; 6], segment: &Out) {
    let options = if segment.mss.is_some() { 8 } else { 0 };
    let tcp_len = 20 + options + segment.payload;
    out.extend_from_slice(gateway);
    out.extend_from_slice(&MAC);
    out.extend_from_slice(&IPV4);
    let at = out.len();
    out.extend_from_slice(&[0x45, 0]);
    out.extend_from_slice(&((20 + tcp_len) as u16).to_be_bytes());
    // No identification, don't fragment, 64 hops, TCP, checksum to come.
    out.extend_from_slice(&[0, 0, 0x40, 0, 64, TCP, 0, 0]);
    out.extend_from_slice(&GUEST.octets());
    out.extend_from_slice(&GATEWAY.octets());
    let sum = fold(add(0, &out[at..at + 20]));
    out[at + 10..at + 12].copy_from_slice(&(!sum).to_be_bytes());
    let at = out.len();
    for port in [segment.from, segment.to] {
        out.extend_from_slice(&port.to_be_bytes());
    }
    for number in [segment.seq, segment.ack] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&[((20 + options) as u8 / 4) << 4, segment.flags]);
    out.extend_from_slice(&segment.window.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    if let Some(mss) = segment.mss {
        out.extend_from_slice(&[2, 4]);
        out.extend_from_slice(&mss.to_be_bytes());
        out.extend_from_slice(&[1, 3, 3, WINDOW_SHIFT]);
    }
    let header = add(0, &out[at..]);
    // The pseudo header (RFC 9293, 3.1), and a payload of equal bytes.
    let pseudo = add(add(0, &GUEST.octets()), &GATEWAY.octets()) + u64::from(TCP) + tcp_len as u64;
    let word = u64::from(FILL) << 8 | u64::from(FILL);
    let odd = if segment.payload % 2 == 1 { u64::from(FILL) << 8 } else { 0 };
    let sum = fold(header + pseudo + word * (segment.payload as u64 / 2) + odd);
    out[at + 16..at + 18].copy_from_slice(&(!sum).to_be_bytes());
    out.resize(out.len() + segment.payload, FILL);
}

/// Adds 16-bit words (RFC 1071).
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    sum + bytes.chunks(2).map(word).sum::<u64>()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over a whole segment with its pseudo header is all ones when its checksum is right.
    fn is_right(frame: &[u8]) -> bool {
        let (ip, tcp) = (&frame[14..34], &frame[34..]);
        let pseudo = add(0, &ip[12..20]) + u64::from(TCP) + tcp.len() as u64;
        fold(add(0, ip)) == 0xffff && fold(add(pseudo, tcp)) == 0xffff
    }

    #[test]
    fn segments_have_right_checksums_and_come_back() {
        for (mss, payload) in [(Some(1460), 0), (None, 0), (None, 1), (None, 1460), (None, 65_480)] {
            let mut frame = Vec::new();
            let flags = if mss.is_some() { SYN } else { ACK | PSH };
            let out = Out { from: 7, to: 8, seq: 1 << 31, ack: 3, flags, window: 9, mss, payload };
            tcp(&mut frame, &[1; 6], &out);
            assert!(is_right(&frame), "{payload}");
            let Frame::Tcp(back) = parse(&frame) else { panic!("no segment") };
            assert_eq!((back.from, back.to, back.seq, back.ack), (7, 8, 1 << 31, 3));
            assert_eq!((back.flags, back.window, back.payload.len()), (flags, 9, payload));
            assert_eq!(back.mss(), mss.unwrap_or(536));
            assert_eq!(back.window_shift(), mss.map(|_| WINDOW_SHIFT));
        }
    }

    #[test]
    fn nonsense_is_no_segment() {
        let mut frame = Vec::new();
        let out = Out { from: 7, to: 8, seq: 1, ack: 3, flags: SYN, window: 9, mss: Some(9), payload: 3 };
        tcp(&mut frame, &[1; 6], &out);
        for len in 0..frame.len() {
            assert_eq!(parse(&frame[..len]), Frame::Other, "{len}");
        }
        // Options that lead past their end.
        frame[34 + 21] = 0;
        let Frame::Tcp(segment) = parse(&frame) else { panic!("no segment") };
        assert_eq!(segment.mss(), 536);
    }
}
