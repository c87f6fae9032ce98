//! Terminals, lost connections, attaching again.

mod common;

use agent_protocol::{Client, ErrorKind, ExecSpec, Exit, FrameKind, Reply, Request, SignalSpec, WinSize};
use common::{Agent, finish, read_until, shell};
use std::os::unix::net::UnixStream;

fn terminal(line: &str, keep: bool) -> ExecSpec {
    ExecSpec { tty: Some(WinSize { rows: 30, columns: 100 }), stdin: true, keep, ..shell(line) }
}

fn attach(agent: &Agent, session: u64, replay: bool) -> Client<UnixStream> {
    let mut client = agent.connect();
    client.start(&Request::Attach { session, replay }).expect("sent");
    assert_eq!(client.started().expect("attached").session, session);
    client
}

#[test]
fn a_terminal_has_a_size_a_name_and_line_ends() {
    let agent = Agent::start(&[]);
    let (mut client, _) =
        agent.exec(terminal("stty size; tty; echo $TERM; read x; stty size; exit 4", false));
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "xterm\r\n");
    let text = String::from_utf8_lossy(&seen).into_owned();
    assert!(text.starts_with("30 100\r\n/dev/pts/"), "{text}");
    client.send(FrameKind::Resize, &WinSize { rows: 50, columns: 60 }).expect("sent");
    client.send_data(FrameKind::Stdin, b"go\n").expect("fed");
    read_until(&mut client, &mut seen, "50 60\r\n");
    assert_eq!(finish(client).exit, Exit::Code(4));
}

#[test]
fn keys_signal_the_foreground_and_end_the_input() {
    let agent = Agent::start(&[]);
    let (mut client, _) =
        agent.exec(terminal("trap : INT; sh -c 'echo up; exec cat'; echo $?; cat; echo over", false));
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "up\r\n");
    client.send_data(FrameKind::Stdin, b"\x03").expect("fed");
    read_until(&mut client, &mut seen, "130\r\n");
    client.send_mark(FrameKind::StdinEof).expect("sent");
    read_until(&mut client, &mut seen, "over\r\n");
    assert_eq!(finish(client).exit, Exit::Code(0));
}

#[test]
fn all_of_a_terminals_output_comes_before_the_end() {
    let agent = Agent::start(&[]);
    for _ in 0..5 {
        let (client, _) = agent.exec(terminal("seq 20000", false));
        let ran = finish(client);
        assert_eq!(ran.out.len(), 108_894 + 20_000, "with a carriage return a line");
        assert!(ran.out.ends_with(b"20000\r\n"));
    }
    let (client, _) = agent.exec(terminal("sleep 20 & echo first; exit 6", false));
    let ran = finish(client);
    assert_eq!((ran.text(), ran.exit), ("first\r\n", Exit::Code(6)), "a descendant holding the terminal");
}

#[test]
fn a_kept_terminal_shows_its_screen_again() {
    let agent = Agent::start(&[]);
    let (mut client, started) = agent.exec(terminal("echo hello; read x; echo got $x; exit 8", true));
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "hello\r\n");
    drop(client);
    let mut client = attach(&agent, started.session, true);
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "hello\r\n");
    client.send_data(FrameKind::Stdin, b"word\n").expect("fed");
    read_until(&mut client, &mut seen, "got word\r\n");
    assert_eq!(finish(client).exit, Exit::Code(8));
}

#[test]
fn output_nobody_took_is_kept_for_the_next_one() {
    let agent = Agent::start(&[]);
    // Nothing is said before the connection is closed: what is on its way in one is as good as taken.
    let gone = agent.path().join("gone");
    std::fs::write(&gone, "").expect("a file");
    let line = format!(
        "echo one; while [ -e {} ]; do sleep 0.02; done; echo two; echo bad >&2; read y; exit 2",
        gone.display()
    );
    let spec = ExecSpec { stdin: true, keep: true, ..shell(&line) };
    let (mut client, started) = agent.exec(spec);
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "one\n");
    drop(client);
    std::fs::remove_file(&gone).expect("removed");
    let mut client = attach(&agent, started.session, true);
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "bad\n");
    assert!(!seen.starts_with(b"one"), "what was taken is not shown again");
    client.send_data(FrameKind::Stdin, b"y\n").expect("fed");
    assert_eq!(finish(client).exit, Exit::Code(2));
    // Its end stays known.
    assert_eq!(agent.connect().wait(started.session).expect("an exit"), Exit::Code(2));
}

#[test]
fn a_process_that_is_not_kept_hears_of_the_lost_connection() {
    let agent = Agent::start(&[]);
    let (mut client, started) =
        agent.exec(shell("trap 'exit 21' HUP; echo up; while :; do sleep 0.05; done"));
    read_until(&mut client, &mut Vec::new(), "up\n");
    let waiter = agent.connect();
    let waiting = std::thread::spawn(move || waiter.wait(started.session));
    drop(client);
    // The waiter may have come after the end; then the session is remembered.
    assert_eq!(waiting.join().expect("waited").expect("an exit"), Exit::Code(21));
}

#[test]
fn whoever_attaches_last_has_it() {
    let agent = Agent::start(&[]);
    let (mut first, started) = agent.exec(ExecSpec { stdin: true, keep: true, ..shell("echo up; cat") });
    read_until(&mut first, &mut Vec::new(), "up\n");
    let mut second = attach(&agent, started.session, false);
    assert_eq!(first.next_frame().expect_err("taken over").kind(), ErrorKind::Replaced);
    second.send_data(FrameKind::Stdin, b"mine\n").expect("fed");
    read_until(&mut second, &mut Vec::new(), "mine\n");
    let Ok(Reply::Sessions(list)) = agent.connect().call(&Request::Sessions) else { panic!("a list") };
    let ours = list.iter().find(|session| session.session == started.session).expect("listed");
    assert!(ours.attached && ours.exit.is_none() && !ours.tty && ours.command.starts_with("sh -c"));
    second.send(FrameKind::Signal, &SignalSpec { signal: 9, group: true }).expect("sent");
    assert_eq!(finish(second).exit, Exit::Signal(9));
    let gone = agent.connect().call(&Request::Attach { session: 999_999, replay: false });
    assert_eq!(gone.expect_err("none").kind(), ErrorKind::NoSuchSession);
}
