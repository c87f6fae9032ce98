//! UDP, DNS, published ports and hostile frames.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use common::{Guest, gateway, opened};
use netstack::{Config, GATEWAY_V4, GUEST_V4, HOST_NAME, MAX_UDP, Policy, Published, Reason};
use proptest::prelude::*;

const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY_V4), 53);

fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[7] = 1;
    message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
    message.extend_from_slice(&address.octets());
    message
}

/// A resolver on loopback: first an answer to another question, then the right one.
fn resolver(address: Ipv4Addr) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let here = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let forged = query("forged.example");
            socket.send_to(&answer(&forged, Ipv4Addr::new(198, 51, 100, 66)), from).unwrap();
            socket.send_to(&answer(&buffer[..n], address), from).unwrap();
        }
    });
    here
}

#[test]
fn datagrams_up_to_the_largest_come_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = gateway(server.local_addr().unwrap().port());
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((n, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..n], from).unwrap();
        }
    });
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    let handle = guest.bind_udp(GUEST_V4.into(), 5000);
    for len in [1, 1472, 9000, 65_000] {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        guest.udp(handle).send_slice(&data, to).unwrap();
        assert!(guest.receive(handle) == (data, to), "{len} bytes");
    }
    assert_eq!(guest.stack.flows(), 1);
}

#[test]
fn a_refused_datagram_is_told_and_listed() {
    let mut guest = Guest::new(Config::default());
    let handle = guest.bind_udp(GUEST_V4.into(), 5000);
    guest.udp(handle).send_slice(b"x", SocketAddr::from(([169, 254, 169, 254], 80))).unwrap();
    let unreachable = guest.until("an ICMP message", |g| {
        g.cable.to_guest.iter().find(|f| f.len() > 36 && f[23] == 1).map(|f| (f[34], f[35]))
    });
    assert_eq!(unreachable, (3, 3));
    let report = guest.stack.reporter().report();
    assert_eq!(report.refused[0].to, "169.254.169.254:80");
    assert_eq!(report.refused[0].reason, Reason::LinkLocal);
}

#[test]
fn names_on_the_list_are_resolved_and_learned_others_refused() {
    let found = Ipv4Addr::new(203, 0, 113, 9);
    let policy = Policy::new(vec!["*.example.org".parse().unwrap()], vec![], vec![]);
    let config = Config { policy, resolvers: vec![resolver(found)], ..Config::default() };
    let mut guest = Guest::new(config);
    let handle = guest.bind_udp(GUEST_V4.into(), 5000);
    let asked = query("www.Example.org");
    guest.udp(handle).send_slice(&asked, RESOLVER).unwrap();
    assert_eq!(guest.receive(handle), (answer(&asked, found), RESOLVER));
    // The forged answer taught nothing, the right one did.
    for (address, allowed) in
        [([203, 0, 113, 9], true), ([198, 51, 100, 66], false), ([203, 0, 113, 8], false)]
    {
        let before = guest.stack.flows();
        guest.udp(handle).send_slice(b"x", SocketAddr::from((address, 9))).unwrap();
        guest.until("the verdict", |g| {
            let refused = g.stack.reporter().report().refused;
            let listed = refused.iter().any(|r| r.to == format!("{}:9", Ipv4Addr::from(address)));
            (listed != allowed && (listed || g.stack.flows() > before)).then_some(())
        });
    }
    let asked = query("secret.evil.example");
    guest.udp(handle).send_slice(&asked, RESOLVER).unwrap();
    assert_eq!(guest.receive(handle).0[3] & 15, 5, "REFUSED");
    let refused = guest.stack.reporter().report().refused;
    assert!(refused.iter().any(|r| r.protocol == "dns" && r.to == "secret.evil.example"));
}

#[test]
fn the_host_has_a_name() {
    let mut guest = Guest::new(Config::default());
    let handle = guest.bind_udp(GUEST_V4.into(), 5000);
    let asked = query(HOST_NAME);
    guest.udp(handle).send_slice(&asked, RESOLVER).unwrap();
    assert!(guest.receive(handle).0.ends_with(&GATEWAY_V4.octets()));
}

