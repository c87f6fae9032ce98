//! Our network as a process behind a socket: what `devices/net` does with a guest's queues, with a [`Wire`] instead.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use host::{Interest, Poller, Ready};
use netstack::{Config, GUEST_MAC, Link, Policy, ROUND_BYTES, ROUND_FRAMES, Stack, Watch};

use crate::frames::MAC;
use crate::wire::Wire;

const WIRE: u64 = u64::MAX;
/// Bytes that the socket is asked to hold towards the guest: what a receive ring of 256 pages does. (passt asks for as
/// much as the kernel gives.)
const RING: usize = 1 << 20;

/// The wire as the stack's link. The stack knows one guest's hardware address; ours has its own.
struct Port<'a>(&'a mut Wire);

impl Link for Port<'_> {
    fn ready(&mut self) -> bool {
        self.0.has_room()
    }

    fn send(&mut self, frame: &[u8]) {
        let (to, rest) = frame.split_at(GUEST_MAC.len().min(frame.len()));
        self.0.give(if to == GUEST_MAC { &MAC } else { to }, rest);
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
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, RING)?;
    let mut wire = Wire::new(stream)?;
    poller.add(&wire, WIRE, Interest::BOTH)?;
    let (mut ready, mut watch, mut timeout) = (Vec::<Ready>::new(), Watch::default(), None);
    // The poller tells of changes once: what it told of is true until the kernel says "would block".
    let (mut readable, mut drain) = (true, false);
    let mut frame = Vec::new();
    loop {
        watch.wait(&poller, &mut ready, timeout)?;
        for r in ready.iter().filter(|r| r.token == WIRE) {
            (readable, drain) = (readable || r.readable, drain || r.drain);
        }
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
                        readable = got && (drain || !wire.was_short());
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
        watch.end_round(&mut stack, &mut Port(&mut wire), &ready);
        wire.flush()?;
        timeout = if more { Some(Duration::ZERO) } else { stack.timeout() };
    }
}
