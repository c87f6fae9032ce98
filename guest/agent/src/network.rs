//! The machine's network device: its addresses, routes and resolver, as the host says on the kernel's command line.
//!
//! There is no DHCP and no router advertisement: a machine is alone on its network, and everything is known before it
//! starts. Addresses need no detection of duplicates for the same reason. After a restore everything is still there.

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// rtnetlink(7), linux/rtnetlink.h.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// REQUEST, ACK.
const CHANGE: u16 = 0x1 | 0x4;
/// And CREATE, REPLACE; of a link the kernel refuses these.
const MAKE: u16 = CHANGE | 0x400 | 0x100;
const HEADER: usize = 16;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
/// IFA_F_NODAD.
const NO_DETECTION: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// Main table, installed at boot, everywhere, unicast.
const ROUTE: [u8; 4] = [254, 3, 0, 1];

/// Addresses and gateways: `ADDRESS/PREFIX,GATEWAY`, repeated.
fn parse(words: &str) -> Option<Vec<(IpAddr, u8, IpAddr)>> {
    let words: Vec<&str> = words.split(',').collect();
    let pair = |pair: &[&str]| {
        let [address, gateway] = pair else { return None };
        let (address, prefix) = address.split_once('/')?;
        Some((address.parse().ok()?, prefix.parse().ok()?, gateway.parse().ok()?))
    };
    words.chunks(2).map(pair).collect()
}

/// Sets the device up and makes its IPv4 gateway the resolver.
///
/// # Errors
/// The kernel's; no device `eth0`; words that are no addresses.
pub fn bring_up(words: &str) -> io::Result<()> {
    let wanted = parse(words).ok_or(io::ErrorKind::InvalidInput)?;
    let index = index()?;
    let socket = socket()?;
    let mut link = vec![0; 4];
    link.extend_from_slice(&index.to_ne_bytes());
    link.extend_from_slice(&IFF_UP.to_ne_bytes());
    link.extend_from_slice(&IFF_UP.to_ne_bytes());
    request(&socket, NEW_LINK, CHANGE, &link)?;
    for (address, prefix, gateway) in &wanted {
        let (family, bytes) = octets(*address);
        let mut body = vec![family, *prefix, NO_DETECTION, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &bytes);
        attribute(&mut body, IFA_ADDRESS, &bytes);
        request(&socket, NEW_ADDRESS, MAKE, &body)?;
        let mut body = vec![family, 0, 0, 0];
        body.extend_from_slice(&ROUTE);
        body.extend_from_slice(&[0; 4]);
        attribute(&mut body, RTA_GATEWAY, &octets(*gateway).1);
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        request(&socket, NEW_ROUTE, MAKE, &body)?;
    }
    let resolver = wanted.iter().find(|(address, ..)| address.is_ipv4()).map(|(.., gateway)| *gateway);
    resolve_by(resolver.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

/// Gives the device a hardware address of its own: a copy of a machine is another one to whoever names it by that. The
/// gateway learns it from the next frame. Without a device there is nothing to do.
///
/// # Errors
/// The kernel's.
pub fn renew_hardware_address() -> io::Result<()> {
    let index = match index() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        index => index?,
    };
    let mut address = [0u8; 6];
    rustix::rand::getrandom(&mut address, rustix::rand::GetRandomFlags::empty())?;
    // Locally administered, of one station (IEEE 802, 8.2.2).
    address[0] = 2;
    let mut link = vec![0; 4];
    link.extend_from_slice(&index.to_ne_bytes());
    link.extend_from_slice(&[0; 8]);
    attribute(&mut link, IFLA_ADDRESS, &address);
    request(&socket()?, NEW_LINK, CHANGE, &link)
}

fn index() -> io::Result<u32> {
    let text = std::fs::read_to_string("/sys/class/net/eth0/ifindex")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Replaces /etc/resolv.conf, which may be a link of the image to nowhere.
fn resolve_by(resolver: IpAddr) -> io::Result<()> {
    let (path, text) = ("/etc/resolv.conf", format!("nameserver {resolver}\n"));
    if std::fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let _ = std::fs::create_dir("/etc");
    std::fs::write(path, text)?;
    // The agent's umask is 0.
    Ok(rustix::fs::chmod(path, rustix::fs::Mode::from_bits_retain(0o644))?)
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    }
}

/// Appends a `struct rtattr` with its payload, filled up to a whole word.
fn attribute(body: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    body.extend_from_slice(&((4 + payload.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(payload);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Sends a request and takes its acknowledgement.
fn request(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 1024];
    let (_, n) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    // A header, then the negated error code; 0 acknowledges.
    let code =
        answer.get(HEADER..n).and_then(|rest| rest.first_chunk()).map(|code| i32::from_ne_bytes(*code));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_addresses_and_gateways_are_read() {
        let read = parse("10.0.2.15/24,10.0.2.2,fd00::15/64,fd00::2").expect("two pairs");
        let [(a, 24, b), (_, 64, _)] = read[..] else { panic!("{read:?}") };
        assert_eq!((a.to_string(), b.to_string()), ("10.0.2.15".into(), "10.0.2.2".into()));
        for bad in ["", "10.0.2.15/24", "10.0.2.15,10.0.2.2", "x/24,10.0.2.2", "10.0.2.15/300,10.0.2.2"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
