//! What the benchmarks of networks and folders have a guest do: each function takes words, and gives the time that it
//! took by the guest's clock and a value to check it by.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};

use crate::programs;
use crate::protocol::{Result, hash};
use crate::table::Outcome;

/// Addresses as every user-mode network has them: ours, libslirp's, and passt's when it is told.
const ADDRESSES: &str = "10.0.2.15/24,10.0.2.2";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Bytes of one `write` or `read` of a stream.
const PIECE: usize = 128 << 10;
/// Bytes of one read of a file.
const PAGE: usize = 4096;

/// Does what a line says.
///
/// # Errors
/// There is no such function, or it failed.
pub fn call(line: &str) -> Outcome {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    match (name, &words[..]) {
        ("network", []) => network(),
        ("send", [port, bytes]) => send(number(port)?, number(bytes)?),
        ("receive", [port, bytes]) => receive(number(port)?, number(bytes)?),
        ("trips", [port, count]) => trips(number(port)?, number(count)?),
        ("mount", [tag, place]) => mount_folder(tag, place),
        ("read", ["direct", path, count]) => read_pages(path, number(count)?, OFlags::DIRECT),
        ("read", ["cached", path, count]) => read_pages(path, number(count)?, OFlags::empty()),
        ("drop-caches", []) => drop_caches(),
        ("sh", _) => shell(rest),
        _ => Err(format!("no such call: {line:?}")),
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T> {
    word.parse().map_err(|_| format!("no number: {word}"))
}

/// The time of `work` in ns, beside what it gives.
fn timed(work: impl FnOnce() -> Result<u64>) -> Outcome {
    let begun = Instant::now();
    let check = work()?;
    Ok((begun.elapsed().as_nanos() as u64, check))
}

fn network() -> Outcome {
    timed(|| agent::network::bring_up(ADDRESSES).map(|()| 0).map_err(|e| format!("eth0: {e}")))
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((GATEWAY, port)).map_err(|e| format!("connecting to {port}: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// Sends to the benchmark's sink, which answers when it has everything.
fn send(port: u16, bytes: u64) -> Outcome {
    let mut stream = connect(port)?;
    let piece = vec![0x5a; PIECE];
    timed(|| {
        let mut left = bytes;
        while left > 0 {
            let n = left.min(PIECE as u64) as usize;
            stream.write_all(&piece[..n]).map_err(|e| format!("sending: {e}"))?;
            left -= n as u64;
        }
        stream.read_exact(&mut [0]).map_err(|e| format!("the sink's answer: {e}"))?;
        Ok(bytes)
    })
}

/// Receives from the benchmark's source, which begins when it is told.
fn receive(port: u16, bytes: u64) -> Outcome {
    let mut stream = connect(port)?;
    let mut piece = vec![0; PIECE];
    timed(|| {
        stream.write_all(&[1]).map_err(|e| format!("telling the source: {e}"))?;
        let mut got = 0;
        while got < bytes {
            match stream.read(&mut piece) {
                Ok(0) => return Err(format!("the source ended after {got} bytes")),
                Ok(n) => got += n as u64,
                Err(e) => return Err(format!("receiving: {e}")),
            }
        }
        Ok(got)
    })
}

/// Round trips of one byte, all together.
fn trips(port: u16, count: u64) -> Outcome {
    let mut stream = connect(port)?;
    let mut byte = [0];
    timed(|| {
        for _ in 0..count {
            stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).map_err(|e| e.to_string())?;
        }
        Ok(count)
    })
}

fn mount_folder(tag: &str, place: &str) -> Outcome {
    fs::create_dir_all(place).map_err(|e| format!("{place}: {e}"))?;
    let mounted = mount(tag, place, "virtiofs", MountFlags::empty(), c"");
    mounted.map_err(|e| format!("mounting {tag} at {place}: {e}"))?;
    Ok((0, 0))
}

/// Reads `count` pages of a file one by one, from its beginning and around.
fn read_pages(path: &str, count: u64, how: OFlags) -> Outcome {
    let open = OpenOptions::new().read(true).custom_flags(how.bits() as i32).open(path);
    let file = open.map_err(|e| format!("{path}: {e}"))?;
    let pages = file.metadata().map_err(|e| format!("{path}: {e}"))?.len() / PAGE as u64;
    if pages == 0 {
        return Err(format!("{path} is shorter than a page"));
    }
    // O_DIRECT wants aligned memory.
    let mut room = vec![0; 2 * PAGE];
    let skip = room.as_ptr().align_offset(PAGE);
    let page = &mut room[skip..skip + PAGE];
    timed(|| {
        let mut sum = 0u64;
        for i in 0..count {
            file.read_exact_at(page, i % pages * PAGE as u64).map_err(|e| format!("{path}: {e}"))?;
            sum = sum.wrapping_mul(31).wrapping_add(u64::from(page[0]) + u64::from(page[PAGE - 1]));
        }
        Ok(sum)
    })
}

/// The guest forgets pages, names and attributes.
fn drop_caches() -> Outcome {
    rustix::fs::sync();
    let written = File::create("/proc/sys/vm/drop_caches").and_then(|mut file| file.write_all(b"3\n"));
    written.map_err(|e| format!("dropping caches: {e}"))?;
    Ok((0, 0))
}

/// A command line of the root's shell; its output is the check.
fn shell(line: &str) -> Outcome {
    timed(|| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).stdout(std::process::Stdio::piped());
        Ok(hash(&programs::output(&mut command)?))
    })
}
