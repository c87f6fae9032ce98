//! What a request costs on the host, without a machine around it.
//!
//! Each row is the median of many batches, in microseconds a request. Depth is the number of components of the path
//! that is walked for it (docs/adr/0106).

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hostfs::{Folder, Ids, Reply, Server};

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIRPLUS: u32 = 44;

/// Batches of a row, and requests of a batch.
const BATCHES: usize = 101;
const BATCH: usize = 200;
/// Files of the directory that is listed.
const FILES: usize = 1000;

/// A guest that asks one thing after another.
struct Guest {
    server: Server,
    reply: Reply,
}

impl Guest {
    /// Sends a request; its reply without the header.
    fn ask(&mut self, op: u32, node: u64, args: &[u8]) -> Result<&[u8]> {
        let mut raw = [(40 + args.len() as u32).to_le_bytes(), op.to_le_bytes()].concat();
        raw.extend(1u64.to_le_bytes());
        raw.extend(node.to_le_bytes());
        raw.resize(40, 0);
        raw.extend_from_slice(args);
        self.server.answer(&raw, 1 << 20, &mut self.reply);
        let (head, body) = self.reply.bytes().split_at_checked(16).context("no reply")?;
        ensure!(head[4..8] == [0; 4], "request {op} failed: {:?}", &head[4..8]);
        Ok(body)
    }

    /// The first number of a reply: a node or a handle.
    fn number(&mut self, op: u32, node: u64, args: &[u8]) -> Result<u64> {
        let body = self.ask(op, node, args)?;
        Ok(u64::from_le_bytes(body.first_chunk().copied().context("a short reply")?))
    }
}

/// Prints the median time of `work`, which does `each` requests, in µs a request.
fn row(what: &str, each: usize, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let mut times = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6 / each as f64);
    }
    times.sort_by(f64::total_cmp);
    println!("{what:<44} {:>8.2} µs", times[BATCHES / 2]);
    Ok(())
}

fn read_args(fh: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut args = [fh.to_le_bytes(), offset.to_le_bytes()].concat();
    args.extend(size.to_le_bytes());
    args.resize(40, 0);
    args
}

/// Prints all rows.
///
/// # Errors
/// The host's, or a request that fails.
pub fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let deep = dir.path().join("a/b/c/d/e");
    fs::create_dir_all(&deep)?;
    fs::create_dir(dir.path().join("many"))?;
    for place in [dir.path(), &deep] {
        fs::write(place.join("f"), vec![7; 1 << 20])?;
    }
    for i in 0..FILES {
        fs::write(dir.path().join(format!("many/file-{i}")), "")?;
    }
    let folder = Folder::open(dir.path(), "/srv", false)?;
    let mut guest = Guest { server: Server::new(vec![folder], Ids::own()), reply: Reply::default() };
    let mut init: Vec<u8> = [7u32, 38, 0, u32::MAX].iter().flat_map(|v| v.to_le_bytes()).collect();
    init.resize(64, 0);
    guest.ask(INIT, 0, &init)?;
    let top = guest.number(LOOKUP, 1, b"0\0")?;
    let mut bottom = top;
    for name in [b"a\0", b"b\0", b"c\0", b"d\0", b"e\0"] {
        bottom = guest.number(LOOKUP, bottom, name)?;
    }
    for (depth, parent) in [(1, top), (6, bottom)] {
        names(&mut guest, depth, parent)?;
    }
    data(&mut guest, top)?;
    list(&mut guest, top)
}

fn names(guest: &mut Guest, depth: usize, parent: u64) -> Result<()> {
    let file = guest.number(LOOKUP, parent, b"f\0")?;
    row(&format!("LOOKUP, depth {depth}"), BATCH, || {
        (0..BATCH).try_for_each(|_| guest.ask(LOOKUP, parent, b"f\0").map(drop))
    })?;
    row(&format!("GETATTR, depth {depth}"), BATCH, || {
        (0..BATCH).try_for_each(|_| guest.ask(GETATTR, file, &[0; 16]).map(drop))
    })?;
    row(&format!("OPEN and RELEASE, depth {depth}"), BATCH, || {
        (0..BATCH).try_for_each(|_| {
            let fh = guest.number(OPEN, file, &[0; 8])?;
            guest.ask(RELEASE, file, &read_args(fh, 0, 0)).map(drop)
        })
    })
}

fn data(guest: &mut Guest, top: u64) -> Result<()> {
    let file = guest.number(LOOKUP, top, b"f\0")?;
    let fh = guest.number(OPEN, file, &[2, 0, 0, 0, 0, 0, 0, 0])?;
    for size in [4 << 10, 128 << 10, 1008 << 10] {
        row(&format!("READ of {} KiB", size >> 10), 20, || {
            (0..20u64).try_for_each(|i| guest.ask(READ, file, &read_args(fh, i * 16, size)).map(drop))
        })?;
    }
    let mut write = read_args(fh, 0, 4096);
    write.resize(40 + 4096, 7);
    row("WRITE of 4 KiB", BATCH, || (0..BATCH).try_for_each(|_| guest.ask(WRITE, file, &write).map(drop)))
}

fn list(guest: &mut Guest, top: u64) -> Result<()> {
    let many = guest.number(LOOKUP, top, b"many\0")?;
    let fh = guest.number(OPENDIR, many, &[0; 8])?;
    row("READDIRPLUS, an entry", FILES, || guest.ask(READDIRPLUS, many, &read_args(fh, 0, 1 << 20)).map(drop))
}
