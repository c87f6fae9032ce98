//! Any question of a guest and any answer of a resolver: nothing panics, and only what was asked for is passed on.
#![no_main]

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use host::{Poller, Ready};
use libfuzzer_sys::fuzz_target;
use netstack::{Config, GATEWAY_MAC, GATEWAY_V4, GUEST_MAC, GUEST_V4, Link, MAX_FRAME, Policy, Stack};

struct Sink;

impl Link for Sink {
    fn ready(&mut self) -> bool {
        true
    }

    fn send(&mut self, frame: &[u8]) {
        assert!(frame.len() <= MAX_FRAME);
    }
}

/// A UDP datagram to the gateway's port 53 in IPv4 in Ethernet; nobody verifies its checksums.
fn question(message: &[u8]) -> Vec<u8> {
    let message = &message[..message.len().min(2000)];
    let mut frame = [&GATEWAY_MAC[..], &GUEST_MAC[..], &[8, 0]].concat();
    let ip_len = (28 + message.len()) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&ip_len.to_be_bytes());
    frame.extend_from_slice(&[0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&GUEST_V4.octets());
    frame.extend_from_slice(&GATEWAY_V4.octets());
    frame.extend_from_slice(&[0x30, 0x39, 0, 53]);
    frame.extend_from_slice(&(ip_len - 20).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(message);
    frame
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>, bool)| {
    let (asked, answer, same_id) = input;
    let resolver = UdpSocket::bind("127.0.0.1:0").expect("a port");
    resolver.set_nonblocking(true).expect("a socket");
    let all = vec!["*.example".parse().expect("a pattern")];
    let config = Config {
        policy: Policy::new(all, vec![], vec![]),
        resolvers: vec![resolver.local_addr().expect("an address")],
        ..Config::default()
    };
    let poller = Arc::new(Poller::new().expect("a poller"));
    let mut stack = Stack::new(config, poller.clone()).expect("a network");
    stack.reset(true);
    stack.input(&question(&asked), &mut Sink);
    let mut forwarded = [0; 4096];
    let Ok((n, from)) = resolver.recv_from(&mut forwarded) else { return };
    // What is forwarded is what the guest asked, name for name.
    let mut reply = answer;
    if same_id && reply.len() >= 2 && n >= 2 {
        reply[..2].copy_from_slice(&forwarded[..2]);
    }
    let _ = resolver.send_to(&reply, from);
    let mut ready: Vec<Ready> = Vec::new();
    poller.wait(&mut ready, Some(Duration::ZERO)).expect("events");
    ready.iter().for_each(|r| stack.ready(r, &mut Sink));
    stack.tick(&mut Sink);
});