#[test]
fn a_silent_resolver_gives_way_to_the_next() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let found = Ipv4Addr::new(203, 0, 113, 9);
    let resolvers = vec![silent.local_addr().unwrap(), resolver(found)];
    let mut guest = Guest::new(Config { resolvers, ..Config::default() });
    let handle = guest.bind_udp(GUEST_V4.into(), 5000);
    let asked = query("a.example");
    guest.udp(handle).send_slice(&asked, RESOLVER).unwrap();
    assert_eq!(guest.receive(handle).0, answer(&asked, found));
    guest.until_no_flows();
}

#[test]
fn a_published_port_reaches_the_guest_and_its_answers_the_peer() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let door = socket.local_addr().unwrap();
    let published = vec![Published { socket, guest: 7000 }];
    let mut guest = Guest::new(Config { published, ..Config::default() });
    let handle = guest.bind_udp(GUEST_V4.into(), 7000);
    let peers: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (i, peer) in peers.iter().enumerate() {
        peer.connect(door).unwrap();
        peer.send(&[i as u8]).unwrap();
    }
    for _ in &peers {
        let (data, from) = guest.receive(handle);
        assert_eq!(from.ip(), GATEWAY_V4);
        guest.udp(handle).send_slice(&[data[0] + 10], from).unwrap();
    }
    for (i, peer) in peers.iter().enumerate() {
        peer.set_nonblocking(true).unwrap();
        let mut byte = [0];
        guest.until("the answer", |_| peer.recv(&mut byte).ok());
        assert_eq!(usize::from(byte[0]), i + 10);
    }
}

#[test]
fn flows_of_datagrams_meet_a_cap() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = gateway(server.local_addr().unwrap().port());
    let mut guest = Guest::new(opened(&["127.0.0.1"]));
    for port in 0..2 * MAX_UDP as u16 {
        let handle = guest.bind_udp(GUEST_V4.into(), 10_000 + port);
        guest.udp(handle).send_slice(b"x", to).unwrap();
        guest.step();
        guest.sockets.remove(handle);
        assert!(guest.stack.flows() <= MAX_UDP);
    }
}

fn headers() -> impl Strategy<Value = Vec<u8>> {
    // An Ethernet and IPv4 or IPv6 header of the guest, so that what follows is looked at.
    let v4 = (any::<u8>(), any::<u8>(), any::<[u8; 4]>()).prop_map(|(ihl, protocol, to)| {
        let ihl = 0x45 + (ihl & 1);
        let protocol = [1, 6, 17, protocol][usize::from(protocol & 3)];
        let to = if to[0] & 1 == 0 { GATEWAY_V4.octets() } else { to };
        let mut head = vec![2; 12];
        head.extend_from_slice(&[8, 0, ihl, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        head.extend_from_slice(&GUEST_V4.octets());
        head.extend_from_slice(&to);
        head
    });
    let v6 = (any::<u8>(), any::<bool>()).prop_map(|(protocol, gateway)| {
        let protocol = [58, 6, 17, protocol][usize::from(protocol & 3)];
        let mut head = vec![2; 12];
        head.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, protocol, 255]);
        head.extend_from_slice(&netstack::GUEST_V6.octets());
        let to = if gateway { netstack::GATEWAY_V6 } else { "ff02::1:ff00:2".parse().unwrap() };
        head.extend_from_slice(&to.octets());
        head
    });
    let arp = Just([vec![2; 12], vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat());
    prop_oneof![3 => v4, 2 => v6, 1 => arp, 1 => Just(vec![])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No frame makes the stack panic, hang or hold more than its caps.
    #[test]
    fn no_frame_does_harm(frames in proptest::collection::vec(
        (headers(), proptest::collection::vec(any::<u8>(), 0..120)), 1..24)
    ) {
        let mut guest = Guest::new(Config::default());
        for (mut frame, rest) in frames {
            frame.extend_from_slice(&rest);
            guest.stack.input(&frame, &mut guest.cable);
            guest.stack.tick(&mut guest.cable);
            guest.cable.to_guest.clear();
        }
        guest.stack.reset(false);
        prop_assert_eq!(guest.stack.flows(), 0);
    }
}
