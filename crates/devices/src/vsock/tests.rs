//! The sockets against a guest in miniature that speaks the protocol, well or badly.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bus::Saved;
use proptest::prelude::*;
use virtio::driver_mock::Driver;
use virtio::features::status;

use super::packet::{HEADER, Header, NO_RECEIVE, NO_SEND, Op, Ports};
use super::{ConnectError, MAX_CONNECTIONS, Vsock, VsockHandle, VsockState, WINDOW};

const CID: u64 = 3;
const LONG: Duration = Duration::from_secs(60);
/// The guest's receive buffer, as it tells the host.
const GUEST_BUFFER: u32 = 64 * 1024;

struct Guest {
    driver: Driver<Vsock>,
    handle: VsockHandle,
    inbox: VecDeque<(Header, Vec<u8>)>,
    buffer_size: u32,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self::bare();
        guest.give_buffers(64);
        guest
    }

    /// Without receive buffers.
    fn bare() -> Self {
        Self::of(Vsock::new(CID))
    }

    fn of(device: Vsock) -> Self {
        let device = Arc::new(device);
        let handle = device.handle();
        Self { driver: Driver::started(device), handle, inbox: VecDeque::new(), buffer_size: 3700 }
    }

    fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.offer(0, &[], &[self.buffer_size]).unwrap();
        }
        self.driver.kick(0);
    }

    fn collect(&mut self) -> usize {
        let used = self.driver.used(0);
        for u in &used {
            let raw: [u8; HEADER] = u.data[..HEADER].try_into().unwrap();
            let header = Header::parse(&raw);
            assert_eq!(u.len as usize, HEADER + header.len as usize);
            self.inbox.push_back((header, u.data[HEADER..u.len as usize].to_vec()));
        }
        used.len()
    }

    /// What has arrived by now; the buffers are given back.
    fn poll(&mut self) -> Vec<(Header, Vec<u8>)> {
        while self.collect() > 0 {}
        self.give_buffers(self.inbox.len());
        self.inbox.drain(..).collect()
    }

    /// The next packet; waits for it. Each gives its buffer back.
    fn next(&mut self) -> (Header, Vec<u8>) {
        loop {
            let edges = self.driver.line.edges();
            self.collect();
            self.collect();
            if let Some(packet) = self.inbox.pop_front() {
                self.give_buffers(1);
                return packet;
            }
            assert!(self.driver.line.wait_beyond(edges), "no packet came");
        }
    }

    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.next();
        assert_eq!(header.op, op);
        header
    }

    fn header(&self, ports: Ports, op: Op) -> Header {
        let mut header = Header::from_host(CID, ports, op).reset_for();
        (header.op, header.buf_alloc) = (op, GUEST_BUFFER);
        header
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        self.driver.offer(1, &[&header.bytes(), data], &[]).unwrap();
        self.driver.kick(1);
        self.driver.used(1);
    }

    fn send(&mut self, ports: Ports, op: Op) {
        self.send_raw(&self.header(ports, op), &[]);
    }

    fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..self.header(ports, Op::Data) };
        self.send_raw(&header, data);
    }

    fn shut_down(&mut self, ports: Ports, flags: u32) {
        let header = Header { flags, ..self.header(ports, Op::Shutdown) };
        self.send_raw(&header, &[]);
    }

    /// Tells how much of what the host sent was taken.
    fn credit(&mut self, ports: Ports, op: Op, buf_alloc: u32, fwd_cnt: u32) {
        let header = Header { buf_alloc, fwd_cnt, ..self.header(ports, op) };
        self.send_raw(&header, &[]);
    }

    fn connecting(&self, port: u32) -> JoinHandle<Result<UnixStream, ConnectError>> {
        let handle = self.handle.clone();
        thread::spawn(move || handle.connect(port, LONG))
    }

    /// A connection from the host, made.
    fn connect(&mut self, port: u32) -> (UnixStream, Ports) {
        let connecting = self.connecting(port);
        let request = self.expect(Op::Request);
        assert_eq!((request.src_cid, request.dst_cid, request.dst_port), (2, CID, port));
        assert_eq!((request.buf_alloc, request.socket_type), (WINDOW, 1));
        let ports = Ports { guest: port, host: request.src_port };
        self.send(ports, Op::Response);
        (connecting.join().unwrap().unwrap(), ports)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn a_host_connection_lives_from_request_to_reset() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(1024);
    stream.write_all(b"question").unwrap();
    let (header, data) = g.next();
    assert_eq!(
        (header.op, header.ports(), &data[..]),
        (Op::Data, Ports { guest: ports.host, host: 1024 }, &b"question"[..])
    );
    g.send_data(ports, b"answer, ");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(g.expect(Op::Shutdown).flags, NO_SEND);
    g.send_data(ports, b"and the rest");
    g.shut_down(ports, NO_RECEIVE | NO_SEND);
    g.expect(Op::Reset);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer, and the rest");
    assert_eq!(g.driver.transport.device().connections(), 0);
}

