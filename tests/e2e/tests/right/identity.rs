//! Who a machine is: the one continuation of a frozen machine stays who it was, a copy is somebody else.

use e2e::{Home, engines};

use crate::common::{python, sh};

/// Its name, its id, its hardware address, and the name in /etc/hosts.
const WHO: &str = "hostname; cat /etc/machine-id /sys/class/net/eth0/address
    while read at name; do [ $at != 127.0.1.1 ] || echo $name; done < /etc/hosts";

#[test]
fn a_frozen_machine_stays_who_it_was_and_a_copy_is_somebody_else() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        let run = ["run", "-d", "--name", "m", "--hostname", "one"];
        home.ok(&[&run[..], &[file.to_str().unwrap()]].concat());
        let before = sh(&home, "m", WHO);
        let lines: Vec<&str> = before.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[3]), (4, "one", "one"), "{before}");
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        assert_eq!(sh(&home, "m", WHO), before, "{engine}");
        home.ok(&["fork", "m", "--name", "two"]);
        let copy = sh(&home, "two", WHO);
        assert_eq!(copy.lines().nth(3), copy.lines().next(), "{engine}: {copy}");
        for (mine, others) in before.lines().zip(copy.lines()) {
            assert_ne!(mine, others, "{engine}: {copy}");
        }
        home.ok(&["freeze", "two"]);
        home.ok(&["start", "two"]);
        assert_eq!(sh(&home, "two", WHO), copy, "{engine}");
        // Booted again, too, it has the names that it had, and not its source's. (Its hardware address is a boot's.)
        home.ok(&["stop", "two"]);
        home.ok(&["start", "two"]);
        let booted = sh(&home, "two", WHO);
        for line in [0, 1, 3] {
            assert_eq!(booted.lines().nth(line), copy.lines().nth(line), "{engine}: {booted}");
        }
    }
}

/// A machine whose hardware address is another one than at boot is still on its network.
#[test]
fn a_copy_reaches_the_network_under_its_own_address() {
    use std::io::{Read, Write};
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = [0; 4];
                stream.read_exact(&mut line).unwrap();
                stream.write_all(&line).unwrap();
            }
        });
        home.ok(&["run", "-d", "--name", "m", "--allow-cidr", "127.0.0.1", file.to_str().unwrap()]);
        let ask = format!(
            "import socket; s = socket.create_connection(('10.0.2.2', {port}), 20); s.sendall(b'ping'); print(s.recv(4))"
        );
        assert_eq!(home.ok(&["exec", "m", "python3.11", "-c", &ask]), "b'ping'\n");
        home.ok(&["fork", "m", "--name", "two"]);
        assert_eq!(home.ok(&["exec", "two", "python3.11", "-c", &ask]), "b'ping'\n", "{engine}");
        answers.join().unwrap();
    }
}

/// What a machine was told at boot is in its file as well, and stays when it is booted again.
#[test]
fn a_name_given_at_boot_is_in_the_file_of_hosts() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        let run = ["run", "-d", "--cold", "--name", "m", "--hostname", "one"];
        home.ok(&[&run[..], &[file.to_str().unwrap()]].concat());
        let named =
            "while read at names; do [ $at != 127.0.1.1 ] || echo $names; done < /etc/hosts; hostname";
        assert_eq!(sh(&home, "m", named), "one\none\n", "{engine}");
        sh(&home, "m", "echo 10.0.0.9 other >> /etc/hosts");
        home.ok(&["stop", "m"]);
        home.ok(&["start", "m"]);
        assert_eq!(sh(&home, "m", named), "one\none\n", "{engine}");
        assert!(sh(&home, "m", "cat /etc/hosts").ends_with("10.0.0.9 other\n"), "{engine}");
    }
}
