//! Published ports: a listener on the host, the guest's loopback behind it, over the agent.
//!
//! No network device is needed: each connection is a vsock connection on which the agent joins a
//! TCP connection inside the guest.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use agent_protocol::{Client, Request, Transport};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Most connections at a time for one machine; more wait in the listener's backlog.
pub(crate) const CONNECTIONS: usize = 512;

/// One `-p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    pub host: SocketAddr,
    pub guest: u16,
}

/// A bound listener that does not carry anything yet.
pub struct Bound {
    listener: TcpListener,
    publish: Publish,
}

/// Takes the host's port, before the machine starts: a taken port is the user's to resolve.
///
/// # Errors
/// [`Error::PortTaken`].
pub fn bind(publish: Publish) -> Result<Bound, Error> {
    let listener = TcpListener::bind(publish.host)
        .map_err(|source| Error::PortTaken { address: publish.host.to_string(), source })?;
    Ok(Bound { listener, publish })
}

/// Makes a stream to the guest's agent.
pub type Connect = Arc<dyn Fn() -> Result<UnixStream, Error> + Send + Sync>;

impl Bound {
    /// The address that is listened on, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.publish.host)
    }

    /// The guest's port.
    pub fn guest(&self) -> u16 {
        self.publish.guest
    }

    /// Starts carrying connections, on threads that wait while nothing happens.
    ///
    /// # Errors
    /// The host's.
    pub fn serve(self, connect: Connect) -> io::Result<()> {
        let guest = self.publish.guest;
        let live = Arc::new(AtomicUsize::new(0));
        let accept = move || {
            for stream in self.listener.incoming().flatten() {
                if live.load(Ordering::Acquire) >= CONNECTIONS {
                    continue;
                }
                let (connect, count) = (connect.clone(), live.clone());
                live.fetch_add(1, Ordering::AcqRel);
                let carried = spawn(move || {
                    let _ = carry(stream, guest, &connect);
                    count.fetch_sub(1, Ordering::AcqRel);
                });
                if carried.is_err() {
                    live.fetch_sub(1, Ordering::AcqRel);
                }
            }
        };
        spawn(accept)
    }
}

pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("forward".into()).stack_size(128 * 1024).spawn(work).map(drop)
}

fn carry(host: TcpStream, guest: u16, connect: &Connect) -> Result<(), Error> {
    let guest = reach(guest, connect)?;
    let _ = host.set_nodelay(true);
    join(host, guest);
    Ok(())
}

/// A stream to something that listens on the guest's loopback.
pub(crate) fn reach(port: u16, connect: &Connect) -> Result<UnixStream, Error> {
    let mut client = Client::new(connect()?);
    client.call(&Request::Forward { port, transport: Transport::Tcp })?;
    Ok(client.into_stream())
}

/// A stream with two halves.
pub(crate) trait Duplex: Read + Write + Send + Sized + 'static {
    fn again(&self) -> io::Result<Self>;
    fn end_writing(&self);
}

impl Duplex for TcpStream {
    fn again(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end_writing(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Duplex for UnixStream {
    fn again(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end_writing(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// Carries bytes both ways until both ends ended.
pub(crate) fn join(mut host: impl Duplex, mut guest: UnixStream) {
    let (Ok(mut host_in), Ok(mut guest_out)) = (host.again(), guest.again()) else { return };
    let up = thread::Builder::new().name("forward".into()).stack_size(128 * 1024).spawn(move || {
        let _ = pump(&mut host_in, &mut guest_out);
        guest_out.end_writing();
    });
    let _ = pump(&mut guest, &mut host);
    host.end_writing();
    if let Ok(up) = up {
        let _ = up.join();
    }
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0u8; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(buffer.get(..n).unwrap_or_default())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
