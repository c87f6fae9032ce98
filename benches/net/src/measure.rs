//! Turns: every row by every relay, then all again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::nic::Nic;
use crate::options::Relays;
use crate::relay::{Kind, Peers, Relay};
use crate::report;
use crate::server::Server;
use crate::tcp::State;

/// The largest segment of a guest with our MTU, and of one with Ethernet's.
const LARGE: u16 = 65_480;
const SMALL: u16 = 1460;
/// How long a relay may take to let go of connections that are over.
const SETTLE: Duration = Duration::from_secs(20);

/// What one stream cost.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    pub bytes: u64,
    pub seconds: f64,
    /// Of the relay's process.
    pub cpu_seconds: f64,
    /// Both ways.
    pub frames: u64,
    pub losses: u64,
}

/// Which way, and with which segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    Out,
    In,
    SmallOut,
    SmallIn,
}

impl Row {
    pub const ALL: [Self; 4] = [Self::Out, Self::In, Self::SmallOut, Self::SmallIn];

    pub fn name(self) -> &'static str {
        match self {
            Self::Out => "guest → host",
            Self::In => "host → guest",
            Self::SmallOut => "guest → host, 1460-byte segments",
            Self::SmallIn => "host → guest, 1460-byte segments",
        }
    }

    fn is_small(self) -> bool {
        matches!(self, Self::SmallOut | Self::SmallIn)
    }
}

/// A relay with its guest, and what was measured of it.
pub struct Contender {
    pub kind: Kind,
    relay: Relay,
    nic: Nic,
    pub streams: Vec<(Row, Stream)>,
    /// Seconds of round trips.
    pub trips: Vec<f64>,
    pub crowd: Option<Crowd>,
}

/// Many connections at once.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    pub connections: usize,
    /// Until all had their answers.
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// Descriptors of the process before, at the height, and after the end.
    pub descriptors: [usize; 3],
}

/// Runs everything and tells.
///
/// # Errors
/// A relay that does not do its work.
pub fn run(options: &Relays) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let work = dir.path();
    let peers = Peers::find(work)?;
    let server = Server::start()?;
    raise_descriptors()?;
    let load = engine::host::load();
    let wanted = |kind: &Kind| options.only.as_ref().is_none_or(|word| kind.name().contains(word.as_str()));
    let mut all = Vec::new();
    for kind in Kind::ALL.into_iter().filter(wanted) {
        let (relay, stream) = Relay::start(kind, &peers, work)?;
        let nic = Nic::new(stream, LARGE).with_context(|| format!("at {}", kind.name()))?;
        all.push(Contender { kind, relay, nic, streams: Vec::new(), trips: Vec::new(), crowd: None });
    }
    let mut loopback = Vec::new();
    for turn in 0..options.runs.max(1) {
        eprintln!("turn {} of {}, load {}", turn + 1, options.runs, engine::host::load());
        for row in Row::ALL.into_iter().filter(|row| row.name().starts_with(options.rows.as_str())) {
            for contender in &mut all {
                let name = contender.kind.name();
                contender.stream(row, options, &server).with_context(|| format!("{name}: {}", row.name()))?;
            }
        }
        loopback.extend(direct_trips(server.echo, options.trips)?);
        for contender in &mut all {
            let name = contender.kind.name();
            contender.round_trips(&server, options.trips).with_context(|| format!("{name}: trips"))?;
        }
    }
    for contender in &mut all {
        let name = contender.kind.name();
        let crowd = contender.crowd(&server, options.connections);
        match crowd {
            Ok(crowd) => contender.crowd = Some(crowd),
            // A peer that cannot is told of in the table.
            Err(e) if !matches!(contender.kind, Kind::Ours | Kind::OursWithChecksums) => {
                eprintln!("{name}: {} connections at once: {e:#}", options.connections);
            }
            Err(e) => return Err(e.context(format!("{name}: connections at once"))),
        }
    }
    report::tell(options, &peers.versions, &load, &all, &mut loopback)
}

/// As many descriptors as this process and its children may have.
fn raise_descriptors() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })?)
}

/// Round trips of one byte over the host's loopback, for comparison: seconds each.
fn direct_trips(port: u16, count: usize) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    let mut trip = || {
        let begun = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    (0..count).map(|_| trip()).collect()
}

impl Contender {
    fn stream(&mut self, row: Row, options: &Relays, server: &Server) -> Result<()> {
        let bytes = if row.is_small() { options.small_mib } else { options.mib } << 20;
        let out = matches!(row, Row::Out | Row::SmallOut);
        server.set_bytes(bytes);
        self.nic.offer = if row.is_small() { SMALL } else { LARGE };
        let name = self.nic.connect(if out { server.sink } else { server.source });
        self.nic.open(&[name])?;
        let (cpu, begun, counts) = (self.relay.cpu_ns(), Instant::now(), self.nic.counts);
        if row == Row::SmallOut {
            self.nic.tcp(name)?.limit_segments(SMALL);
        }
        let (send, want) = if out { (u32::try_from(bytes)?, 1) } else { (1, bytes) };
        self.nic.tcp(name)?.send(send);
        self.nic.until("the stream's end", |nic| nic.has_received(name, want))?;
        let seconds = begun.elapsed().as_secs_f64();
        let frames = self.nic.counts.sent + self.nic.counts.received - counts.sent - counts.received;
        let cpu_seconds = (self.relay.cpu_ns() - cpu) as f64 / 1e9;
        let losses = self.nic.losses();
        self.nic.finish(&[name])?;
        self.streams.push((row, Stream { bytes, seconds, cpu_seconds, frames, losses }));
        Ok(())
    }

    fn round_trips(&mut self, server: &Server, count: usize) -> Result<()> {
        self.nic.offer = LARGE;
        let name = self.nic.connect(server.echo);
        self.nic.open(&[name])?;
        for i in 1..=count as u64 {
            let begun = Instant::now();
            self.nic.tcp(name)?.send(1);
            self.nic.until("an answer", |nic| nic.has_received(name, i))?;
            self.trips.push(begun.elapsed().as_secs_f64());
        }
        self.nic.finish(&[name])
    }

    fn crowd(&mut self, server: &Server, connections: usize) -> Result<Crowd> {
        let before = self.relay.descriptors();
        let (cpu, begun) = (self.relay.cpu_ns(), Instant::now());
        let names: Vec<u16> = (0..connections).map(|_| self.nic.connect(server.echo)).collect();
        self.nic.open(&names)?;
        for name in &names {
            self.nic.tcp(*name)?.send(1);
        }
        self.nic.until("all answers", |nic| names.iter().all(|name| nic.has_received(*name, 1)))?;
        let seconds = begun.elapsed().as_secs_f64();
        let cpu_seconds = (self.relay.cpu_ns() - cpu) as f64 / 1e9;
        let height = self.relay.descriptors();
        self.nic.finish(&names)?;
        let end = Instant::now() + SETTLE;
        while self.relay.descriptors() > before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let after = self.relay.descriptors();
        if self.kind == Kind::Ours {
            ensure!(after <= before, "{after} descriptors after the end, {before} before");
        }
        Ok(Crowd { connections, seconds, cpu_seconds, descriptors: [before, height, after] })
    }
}

impl Nic {
    /// Whether a connection got that much (or was reset, which its end then shows).
    fn has_received(&mut self, name: u16, bytes: u64) -> bool {
        self.peek(name).is_none_or(|tcp| tcp.received >= bytes || tcp.state == State::Reset)
    }
}
