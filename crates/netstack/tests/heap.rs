//! What many connections took of the host's memory is the host's again when they have ended. A process of its own: it
//! is the process's memory that is looked at.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use common::{Guest, gateway, opened};

const COUNT: usize = 300;
/// Fits into the guest's buffers: no window closes.
const ANSWER: usize = 2048;

/// Private memory of this process, in bytes.
fn own() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Many connections at once, each with a little of what its buffers hold.
fn burst(guest: &mut Guest) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = gateway(listener.local_addr().unwrap().port());
    let server = thread::spawn(move || {
        let streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        for mut stream in streams {
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(&[0; ANSWER]).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    });
    let connect = |i| {
        let handle = guest.connect(to, 2 * ANSWER);
        // The cable holds a few frames.
        if i % 16 == 0 {
            guest.step();
        }
        handle
    };
    let handles: Vec<_> = (0..COUNT).map(connect).collect();
    let mut open = handles.clone();
    guest.until("all open", |g| {
        open.retain(|h| !(g.tcp(*h).can_send() && g.tcp(*h).send_slice(b"x").is_ok()));
        open.is_empty().then_some(())
    });
    let mut waiting: Vec<_> = handles.iter().map(|handle| (*handle, 0)).collect();
    guest.until("all answers", |g| {
        waiting.retain_mut(|(handle, got)| {
            let socket = g.tcp(*handle);
            while socket.can_recv() {
                *got += socket.recv_slice(&mut [0; ANSWER]).unwrap();
            }
            if *got == ANSWER {
                socket.close();
            }
            *got < ANSWER
        });
        waiting.is_empty().then_some(())
    });
    guest.until_no_flows();
    server.join().unwrap();
}

#[test]
fn what_many_connections_took_is_given_back() {
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, {
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rustix::process::Rlimit { current: now.maximum, maximum: now.maximum }
    });
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let before = own();
    // Memory that was used before is written when it is used again.
    for _ in 0..3 {
        burst(&mut guest);
    }
    let more = own().saturating_sub(before);
    assert!(more < 24 << 20, "{} KiB stay", more >> 10);
}
