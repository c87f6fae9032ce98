//! Our network as a process behind a socket: what `devices/net` does with a guest's queues, with a [`Wire`] instead.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use host::{Interest, Poller, Ready};
use netstack::{Config, GUEST_MAC, Link, Policy, ROUND_BYTES, ROUND_FRAMES, Stack};

use crate::frames::MAC;
use crate::wire::Wire;

const WIRE: u64 = u64::MAX;

/// The wire as the stack's link. The stack knows one guest's hardware address; ours has its own.
struct Port<'a>(&'a mut Wire);

impl Link for Port<'_> {
    fn ready(&mut self) -> bool {
        self.0.has_room()
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.queue(|out| {
            let (to, rest) = frame.split_at(GUEST_MAC.len().min(frame.len()));
            out.extend_from_slice(if to == GUEST_MAC { &MAC } else { to });
            out.extend_from_slice(rest);
        });
    }
}

/// Serves the first who connects to `socket`, until he goes.
///
/// # Errors
/// The host's.
pub fn child(socket: &Path, checksums: bool) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    let (stream, _) = listener.accept()?;
    drop(listener);
    serve(stream, checksums)
}

/// Serves one guest until it goes. `checksums`: as for a driver that wants TCP's computed.
///
/// # Errors
/// The host's.
pub fn serve(stream: UnixStream, checksums: bool) -> Result<()> {
    let poller = Arc::new(Poller::new()?);
    let opened = vec!["127.0.0.1".parse().map_err(anyhow::Error::msg)?];
    let config = Config { policy: Policy::new(Vec::new(), Vec::new(), opened), ..Config::default() };
    let mut stack = Stack::new(config, poller.clone())?;
    stack.reset(!checksums);
    let mut wire = Wire::new(stream)?;
    poller.add(&wire, WIRE, Interest::BOTH)?;
    let (mut ready, mut timeout) = (Vec::<Ready>::new(), None);
    // The poller tells of changes once: what it told of is true until the kernel says "would block".
    let mut readable = true;
    let mut frame = Vec::new();
    loop {
        poller.wait(&mut ready, timeout)?;
        readable |= ready.iter().any(|r| r.token == WIRE && r.readable);
        wire.flush()?;
        if wire.has_room() {
            stack.unblocked(&mut Port(&mut wire));
        }
        // As in `devices/net`.
        let (mut frames, mut bytes) = (0, 0);
        let more = loop {
            if frames == ROUND_FRAMES || bytes >= ROUND_BYTES {
                break true;
            }
            let taken = match wire.take_next()? {
                None if readable => match wire.fill() {
                    Ok(got) => {
                        readable = got;
                        continue;
                    }
                    Err(_) => return Ok(()),
                },
                None => break false,
                Some(at) => wire.frame(at),
            };
            frame.clear();
            frame.extend_from_slice(taken);
            (frames, bytes) = (frames + 1, bytes + taken.len());
            stack.input(&frame, &mut Port(&mut wire));
        };
        ready.iter().for_each(|r| stack.ready(r, &mut Port(&mut wire)));
        stack.tick(&mut Port(&mut wire));
        wire.flush()?;
        timeout = if more { Some(Duration::ZERO) } else { stack.timeout() };
    }
}
