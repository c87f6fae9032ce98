//! The generator against our own relay: what the benchmark counts as moved has been moved.

use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use net::nic::Nic;
use net::relay::ours;
use net::server::Server;

/// A guest on our relay, which ends with it.
fn guest(checksums: bool, offer: u16) -> (Nic, JoinHandle<()>) {
    let (here, there) = UnixStream::pair().unwrap();
    let relay = thread::spawn(move || ours::serve(there, checksums).unwrap());
    (Nic::new(here, offer).unwrap(), relay)
}

#[test]
fn streams_of_any_segments_arrive_whole_both_ways() {
    const BYTES: u32 = 3 << 20;
    let server = Server::start().unwrap();
    server.set_bytes(BYTES.into());
    for (checksums, offer) in [(false, 65_480), (true, 1460)] {
        let (mut nic, relay) = guest(checksums, offer);
        let out = nic.connect(server.sink);
        nic.open(&[out]).unwrap();
        nic.tcp(out).unwrap().limit_segments(offer);
        nic.tcp(out).unwrap().send(BYTES);
        nic.until("the sink's word", |nic| nic.peek(out).unwrap().received == 1).unwrap();
        assert_eq!(nic.peek(out).unwrap().unacknowledged(), 0);
        let back = nic.connect(server.source);
        nic.open(&[back]).unwrap();
        nic.tcp(back).unwrap().send(1);
        nic.until("the stream", |nic| nic.peek(back).unwrap().received == u64::from(BYTES)).unwrap();
        assert_eq!(nic.losses(), 0, "a socket loses nothing");
        nic.finish(&[out, back]).unwrap();
        let least = u64::from(BYTES / u32::from(offer));
        assert!(nic.counts.sent > least && nic.counts.received > least);
        drop(nic);
        relay.join().unwrap();
    }
}

#[test]
fn many_connections_are_answered_and_a_closed_port_refuses() {
    let server = Server::start().unwrap();
    let (mut nic, relay) = guest(false, 65_480);
    let names: Vec<u16> = (0..50).map(|_| nic.connect(server.echo)).collect();
    nic.open(&names).unwrap();
    for name in &names {
        nic.tcp(*name).unwrap().send(7);
    }
    nic.until("answers", |nic| names.iter().all(|name| nic.peek(*name).unwrap().received == 7)).unwrap();
    nic.finish(&names).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = nic.connect(closed);
    assert!(nic.open(&[refused]).is_err());
    drop(nic);
    relay.join().unwrap();
}
