//! The host's programs that the guest talks to: on the loopback, each on a port of its own.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::frames::FILL;

/// Bytes moved at a time.
const PIECE: usize = 256 << 10;
/// A thread for each connection needs little.
const STACK: usize = 64 << 10;

/// Ports of the three.
pub struct Server {
    /// Gives back what it gets, until the end.
    pub echo: u16,
    /// Takes [`Server::set_bytes`] bytes, then says so with one, then waits for the end.
    pub sink: u16,
    /// Waits for one byte, then gives [`Server::set_bytes`] bytes, then waits for the end.
    pub source: u16,
    bytes: Arc<AtomicU64>,
}

impl Server {
    /// Starts all three; they live as long as the process.
    ///
    /// # Errors
    /// The host's: no port.
    pub fn start() -> io::Result<Self> {
        let bytes = Arc::new(AtomicU64::new(0));
        let (for_sink, for_source) = (bytes.clone(), bytes.clone());
        Ok(Self {
            echo: listen(echo)?,
            sink: listen(move |stream| sink(stream, for_sink.load(Ordering::Acquire)))?,
            source: listen(move |stream| source(stream, for_source.load(Ordering::Acquire)))?,
            bytes,
        })
    }

    /// How much sink and source move on each connection from now on.
    pub fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
    }
}

fn listen(work: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // std's backlog of 128 is short for a thousand at once.
    rustix::net::listen(&listener, 4096)?;
    let port = listener.local_addr()?.port();
    let work = Arc::new(work);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let work = work.clone();
            let one = move || {
                let _ = stream.set_nodelay(true);
                // A connection that ends early is found by its other side.
                let _ = work(stream);
            };
            let _ = thread::Builder::new().stack_size(STACK).spawn(one);
        }
    });
    Ok(port)
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            n => stream.write_all(&piece[..n])?,
        }
    }
}

fn sink(mut stream: TcpStream, mut left: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while left > 0 {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            n => left = left.saturating_sub(n as u64),
        }
    }
    stream.write_all(&[FILL])?;
    until_end(&mut stream)
}

fn source(mut stream: TcpStream, mut left: u64) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    let piece = vec![FILL; PIECE];
    while left > 0 {
        let n = left.min(PIECE as u64);
        stream.write_all(&piece[..n as usize])?;
        left -= n;
    }
    until_end(&mut stream)
}

fn until_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = [0; 64];
    while stream.read(&mut rest)? > 0 {}
    Ok(())
}
