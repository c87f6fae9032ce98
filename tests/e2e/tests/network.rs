//! A machine on the network: what it reaches, what it is refused, and what a freeze does to it.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::thread;

use e2e::{Home, engines};

/// A web server on loopback that says "hello" to everybody.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        }
    });
    port
}

/// A resolver on loopback that knows one address for every name: the machine's gateway.
fn resolver() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let here = socket.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..n].to_vec();
            answer[2] |= 0x80;
            let v4 = answer.ends_with(&[0, 1, 0, 1]);
            answer[7] = u8::from(v4);
            if v4 {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 2, 2]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    here
}

#[test]
fn a_machine_reaches_what_it_may_before_and_after_a_freeze() {
    for engine in engines() {
        let home = Home::new(engine);
        let (port, dns) = (server(), resolver());
        let flags =
            ["run", "-d", "--name", "n", "--net", "--allow-cidr", "127.0.0.1", "--allow-host", "web.example"];
        home.ok(&[&flags[..], &["--dns", &dns, "--", "sleep", "1000"]].concat());
        let fetch = |from: &str| {
            let url = format!("http://{from}:{port}/");
            home.run(&["exec", "n", "wget", "-q", "-O", "-", &url])
        };
        assert_eq!(fetch("10.0.2.2").stdout, b"hello\n");
        assert_eq!(fetch("web.example").stdout, b"hello\n");
        assert!(!fetch("169.254.169.254").status.success());
        assert!(!fetch("other.example").status.success());
        let log = home.ok(&["net", "log", "n"]);
        assert!(log.contains("169.254.169.254") && log.contains("link-local"), "{log}");
        assert!(log.contains("other.example"), "{log}");

        home.ok(&["freeze", "n"]);
        home.ok(&["start", "n"]);
        assert_eq!(fetch("10.0.2.2").stdout, b"hello\n", "after a freeze");
        home.ok(&["rm", "-f", "n"]);
    }
}

#[test]
fn published_udp_ports_are_shown_and_carry_datagrams() {
    let home = Home::new("soft");
    let free = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let publish = format!("{port}:5353/udp");
    home.ok(&["run", "-d", "--name", "n", "--net", "-p", &publish, "--", "sleep", "1000"]);
    assert!(home.ok(&["ps"]).contains(&format!("127.0.0.1:{port}->5353/udp")));
    // Nobody listens there, which the guest's kernel counts (the second number: NoPorts).
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let count = "grep '^Udp: [0-9]' /proc/net/snmp | cut -d ' ' -f 3";
    e2e::wait_until("a datagram in the guest", || {
        let _ = socket.send_to(b"?", ("127.0.0.1", port));
        home.ok(&["exec", "n", "sh", "-c", count]) != "0\n"
    });
    // A port that this user may not have, and one that is no address of this host.
    let said = home.fails(&["run", "-p", "192.0.2.1:8000:80", "--", "true"], 125);
    assert!(said.contains("no such address"), "{said}");
}

#[test]
fn a_machine_without_network_has_no_device() {
    for engine in engines() {
        let home = Home::new(engine);
        let links = home.ok(&["run", "--", "ls", "/sys/class/net"]);
        assert!(!links.contains("eth0"), "{links}");
    }
}

#[test]
fn machines_on_one_network_reach_each_other_by_name() {
    for engine in engines() {
        let home = Home::new(engine);
        let serve = "mkdir /www; echo from db >/www/f; httpd -f -p 8080 -h /www";
        home.ok(&["run", "-d", "--name", "db", "--network", "back", "--", "sh", "-c", serve]);
        home.ok(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "front",
            "--network",
            "back",
            "--",
            "sleep",
            "1000",
        ]);
        home.ok(&["run", "-d", "--name", "other", "--network", "front", "--", "sleep", "1000"]);
        let fetch = |who: &str, url: &str| home.run(&["exec", who, "wget", "-q", "-O", "-", url]);
        let ready = "until wget -q -O /dev/null http://127.0.0.1:8080/f; do sleep 0.05; done";
        home.ok(&["exec", "db", "sh", "-c", ready]);
        assert_eq!(fetch("web", "http://db:8080/f").stdout, b"from db\n");
        // Nothing listens there; not on the same network; nobody; the world, which none of them was given.
        assert!(!fetch("web", "http://db:8081/f").status.success());
        assert!(!fetch("other", "http://db:8080/f").status.success());
        assert!(!fetch("web", "http://nobody:8080/f").status.success());
        assert!(!fetch("web", "http://192.0.2.1/").status.success());
        // A neighbour that went and came back.
        home.ok(&["freeze", "db"]);
        assert!(!fetch("web", "http://db:8080/f").status.success());
        home.ok(&["start", "db"]);
        assert_eq!(fetch("web", "http://db:8080/f").stdout, b"from db\n");
        for name in ["db", "web", "other"] {
            home.ok(&["rm", "-f", name]);
        }
    }
}
