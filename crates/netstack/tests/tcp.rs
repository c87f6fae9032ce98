//! Connections of a guest to the host's loopback, opened by the policy.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use common::{Guest, descriptors, gateway, opened};
use netstack::{Config, GATEWAY_V4, GUEST_V4, MAX_TCP, Reason};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, gateway(port))
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31).wrapping_add(i >> 9).wrapping_add(seed)) as u8).collect()
}

/// Both directions at once, megabytes, with half closes; the host echoes nothing before the guest's end.
fn both_ways(guest: &mut Guest, listener: TcpListener, to: SocketAddr, len: usize) {
    let (up, down) = (pattern(len, 1), pattern(len, 2));
    let (expected, answer) = (up.clone(), down.clone());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&answer).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        got == expected
    });
    let handle = guest.connect(to, 200_000);
    let (mut sent, mut got) = (0, Vec::new());
    guest.until("the transfer", |g| {
        let socket = g.tcp(handle);
        if socket.can_send() && sent < up.len() {
            sent += socket.send_slice(&up[sent..]).unwrap();
            if sent == up.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        (got.len() == down.len() && sent == up.len() && !socket.may_recv()).then_some(())
    });
    assert!(got == down, "what the guest received differs");
    guest.until_no_flows();
    assert!(server.join().unwrap(), "what the host received differs");
}

#[test]
fn megabytes_flow_both_ways_and_end() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    both_ways(&mut guest, listener, to, 6 << 20);
}

#[test]
fn a_guest_with_little_room_gets_everything() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    guest.cable.room = 1;
    let (listener, to) = listener();
    both_ways(&mut guest, listener, to, 1 << 20);
}

#[test]
fn what_the_policy_refuses_is_reset_and_listed() {
    let mut guest = Guest::new(Config::default());
    let (_listener, to) = listener();
    for _ in 0..2 {
        let handle = guest.connect(to, 1000);
        guest.until("a reset", |g| (g.tcp(handle).state() == State::Closed).then_some(()));
    }
    let report = guest.stack.reporter().report();
    let [refused] = &report.refused[..] else { panic!("{report:?}") };
    assert_eq!(refused.to, format!("127.0.0.1:{}", to.port()));
    assert_eq!((refused.count, refused.reason, refused.protocol.as_str()), (2, Reason::Loopback, "tcp"));
    assert_eq!(guest.stack.flows(), 0);
}

#[test]
fn a_closed_port_refuses_the_guest() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    drop(listener);
    let handle = guest.connect(to, 1000);
    guest.until("a reset", |g| (g.tcp(handle).state() == State::Closed).then_some(()));
    guest.until_no_flows();
}

#[test]
fn resets_pass_both_ways() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let handle = guest.connect(to, 1000);
    guest.until_established(handle);
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(handle).abort();
    guest.until_no_flows();
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let handle = guest.connect(to, 1000);
    guest.until_established(handle);
    let (stream, _) = listener.accept().unwrap();
    guest.tcp(handle).send_slice(b"unread").unwrap();
    for _ in 0..20 {
        guest.step();
    }
    // Unread bytes make the kernel reset on close.
    drop(stream);
    guest.until("a reset", |g| (g.tcp(handle).state() == State::Closed).then_some(()));
    guest.until_no_flows();
}

#[test]
fn segments_of_one_round_are_answered_once() {
    const COUNT: usize = 20;
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let handle = guest.connect(to, 100_000);
    guest.until_established(handle);
    let (mut stream, _) = listener.accept().unwrap();
    guest.until("silence", |g| g.send().eq(&0).then_some(()));
    guest.tcp(handle).set_nagle_enabled(false);
    for i in 1..=COUNT {
        guest.tcp(handle).send_slice(&[i as u8; 1000]).unwrap();
        assert_eq!(guest.send(), i, "a segment each");
    }
    let segments = std::mem::take(&mut guest.cable.to_host);
    for segment in &segments {
        guest.stack.input(segment, &mut guest.cable);
    }
    assert_eq!(guest.cable.to_guest.len(), 0, "nothing before the round ends");
    guest.stack.tick(&mut guest.cable);
    assert_eq!(guest.cable.to_guest.len(), 1, "one acknowledgement");
    let mut got = vec![0; COUNT * 1000];
    stream.read_exact(&mut got).unwrap();
    assert!(got.chunks(1000).zip(1..).all(|(bytes, i)| bytes == vec![i as u8; 1000]), "all of it, in order");
    // A window that is half used up is served before the round ends: the guest need not wait.
    guest.until("the acknowledgement", |g| (g.tcp(handle).send_queue() == 0).then_some(()));
    let large = guest.connect(to, 1 << 20);
    guest.until_established(large);
    let _stream = listener.accept().unwrap();
    // A window of more than 64 KiB is known from the first acknowledgement on.
    guest.tcp(large).send_slice(b"first").unwrap();
    guest.until("the window", |g| (g.tcp(large).send_queue() == 0).then_some(()));
    guest.tcp(large).send_slice(&pattern(500_000, 3)).unwrap();
    let mut waiting = 0;
    while guest.send() > waiting {
        waiting = guest.cable.to_host.len();
    }
    let segments = std::mem::take(&mut guest.cable.to_host);
    for segment in &segments {
        guest.stack.input(segment, &mut guest.cable);
    }
    assert!(!guest.cable.to_guest.is_empty(), "{} large segments, no answer", segments.len());
}