#[test]
fn what_is_written_before_the_guest_answers_comes_with_its_answer() {
    let mut g = Guest::new();
    let mut stream = g.handle.begin(7).unwrap();
    stream.write_all(b"early").unwrap();
    let ports = Ports { guest: 7, host: g.expect(Op::Request).src_port };
    g.send(ports, Op::Response);
    assert_eq!(g.next().1, b"early");
    stream.write_all(b"meanwhile").unwrap();
    // Connections that were made before are watched, too.
    g.handle.start_io().unwrap();
    assert_eq!(g.next().1, b"meanwhile");
    stream.write_all(b"late").unwrap();
    assert_eq!(g.next().1, b"late");
    g.send_data(ports, b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");

    let mut refused = g.handle.begin(8).unwrap();
    let ports = Ports { guest: 8, host: g.expect(Op::Request).src_port };
    g.send(ports, Op::Reset);
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_scripted_guest_gets_what_was_written_before_and_ends_with_its_streams() {
    let ends = Arc::new(AtomicUsize::new(0));
    let count = ends.clone();
    let mut g = Guest::of(Vsock::scripted(CID, move || _ = count.fetch_add(1, Ordering::SeqCst)));
    g.give_buffers(64);
    let (mut one, mut two) = (g.handle.begin(7).unwrap(), g.handle.begin(8).unwrap());
    one.write_all(b"early").unwrap();
    assert!(matches!(g.handle.connect(9, LONG), Err(ConnectError::Scripted)));
    let first = Ports { guest: 7, host: g.expect(Op::Request).src_port };
    let second = Ports { guest: 8, host: g.expect(Op::Request).src_port };
    g.send(first, Op::Response);
    assert_eq!(g.next().1, b"early");
    g.send(second, Op::Response);
    one.write_all(b"late").unwrap();
    g.handle.start_io().unwrap();
    g.send(first, Op::CreditUpdate);
    assert!(g.poll().is_empty(), "what is written later is not read");

    // Far more than the stream and the window hold: the guest's packet waits for the reader.
    let bytes = pattern(6 * WINDOW as usize);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        two.read_to_end(&mut all).unwrap();
        all
    });
    bytes.chunks(32 * 1024).for_each(|piece| g.send_data(second, piece));
    assert!(g.poll().iter().all(|(header, _)| header.op == Op::CreditUpdate));
    g.shut_down(second, NO_RECEIVE | NO_SEND);
    assert!(reader.join().unwrap() == bytes);
    assert_eq!(ends.load(Ordering::SeqCst), 0, "the other stream is open");
    g.shut_down(first, NO_RECEIVE | NO_SEND);
    assert_eq!(ends.load(Ordering::SeqCst), 1);
}

#[test]
fn the_guest_may_close_half_and_read_on() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(5);
    g.send_data(ports, b"all");
    g.shut_down(ports, NO_SEND);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"all");
    stream.write_all(b"late").unwrap();
    assert_eq!(g.next().1, b"late");
    g.send_data(ports, b"liar");
    g.expect(Op::Reset);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_guest_that_will_not_receive_breaks_the_hosts_pipe() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(5);
    g.shut_down(ports, NO_RECEIVE);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    g.send_data(ports, b"still");
    let mut still = [0; 5];
    stream.read_exact(&mut still).unwrap();
    assert_eq!(&still, b"still");
}

