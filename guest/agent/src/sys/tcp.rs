//! Resetting TCP connections whose peers are gone, through the kernel's socket diagnostics (sock_diag(7),
//! linux/inet_diag.h). Connections of the loopback stay: both their ends were restored.
#![allow(unsafe_code)] // netlink sockets have no safe wrapper

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::io;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING; TIME_WAIT ends by itself.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const SOCKET_ID: usize = 48;
/// Connections closed at most; more are left to their own time-outs.
const LIMIT: usize = 65536;

/// One connection as the kernel names it.
struct Connection {
    family: u8,
    id: [u8; SOCKET_ID],
}

impl Connection {
    /// Whether both ends are on this machine's loopback.
    fn local(&self) -> bool {
        let address = |at: usize| self.id.get(at..at + 16).unwrap_or_default();
        [address(4), address(20)].iter().all(|address| match (self.family, address) {
            (family, [127, ..]) if i32::from(family) == libc::AF_INET => true,
            (_, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, ..]) => true,
            (_, [zeros @ .., 1]) => zeros.iter().all(|byte| *byte == 0),
            _ => false,
        })
    }
}

/// Resets every TCP connection to the outside; gives their number.
///
/// # Errors
/// The kernel's: no socket diagnostics (`CONFIG_INET_DIAG`), no right to close (`CONFIG_INET_DIAG_DESTROY`).
pub fn reset_remote() -> io::Result<u32> {
    let socket = open()?;
    let mut closed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for connection in list(&socket, family as u8)?.iter().filter(|connection| !connection.local()) {
            request(&socket, SOCK_DESTROY, REQUEST | ACK, connection.family, STATES, &connection.id)?;
            match acknowledged(&socket)? {
                0 => closed += 1,
                // It ended by itself meanwhile.
                code if code == -libc::ENOENT => {}
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }
    Ok(closed)
}

fn open() -> io::Result<OwnedFd> {
    const NETLINK_SOCK_DIAG: libc::c_int = 4;
    // SAFETY: socket has no memory effects; the descriptor is owned as soon as it exists.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Sends a `struct inet_diag_req_v2`.
fn request(
    socket: &OwnedFd,
    kind: u16,
    flags: u16,
    family: u8,
    states: u32,
    id: &[u8; SOCKET_ID],
) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + 8 + SOCKET_ID);
    message.extend_from_slice(&((HEADER + 8 + SOCKET_ID) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend_from_slice(&states.to_ne_bytes());
    message.extend_from_slice(id);
    // SAFETY: the buffer is valid for its length; a netlink socket that is not connected sends to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// One netlink message: its type, its body, what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn error_code(body: &[u8]) -> i32 {
    body.get(..4).and_then(|code| code.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes)
}

fn acknowledged(socket: &OwnedFd) -> io::Result<i32> {
    let mut buffer = [0u8; 1024];
    let got = receive(socket, &mut buffer)?;
    let body = message(buffer.get(..got).unwrap_or_default()).map(|(_, body, _)| body);
    Ok(error_code(body.unwrap_or_default()))
}

fn list(socket: &OwnedFd, family: u8) -> io::Result<Vec<Connection>> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    request(socket, SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, family, STATES, &[0; SOCKET_ID])?;
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 32 << 10];
    loop {
        let got = receive(socket, &mut buffer)?;
        let mut rest = buffer.get(..got).unwrap_or_default();
        while let Some((kind, body, later)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(found),
                // An address family that the kernel lacks has no connections.
                NLMSG_ERROR if error_code(body) == -libc::ENOENT => return Ok(found),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error(-error_code(body))),
                _ => {}
            }
            // struct inet_diag_msg: four bytes, then the socket's id.
            if let Some(id) =
                body.get(4..).and_then(|tail| tail.first_chunk()).filter(|_| found.len() < LIMIT)
            {
                found.push(Connection { family: body.first().copied().unwrap_or(family), id: *id });
            }
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(family: i32, from: &[u8], to: &[u8]) -> Connection {
        let mut id = [0; SOCKET_ID];
        id[4..4 + from.len()].copy_from_slice(from);
        id[20..20 + to.len()].copy_from_slice(to);
        Connection { family: family as u8, id }
    }

    #[test]
    fn only_a_connection_with_both_ends_here_is_local() {
        let v6_loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
        assert!(connection(libc::AF_INET, &[127, 0, 0, 1], &[127, 3, 2, 1]).local());
        assert!(!connection(libc::AF_INET, &[10, 0, 2, 15], &[127, 0, 0, 1]).local());
        assert!(!connection(libc::AF_INET, &[10, 0, 2, 15], &[9, 9, 9, 9]).local());
        assert!(connection(libc::AF_INET6, &v6_loopback, &v6_loopback).local());
        assert!(connection(libc::AF_INET6, &mapped, &mapped).local());
        assert!(!connection(libc::AF_INET6, &[0x20, 1, 0xd, 0xb8], &v6_loopback).local());
    }

    #[test]
    fn the_kernel_lists_connections_of_this_machine() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let client =
            std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let port = client.local_addr().expect("an address").port().to_be_bytes();
        match open().and_then(|socket| list(&socket, libc::AF_INET as u8)) {
            Ok(found) => {
                let ours = found.iter().find(|connection| connection.id.get(..2) == Some(&port));
                assert!(
                    ours.is_some_and(Connection::local),
                    "{} connections, ours not among them",
                    found.len()
                );
            }
            Err(error) => eprintln!("SKIPPED: this kernel has no socket diagnostics: {error}"),
        }
    }
}