/// An open connection, everything sent and taken, and the host's end of it.
fn quiet(guest: &mut Guest, listener: &TcpListener, to: SocketAddr) -> (SocketHandle, TcpStream) {
    let handle = guest.connect(to, 100_000);
    guest.until_established(handle);
    let (stream, _) = listener.accept().unwrap();
    guest.tcp(handle).set_ack_delay(None);
    for _ in 0..3 {
        guest.step();
    }
    guest.until("silence", |g| (g.send() == 0 && g.cable.to_guest.is_empty()).then_some(()));
    (handle, stream)
}

/// Sends bytes of the guest in a round that may hold its acknowledgements; whether it does.
fn held(guest: &mut Guest, handle: SocketHandle, bytes: &[u8]) -> bool {
    guest.tcp(handle).send_slice(bytes).unwrap();
    guest.send();
    let segments = std::mem::take(&mut guest.cable.to_host);
    assert!(!segments.is_empty());
    for segment in &segments {
        guest.stack.input(segment, &mut guest.cable);
    }
    guest.stack.hold(&mut guest.cable)
}

#[test]
fn a_held_acknowledgement_goes_with_the_answer_or_at_the_next_tick() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let (handle, mut stream) = quiet(&mut guest, &listener, to);
    let mut got = [0; 8];
    assert!(held(&mut guest, handle, b"question"), "it may wait for the answer");
    assert_eq!(guest.cable.to_guest.len(), 0);
    stream.read_exact(&mut got).unwrap();
    stream.write_all(b"answer").unwrap();
    guest.host();
    assert_eq!(guest.cable.to_guest.len(), 1, "the answer and the acknowledgement");
    guest.stack.tick(&mut guest.cable);
    assert_eq!(guest.cable.to_guest.len(), 1, "nothing is owed");
    guest.until("both", |g| {
        (g.tcp(handle).send_queue() == 0 && g.tcp(handle).recv_queue() == 6).then_some(())
    });
    guest.until("silence", |g| (g.send() == 0 && g.cable.to_guest.is_empty()).then_some(()));

    assert!(held(&mut guest, handle, b"question"));
    guest.stack.tick(&mut guest.cable);
    assert_eq!(guest.cable.to_guest.len(), 1, "no answer came");
    stream.read_exact(&mut got).unwrap();
    guest.until("the acknowledgement", |g| (g.tcp(handle).send_queue() == 0).then_some(()));
    // A guest that sends much is never kept waiting, and one that is gone is not remembered.
    assert!(!held(&mut guest, handle, &[7; 1400]));
    assert_eq!(guest.cable.to_guest.len(), 1);
    guest.until("the acknowledgement", |g| (g.tcp(handle).send_queue() == 0).then_some(()));
    assert!(held(&mut guest, handle, b"question"));
    guest.stack.reset(true);
    assert!(!guest.stack.hold(&mut guest.cable));
}

#[test]
fn neither_an_end_nor_an_urgent_mark_right_behind_bytes_hides_what_follows() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let (handle, mut stream) = quiet(&mut guest, &listener, to);
    stream.write_all(b"before").unwrap();
    rustix::net::send(&stream, b"!", rustix::net::SendFlags::OOB).unwrap();
    stream.write_all(b"after").unwrap();
    guest.until("all bytes but the urgent one", |g| (g.tcp(handle).recv_queue() == 11).then_some(()));
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.until("the end", |g| (g.tcp(handle).state() == State::CloseWait).then_some(()));
    guest.tcp(handle).recv(|bytes| (bytes.len(), assert_eq!(bytes, b"beforeafterlast"))).unwrap();

    let (handle, mut stream) = quiet(&mut guest, &listener, to);
    stream.write_all(b"all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.until("the end", |g| (g.tcp(handle).state() == State::CloseWait).then_some(()));
    assert_eq!(guest.tcp(handle).recv_queue(), 3);
}

