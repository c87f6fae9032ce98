//! Connections over a freeze: who listened answers at once, and who was connected to somebody outside is told at once
//! that nobody is there any more.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use e2e::{Home, engines, rounds};

use crate::common::{begin, python, sh};

/// Tries that a listener may need to answer after a resume.
const TRIES: usize = 3;

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A client of `guest/peers.py listen`, connected; its first line was answered.
fn client(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"whole line\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).ok()?;
    (line == "WHOLE LINE\n").then_some(stream)
}

/// Waits for so many lines of a file in the guest; all of them, sorted and counted.
fn lines(home: &Home, name: &str, file: &str, count: u64) -> String {
    let wait = format!(
        "timeout 120 sh -c 'until [ $(wc -l <{file}) -ge {count} ]; do sleep 0.05; done'; sort {file} | uniq -c"
    );
    sh(home, name, &wait)
}

#[test]
fn listeners_answer_and_who_was_connected_from_outside_is_gone_to_both_ends() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        let port = free_port();
        let publish = format!("127.0.0.1:{port}:7000");
        home.ok(&["run", "-d", "--name", "m", "-p", &publish, file.to_str().unwrap()]);
        begin(&home, "m", "exec python3.11 /srv/peers.py listen");
        sh(&home, "m", "until [ -e /tmp/listening ]; do sleep 0.05; done");
        let count = rounds(20, 200);
        for round in 1..=rounds(2, 5) {
            let mut clients: Vec<TcpStream> = (0..count).map(|_| client(port).expect("an answer")).collect();
            // Half a line: whoever reads it must not take it for a whole one, or wait for ever for the rest.
            clients.iter_mut().for_each(|client| client.write_all(b"half a li").unwrap());
            sh(
                &home,
                "m",
                &format!("until [ $(wc -l </tmp/halves) -ge {} ]; do sleep 0.05; done", count * round),
            );
            home.ok(&["freeze", "m"]);
            for client in &mut clients {
                let end = client.read(&mut [0; 64]);
                assert!(matches!(end, Ok(0) | Err(_)), "{engine}: {end:?}");
                let waited = end.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
                assert!(!waited, "{engine}: a client of a frozen machine waits for it");
            }
            home.ok(&["start", "m"]);
            let answered = (0..TRIES).find_map(|_| client(port));
            assert!(answered.is_some(), "{engine}: no answer in {TRIES} tries");
            drop(answered);
            // One line for each client, and for the one of this round's end.
            let ends = lines(&home, "m", "/tmp/ends", round * (count + 1));
            let halves = ends.lines().find(|line| line.ends_with("half a li")).unwrap_or_default();
            assert_eq!(
                halves.split_whitespace().next(),
                Some(&*(round * count).to_string()),
                "{engine}: {ends}"
            );
        }
    }
}

/// Connections from the guest to a server outside: silent ones, ones with half a request, ones that wait to send.
#[test]
fn connections_to_the_outside_are_reset_before_their_owners_look() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        let count = rounds(20, 1000);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = std::thread::spawn(move || {
            // Held, and nothing is read from them.
            let streams: Vec<TcpStream> = (0..count).map(|_| listener.accept().unwrap().0).collect();
            (listener, streams)
        });
        home.ok(&["run", "-d", "--name", "m", "--allow-cidr", "127.0.0.1", file.to_str().unwrap()]);
        begin(&home, "m", &format!("exec python3.11 /srv/peers.py connect {port} {count}"));
        let (listener, streams) = accepted.join().unwrap();
        sh(&home, "m", "timeout 120 sh -c 'until [ -e /tmp/connected ]; do sleep 0.05; done'");
        home.ok(&["freeze", "m"]);
        // The server's side: the end comes after what was on its way, and it comes.
        for mut stream in streams {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let end = stream.read_to_end(&mut Vec::new());
            let waits = end.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!waits, "{engine}: a server waits for a frozen machine");
        }
        home.ok(&["start", "m"]);
        let said = sh(
            &home,
            "m",
            "timeout 120 sh -c 'until [ -e /tmp/looked ]; do sleep 0.05; done'; cat /tmp/looked",
        );
        assert_eq!(said, format!("{count} of {count} reset\n"), "{engine}");
        // And the way out is open.
        let again =
            format!("import socket; socket.create_connection(('10.0.2.2', {port}), 60).sendall(b'x')");
        let answer = std::thread::spawn(move || listener.accept().unwrap().0.read(&mut [0; 1]).unwrap());
        home.ok(&["exec", "m", "python3.11", "-c", &again]);
        assert_eq!(answer.join().unwrap(), 1, "{engine}");
    }
}
