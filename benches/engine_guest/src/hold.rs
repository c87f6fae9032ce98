//! A service with data in memory that it looks through: what a resume is measured with that finds nothing in the host's
//! memory.
//!
//! It looks through all of it whenever somebody connects, as a server does that is asked for something, and once when
//! it finds that the machine was resumed; then it says so.

use std::fs::File;
use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::micro::Random;
use crate::protocol::Result;

/// Changes with every resume (docs/scenarios/randomness.md).
const GENERATION: &str = "/run/smolvm/generation";
/// Where it answers HTTP, of this guest only.
const ADDRESS: &str = "127.0.0.1:8000";
/// How often it looks whether it was resumed.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
const PAGE_WORDS: usize = 4096 / size_of::<u64>();
const MIB_WORDS: usize = (1 << 20) / size_of::<u64>();

/// Holds `mib` MiB; `how`: `pages` looks at a word of each page, `bytes` at all of them. Ends when it is ended.
///
/// # Errors
/// It cannot listen, or is no guest of ours.
pub fn hold(mib: &str, how: &str) -> Result<()> {
    let mib: usize = mib.parse().map_err(|_| format!("no size: {mib}"))?;
    let step = match how {
        "pages" => PAGE_WORDS,
        "bytes" => 1,
        _ => return Err(format!("{how} is neither `pages` nor `bytes`")),
    };
    let mut random = Random::new(mib as u64);
    let data: Vec<u64> = (0..mib * MIB_WORDS).map(|_| random.next()).collect();
    let look = || data.iter().step_by(step).fold(0u64, |sum, word| sum.wrapping_add(*black_box(word)));
    let sum = look();
    let generation = File::open(GENERATION).map_err(|e| format!("{GENERATION}: {e}"))?;
    let listener = TcpListener::bind(ADDRESS).map_err(|e| format!("{ADDRESS}: {e}"))?;
    let mut before = id(&generation)?;
    loop {
        let mut asked = [PollFd::new(&listener, PollFlags::IN)];
        // A signal or the freeze may end the wait early: then nothing is there.
        let _ = poll(&mut asked, Some(&LOOK));
        let asked = !asked[0].revents().is_empty();
        let now = id(&generation)?;
        if now != before {
            before = now;
            println!("{}", if look() == sum { DONE } else { "the data are not what they were" });
        }
        if asked && let Ok((stream, _)) = listener.accept() {
            answer(stream, look() == sum);
        }
    }
}

/// What it says when it has looked through its memory after a resume.
pub const DONE: &str = "looked through";

fn id(generation: &File) -> Result<[u8; 33]> {
    let mut id = [0; 33];
    generation.read_exact_at(&mut id, 0).map_err(|e| format!("{GENERATION}: {e}"))?;
    Ok(id)
}

/// To whom goes away meanwhile nothing has to be said.
fn answer(mut stream: TcpStream, good: bool) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 1 << 16 {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => request.extend_from_slice(&part[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
    let status = if good { "200 OK" } else { "500 Wrong" };
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}
