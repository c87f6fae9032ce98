//! Other machines on this host, reached by name.
//!
//! Problem: machines are each alone on a subnet of their own, without a bridge or a right that an ordinary user lacks.
//! Strategy: a name that the owner's [`Directory`] knows gets an address of a range that leads here; a connection to it
//! becomes one to that machine's Unix socket, which is told the port and says whether something listens there. TCP only.
//! Invariants: an address stands for the same name as long as the network lives; nothing is reached that the directory
//! does not name at that moment.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::sockopt;

/// Where the names' addresses are: 10.0.3.1 and on.
const RANGE: [u8; 3] = [10, 0, 3];
/// Most names; more are unknown.
const MAX_PEERS: usize = 250;
/// The other machine's word for "connected".
pub const PEER_CONNECTED: u8 = 1;

/// Who is there. Called on the network's own thread: it must not wait for anybody.
pub trait Directory: Send + Sync + std::fmt::Debug {
    /// The Unix socket where the machine of this name (lower case) takes connections: two bytes say the port, little
    /// end first; the answer is [`PEER_CONNECTED`], or the end.
    fn find(&self, name: &str) -> Option<PathBuf>;
}

/// The machines that this one asked for.
#[derive(Debug, Default)]
pub struct Peers {
    directory: Option<Arc<dyn Directory>>,
    names: Vec<String>,
}

impl Peers {
    pub fn new(directory: Option<Arc<dyn Directory>>) -> Self {
        Self { directory, names: Vec::new() }
    }

    /// The address of a machine that is there.
    pub fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
        self.directory.as_ref()?.find(name)?;
        let at = match self.names.iter().position(|known| known == name) {
            Some(at) => at,
            None if self.names.len() < MAX_PEERS => {
                self.names.push(name.to_owned());
                self.names.len() - 1
            }
            None => return None,
        };
        let [a, b, c] = RANGE;
        Some(Ipv4Addr::new(a, b, c, at as u8 + 1))
    }

    /// Whether an address is one of ours, and the socket of the machine behind it while it is there.
    pub fn socket(&self, address: IpAddr) -> Option<Option<PathBuf>> {
        let IpAddr::V4(v4) = address else { return None };
        let [front @ .., last] = v4.octets();
        let directory = self.directory.as_ref().filter(|_| front == RANGE)?;
        let name = usize::from(last).checked_sub(1).and_then(|at| self.names.get(at));
        Some(name.and_then(|name| directory.find(name)))
    }
}

/// The host's side of a connection.
pub enum Host {
    Net(TcpStream),
    Peer(UnixStream),
}

impl Host {
    /// On its way to `port` of the machine that listens at `socket`.
    pub fn peer(socket: &Path, port: u16) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        stream.write_all(&port.to_le_bytes())?;
        Ok(Host::Peer(stream))
    }

    /// How connecting went; `None` when that is still open.
    pub fn opened(&mut self, writable: bool) -> Option<io::Result<()>> {
        match self {
            Host::Net(stream) => {
                let outcome = sockopt::socket_error(&*stream).and_then(|outcome| outcome);
                if outcome.is_ok() && !writable { None } else { Some(outcome.map_err(io::Error::from)) }
            }
            Host::Peer(stream) => {
                let mut word = [0];
                match stream.read(&mut word) {
                    Ok(1) if word == [PEER_CONNECTED] => Some(Ok(())),
                    Ok(_) => Some(Err(ErrorKind::ConnectionRefused.into())),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
                    Err(e) => Some(Err(e)),
                }
            }
        }
    }

    /// Ends one direction or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Host::Net(stream) => stream.shutdown(how),
            Host::Peer(stream) => stream.shutdown(how),
        }
    }
}

impl Read for Host {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Host::Net(stream) => stream.read(to),
            Host::Peer(stream) => stream.read(to),
        }
    }
}

impl Write for Host {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Host::Net(stream) => stream.write(from),
            Host::Peer(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Host::Net(stream) => stream.as_fd(),
            Host::Peer(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Two;

    impl Directory for Two {
        fn find(&self, name: &str) -> Option<PathBuf> {
            ["db", "web"].contains(&name).then(|| name.into())
        }
    }

    #[test]
    fn names_keep_their_addresses() {
        let mut peers = Peers::new(Some(Arc::new(Two)));
        let db = peers.address("db").unwrap();
        let web = peers.address("web").unwrap();
        assert_eq!((db.octets(), web.octets()), ([10, 0, 3, 1], [10, 0, 3, 2]));
        assert_eq!((peers.address("db"), peers.address("nobody")), (Some(db), None));
        assert_eq!(peers.socket(web.into()), Some(Some("web".into())));
        assert_eq!(peers.socket(Ipv4Addr::new(10, 0, 3, 9).into()), Some(None));
        assert_eq!(peers.socket(Ipv4Addr::new(10, 0, 2, 2).into()), None);
        assert_eq!(Peers::default().socket(db.into()), None);
    }
}