#[test]
fn a_host_that_closes_tells_the_guest_everything_first() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(5);
    stream.write_all(b"last words").unwrap();
    drop(stream);
    let mut flags = 0;
    let mut words = Vec::new();
    while flags != NO_RECEIVE | NO_SEND {
        let (header, data) = g.next();
        match header.op {
            Op::Data => words.extend(data),
            Op::Shutdown => flags |= header.flags,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(words, b"last words");
    // The guest's last word ends it; more data would be for nobody.
    g.send_data(ports, b"anybody?");
    g.expect(Op::Reset);
    g.send(ports, Op::Reset);
    assert_eq!(g.driver.transport.device().connections(), 0);
}

#[test]
fn a_port_that_nobody_listens_on_is_an_error_at_once() {
    let mut g = Guest::new();
    let connecting = g.connecting(9);
    let request = g.expect(Op::Request);
    g.send(Ports { guest: 9, host: request.src_port }, Op::Reset);
    assert!(matches!(connecting.join().unwrap(), Err(ConnectError::Refused { port: 9 })));
    assert_eq!(g.driver.transport.device().connections(), 0);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut g = Guest::new();
    let timed_out = g.handle.connect(9, Duration::ZERO);
    assert!(matches!(timed_out, Err(ConnectError::TimedOut { port: 9, .. })));
    let request = g.expect(Op::Request);
    let reset = g.expect(Op::Reset);
    assert_eq!(reset.src_port, request.src_port);
    g.send(Ports { guest: 9, host: request.src_port }, Op::Response);
    g.expect(Op::Reset);
}

#[test]
fn before_the_guest_is_up_there_is_nothing_to_connect_to() {
    let device = Vsock::new(CID);
    let handle = device.handle();
    assert!(matches!(handle.connect(1, LONG), Err(ConnectError::NotReady { port: 1 })));
    drop(device);
    assert!(matches!(handle.connect(1, LONG), Err(ConnectError::NotReady { port: 1 })));
}

#[test]
fn the_guest_connects_to_listeners_and_to_nothing_else() {
    let mut g = Guest::new();
    let (sender, streams) = mpsc::channel();
    g.handle.listen(80, move |stream| sender.send(stream).unwrap()).unwrap();
    assert!(g.handle.listen(80, drop).is_err());
    let ports = Ports { guest: 4000, host: 80 };
    g.send(ports, Op::Request);
    g.expect(Op::Response);
    let mut stream = streams.recv().unwrap();
    g.send_data(ports, b"ping");
    let mut ping = [0; 4];
    stream.read_exact(&mut ping).unwrap();
    stream.write_all(&ping).unwrap();
    assert_eq!(g.next().1, b"ping");
    // The same connection again, an unknown port, a stray packet.
    g.send(ports, Op::Request);
    g.expect(Op::Reset);
    g.send(Ports { guest: 4000, host: 81 }, Op::Request);
    assert_eq!(g.expect(Op::Reset).dst_port, 4000);
    g.send_data(Ports { guest: 1, host: 2 }, b"?");
    g.expect(Op::Reset);
    g.send(Ports { guest: 1, host: 2 }, Op::Reset);
    g.handle.unlisten(80);
    g.send(ports, Op::Request);
    g.expect(Op::Reset);
    assert_eq!(g.poll(), []);
}

#[test]
fn a_listener_may_connect_back() {
    let mut g = Guest::new();
    let handle = g.handle.clone();
    let (sender, results) = mpsc::channel();
    g.handle.listen(80, move |_| sender.send(handle.connect(7, Duration::ZERO)).unwrap()).unwrap();
    g.send(Ports { guest: 4000, host: 80 }, Op::Request);
    assert!(matches!(results.recv().unwrap(), Err(ConnectError::TimedOut { .. })));
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(5);
    g.credit(ports, Op::CreditUpdate, 100, 0);
    stream.write_all(&pattern(250)).unwrap();
    let mut got = g.next().1;
    assert_eq!(got.len(), 100);
    g.expect(Op::CreditRequest);
    g.credit(ports, Op::CreditUpdate, 100, 60);
    got.extend(g.next().1);
    assert_eq!(got.len(), 160);
    g.expect(Op::CreditRequest);
    // A guest that claims to have taken more than it got has no room, not endless room.
    g.credit(ports, Op::CreditUpdate, 100, 5000);
    g.credit(ports, Op::CreditRequest, 0, 160);
    let update = g.expect(Op::CreditUpdate);
    assert_eq!(update.buf_alloc, WINDOW);
    g.credit(ports, Op::CreditUpdate, 200, 160);
    got.extend(g.next().1);
    assert_eq!(got, pattern(250));
}

#[test]
fn the_guest_may_not_send_more_than_the_window() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(5);
    // The stream's own buffer takes some; then the window fills; then it is a violation.
    let chunk = vec![7; 60 * 1024];
    let mut sent = 0;
    while g.driver.transport.device().connections() == 1 {
        g.send_data(ports, &chunk);
        g.driver.used(1);
        g.poll();
        sent += chunk.len();
        assert!(sent < 16 << 20, "no limit");
    }
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() < sent && got.iter().all(|b| *b == 7));
}