#[test]
fn segments_of_a_round_reach_their_own_connections_and_none_that_ended() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let both = [1u8, 2].map(|name| {
        let handle = guest.connect(to, 100_000);
        guest.until_established(handle);
        guest.tcp(handle).set_nagle_enabled(false);
        (name, handle, listener.accept().unwrap().0)
    });
    guest.until("silence", |g| g.send().eq(&0).then_some(()));
    for _ in 0..5 {
        for (name, handle, _) in &both {
            guest.tcp(*handle).send_slice(&[*name; 700]).unwrap();
            guest.send();
        }
    }
    let segments = std::mem::take(&mut guest.cable.to_host);
    assert_eq!(segments.len(), 10);
    for segment in &segments {
        guest.stack.input(segment, &mut guest.cable);
    }
    guest.stack.tick(&mut guest.cable);
    assert_eq!(guest.cable.to_guest.len(), 2, "an acknowledgement each");
    let [(_, first, mut one), (_, _, mut two)] = both;
    for (stream, name) in [(&mut one, 1), (&mut two, 2)] {
        let mut got = vec![0; 5 * 700];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, vec![name; 5 * 700]);
    }
    guest.tcp(first).abort();
    guest.until("its end", |g| (g.stack.flows() == 1).then_some(()));
    guest.cable.to_guest.clear();
    guest.stack.input(&segments[0], &mut guest.cable);
    assert_eq!(guest.cable.to_guest.len(), 1, "a reset");
    guest.stack.input(&segments[1], &mut guest.cable);
    guest.stack.tick(&mut guest.cable);
    assert_eq!(guest.stack.flows(), 1, "the other goes on");
}

#[test]
fn a_segment_of_an_unknown_connection_is_reset_at_once() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let handle = guest.connect(to, 1000);
    guest.until_established(handle);
    let _stream = listener.accept().unwrap();
    // What a machine finds after a restore: its connection is known nowhere.
    guest.stack.reset(true);
    guest.tcp(handle).send_slice(b"anyone?").unwrap();
    guest.until("a reset", |g| (g.tcp(handle).state() == State::Closed).then_some(()));
}

#[test]
fn ipv6_works_the_same() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return eprintln!("skipped: this host has no IPv6 loopback");
    };
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(opened(&["::1"]));
    both_ways(&mut guest, listener, SocketAddr::new(netstack::GATEWAY_V6.into(), port), 1 << 20);
}

#[test]
fn a_thousand_connections_at_once_leave_nothing_behind() {
    const COUNT: usize = 1000;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, {
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rustix::process::Rlimit { current: now.maximum, maximum: now.maximum }
    });
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (listener, to) = listener();
    let before = descriptors();
    let server = thread::spawn(move || {
        let mut streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        for stream in &mut streams {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
        streams.iter_mut().for_each(|s| assert_eq!(s.read(&mut [0]).unwrap(), 0));
    });
    let handles: Vec<_> = (0..COUNT)
        .map(|i| {
            let handle = guest.connect(to, 64);
            if i % 50 == 0 {
                guest.step();
            }
            handle
        })
        .collect();
    let mut open = handles.clone();
    guest.until("all open", |g| {
        open.retain(|h| !(g.tcp(*h).can_send() && g.tcp(*h).send_slice(b"x").is_ok()));
        open.is_empty().then_some(())
    });
    assert_eq!(guest.stack.flows(), COUNT);
    let mut waiting = handles.clone();
    guest.until("all answers", |g| {
        waiting.retain(|h| {
            let socket = g.tcp(*h);
            let got = socket.can_recv() && socket.recv_slice(&mut [0; 4]).unwrap() == 1;
            if got {
                socket.close();
            }
            !got
        });
        waiting.is_empty().then_some(())
    });
    guest.until_no_flows();
    server.join().unwrap();
    // Other tests open some at the same time, but far fewer.
    assert!(descriptors() < before + COUNT / 2, "{} descriptors, {before} before", descriptors());
}

#[test]
fn a_flood_of_connections_meets_a_cap() {
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let (_listener, to) = listener();
    for port in 1..=4000u16 {
        let frame = common::syn(GUEST_V4, port, GATEWAY_V4, to.port());
        guest.stack.input(&frame, &mut guest.cable);
        guest.cable.to_guest.clear();
        assert!(guest.stack.flows() <= MAX_TCP);
    }
    assert!(guest.stack.reporter().report().refused.iter().any(|r| r.reason == Reason::NoRoom));
    guest.stack.reset(true);
    assert_eq!(guest.stack.flows(), 0);
}