#[test]
fn a_slow_reader_holds_the_guest_back_and_loses_nothing() {
    let mut g = Guest::new();
    let (mut stream, ports) = g.connect(5);
    let total = 2 << 20;
    let bytes = pattern(total);
    // The reader starts when the guest is out of credit.
    let (start, started) = mpsc::channel::<()>();
    let reader = thread::spawn(move || {
        started.recv().unwrap();
        let mut got = vec![0; total];
        stream.read_exact(&mut got).unwrap();
        got
    });
    let (mut sent, mut forwarded) = (0u32, 0u32);
    let mut start = Some(start);
    while (sent as usize) < total {
        let room = (WINDOW - (sent - forwarded)).min(32 * 1024).min((total - sent as usize) as u32);
        if room == 0 {
            if let Some(s) = start.take() {
                s.send(()).unwrap();
            }
            forwarded = g.next().0.fwd_cnt;
            continue;
        }
        g.send_data(ports, &bytes[sent as usize..(sent + room) as usize]);
        sent += room;
        for (header, _) in g.poll() {
            forwarded = header.fwd_cnt;
        }
    }
    if let Some(s) = start.take() {
        s.send(()).unwrap();
    }
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn bulk_to_the_guest_arrives_whole_with_few_buffers() {
    let mut g = Guest::bare();
    g.buffer_size = 1000;
    g.give_buffers(3);
    let (mut stream, ports) = g.connect(5);
    let bytes = pattern(400_000);
    let copy = bytes.clone();
    let writer = thread::spawn(move || {
        stream.write_all(&copy).unwrap();
        stream
    });
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let (header, data) = g.next();
        match header.op {
            Op::Data => got.extend(data),
            Op::CreditRequest => {}
            other => panic!("{other:?}"),
        }
        if header.op == Op::CreditRequest {
            g.credit(ports, Op::CreditUpdate, GUEST_BUFFER, got.len() as u32);
        }
    }
    assert!(got == bytes);
    drop(writer.join().unwrap());
}

#[test]
fn after_a_restore_old_connections_are_reset_first_and_new_ones_work_at_once() {
    let mut g = Guest::new();
    // Kept open: the end of one that was dropped might be on its way by the freeze, or not.
    g.handle.listen(80, std::mem::forget).unwrap();
    let (_one, first) = g.connect(5);
    let (_two, second) = g.connect(6);
    let third = Ports { guest: 4000, host: 80 };
    g.send(third, Op::Request);
    while g.next().0.op != Op::Response {}
    g.driver.transport.pause();
    let state = g.driver.transport.save();
    assert_eq!(state.device.connections.len(), 3);

    let device = Arc::new(Vsock::new(CID));
    let handle = device.handle();
    let mut r = Guest {
        driver: Driver::in_memory(g.driver.memory.clone(), device),
        handle: handle.clone(),
        inbox: VecDeque::new(),
        buffer_size: 3700,
    };
    handle.listen(80, drop).unwrap();
    r.driver.transport.restore(&state).unwrap();
    assert_eq!(
        r.driver.transport.save().device.connections,
        state.device.connections,
        "frozen again at once"
    );
    r.driver.adopt(&g.driver);
    r.inbox = g.inbox.drain(..).collect();
    r.inbox.clear();
    let connecting = r.connecting(5);
    r.driver.transport.resume();
    for ports in [first, second, third] {
        let reset = r.expect(Op::Reset);
        assert_eq!((reset.dst_port, reset.src_port), (ports.guest, ports.host));
    }
    let request = r.expect(Op::Request);
    assert_eq!(request.dst_port, 5);
    assert_ne!(request.src_port, first.host, "the guest may still know that one");
    r.send(Ports { guest: 5, host: request.src_port }, Op::Response);
    let mut stream = connecting.join().unwrap().unwrap();
    stream.write_all(b"hello").unwrap();
    assert_eq!(r.next().1, b"hello");
    r.send(third, Op::Request);
    r.expect(Op::Response);
}

#[test]
fn a_guest_that_waits_for_an_answer_when_frozen_gets_a_reset() {
    let mut g = Guest::bare();
    g.handle.listen(80, drop).unwrap();
    g.send(Ports { guest: 4000, host: 80 }, Op::Request);
    let unasked = g.connecting(7);
    while g.driver.transport.device().connections() < 2 {
        thread::yield_now();
    }
    let state = g.driver.transport.save().device;
    assert_eq!(state.connections, [(4000, 80)], "and of the other it knows nothing");
    drop(g);
    assert!(matches!(unasked.join().unwrap(), Err(ConnectError::Refused { port: 7 })));
}

#[test]
fn while_paused_nothing_is_written_and_afterwards_nothing_is_lost() {
    let mut g = Guest::new();
    let (mut stream, _) = g.connect(5);
    g.driver.transport.pause();
    let before = g.driver.transport.save().transport;
    let edges = g.driver.line.edges();
    stream.write_all(b"meanwhile").unwrap();
    let connecting = g.connecting(7);
    assert_eq!((g.driver.transport.save().transport, g.driver.line.edges()), (before, edges));
    g.driver.transport.resume();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (header, data) = g.next();
        if header.op == Op::Request {
            g.send(Ports { guest: 7, host: header.src_port }, Op::Response);
        } else {
            assert_eq!(data, b"meanwhile");
        }
        seen.push(header.op);
    }
    connecting.join().unwrap().unwrap();
}

#[test]
fn a_reset_of_the_device_ends_every_stream() {
    let mut g = Guest::new();
    let (mut stream, _) = g.connect(5);
    let connecting = g.connecting(6);
    g.expect(Op::Request);
    g.driver.set(0x070, 0);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(matches!(connecting.join().unwrap(), Err(ConnectError::Refused { .. })));
    g.driver.start(u64::MAX);
    g.inbox.clear();
    g.give_buffers(16);
    g.connect(5);
}

#[test]
fn dropping_the_device_ends_every_stream() {
    let mut g = Guest::new();
    let (mut stream, _) = g.connect(5);
    drop(g);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connections_are_limited() {
    let mut g = Guest::new();
    g.handle.listen(80, drop).unwrap();
    // Streams that the host closed at once: they end, so as many as one likes can follow.
    let mut refused = 0;
    for guest in 0..MAX_CONNECTIONS as u32 + 50 {
        g.send(Ports { guest, host: 80 }, Op::Request);
        refused += g.poll().iter().filter(|p| p.0.op == Op::Reset).count();
        assert!(g.driver.transport.device().connections() <= MAX_CONNECTIONS);
    }
    assert!(refused <= 50 + MAX_CONNECTIONS);
}

#[test]
fn resets_that_the_guest_does_not_take_hold_its_packets_back() {
    let mut g = Guest::bare();
    let mut offered = 0;
    for guest in 0..1000 {
        let header = g.header(Ports { guest, host: 1 }, Op::Request);
        if g.driver.offer(1, &[&header.bytes()], &[]).is_none() {
            break;
        }
        offered += 1;
        g.driver.kick(1);
        g.driver.used(1);
    }
    // 256 resets are owed, a ring full of requests waits.
    assert_eq!(offered, 384);
    let mut resets = 0;
    g.give_buffers(64);
    while resets < offered {
        g.driver.used(1);
        let packets = g.poll();
        assert!(packets.iter().all(|p| p.0.op == Op::Reset && p.0.dst_port as usize >= resets));
        assert!(!packets.is_empty(), "stuck after {resets}");
        resets += packets.len();
    }
    assert_eq!(g.driver.get(0x070) & status::NEEDS_RESET, 0);
}

#[test]
fn buffers_too_small_for_a_header_are_used_up_empty() {
    let mut g = Guest::bare();
    g.send(Ports { guest: 1, host: 1 }, Op::Request);
    g.driver.offer(0, &[], &[43]).unwrap();
    g.driver.kick(0);
    assert_eq!(g.driver.used(0)[0].len, 0);
    g.give_buffers(1);
    g.expect(Op::Reset);
}

#[test]
fn hostile_states_are_refused() {
    let good = VsockState { version: 1, guest_cid: CID, connections: vec![(1, 2)], next_port: 1 << 30 };
    let device = Vsock::new(CID);
    use virtio::VirtioDevice;
    device.restore(&good).unwrap();
    assert_eq!(device.save(), good);
    for bad in [
        VsockState { version: 2, ..good.clone() },
        VsockState { guest_cid: 4, ..good.clone() },
        VsockState { connections: vec![(0, 0); 1 << 16], ..good.clone() },
        VsockState { next_port: 0, ..good.clone() },
        VsockState { next_port: u32::MAX, ..good.clone() },
    ] {
        assert!(device.restore(&bad).is_err());
    }
}

fn any_header() -> impl Strategy<Value = (Header, usize)> {
    let op = prop_oneof![(0..9u16).prop_map(|o| o), any::<u16>()];
    let cid = prop_oneof![9 => Just(CID), 1 => any::<u64>()];
    let small = prop_oneof![8 => 0..3u32, 1 => any::<u32>()];
    let len = prop_oneof![0..2000u32, any::<u32>()];
    let raw = (op, cid, small.clone(), small.clone(), len, small, any::<u32>(), any::<u32>(), 0..2000usize);
    raw.prop_map(|(op, src_cid, src_port, host, len, flags, buf_alloc, fwd_cnt, data)| {
        let mut bytes = Header::from_host(2, Ports { guest: 80 + host, host: src_port }, Op::Data).bytes();
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        let h = Header { src_cid, len, flags, buf_alloc, fwd_cnt, ..Header::parse(&bytes) };
        (h, data)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever the guest sends: no panic, bounded connections, and the device goes on.
    #[test]
    fn random_packets_are_survived(packets in prop::collection::vec(any_header(), 1..60)) {
        let mut g = Guest::new();
        for port in 80..83 {
            g.handle.listen(port, drop).unwrap();
        }
        for (header, data) in packets {
            g.driver.offer(1, &[&header.bytes(), &vec![1; data][..]], &[]);
            g.driver.kick(1);
            g.driver.used(1);
            g.poll();
        }
        prop_assert!(g.driver.transport.device().connections() <= 60);
        prop_assert_eq!(g.driver.get(0x070) & status::NEEDS_RESET, 0);
        g.poll();
        g.driver.start(u64::MAX);
        g.inbox.clear();
        g.give_buffers(8);
        g.connect(5);
    }
}
