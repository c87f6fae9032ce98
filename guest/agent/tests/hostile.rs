//! Whatever a peer sends: the agent answers or hangs up, and goes on serving others.

mod common;

use agent_protocol::frame::{self, FrameDecoder, FrameKind};
use agent_protocol::{ErrorKind, Failure, PROTOCOL_VERSION, Reply, Request};
use common::Agent;
use proptest::prelude::*;
use std::io::{Read, Write};

/// Sends bytes, ends, and reads whatever comes back.
fn answer(agent: &Agent, bytes: &[u8]) -> Vec<u8> {
    let mut stream = agent.stream();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut back = Vec::new();
    let _ = stream.take(1 << 20).read_to_end(&mut back);
    back
}

fn failure(bytes: &[u8]) -> Failure {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let frame = decoder.next_frame().expect("frames").expect("one");
    assert_eq!(frame.kind, FrameKind::Error);
    frame.decode().expect("a failure")
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    let agent = Agent::start(&[]);
    let request = frame::encode_request(&Request::Ping).expect("encoded");
    let mut newer = request.clone();
    newer[frame::HEADER] = PROTOCOL_VERSION + 1;
    let told = failure(&answer(&agent, &newer));
    assert_eq!(told.kind, ErrorKind::Unsupported);
    assert!(told.text.contains("version 2"), "{told}");
    let unknown =
        frame::encode_bytes(FrameKind::Request, &[PROTOCOL_VERSION, 0xff, 0xff, 3]).expect("encoded");
    assert_eq!(failure(&answer(&agent, &unknown)).kind, ErrorKind::Unsupported);
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[1, 0xff, 0xff, 0xff, 0xff], &frame::header(FrameKind::Stdin, 0)]
    {
        assert_eq!(failure(&answer(&agent, bytes)).kind, ErrorKind::BadRequest);
    }
    assert!(answer(&agent, b"").is_empty());
    assert!(answer(&agent, &request[..3]).is_empty());
    agent.alive();
}

#[test]
fn later_fields_are_ignored() {
    let agent = Agent::start(&[]);
    let mut payload = vec![PROTOCOL_VERSION, 0];
    payload.extend_from_slice(b"a field that this version does not know");
    let mut stream = agent.stream();
    stream.write_all(&frame::encode_bytes(FrameKind::Request, &payload).expect("encoded")).expect("sent");
    let frame = frame::read_frame(&mut stream).expect("read").expect("a frame");
    assert!(matches!(frame.decode::<Reply>(), Ok(Reply::Pong(_))));
}

#[test]
fn a_guest_that_replaces_files_by_pipes_holds_up_nobody() {
    let agent = Agent::start(&["--root", "{}"]);
    std::fs::create_dir(agent.path().join("etc")).expect("a directory");
    for name in ["etc/passwd", "etc/group", "pipe"] {
        let made = std::process::Command::new("mkfifo").arg(agent.path().join(name)).status();
        assert!(made.expect("mkfifo").success());
    }
    // Root is root even without its entry; a name cannot be found.
    assert_eq!(agent.shell("echo runs").text(), "runs\n");
    let spec = agent_protocol::ExecSpec { user: Some("app".into()), ..common::shell("true") };
    let refused = agent.connect().call(&Request::Exec(spec));
    assert_eq!(refused.expect_err("no such user").kind(), ErrorKind::NoSuchUser);
    let mut copy = agent.connect();
    let Ok(Reply::Stat(_)) = copy.call(&Request::CopyOut { path: "/".into(), follow: false }) else {
        panic!("a stat")
    };
    while copy.next_frame().expect("a frame").kind == FrameKind::Data {}
    agent.alive();
}

#[test]
fn many_connections_that_say_nothing_hold_up_nobody() {
    let agent = Agent::start(&[]);
    let idle: Vec<_> = (0..200).map(|_| agent.stream()).collect();
    assert_eq!(agent.shell("echo still here").text(), "still here\n");
    drop(idle);
    agent.alive();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_leave_the_agent_serving(noise in proptest::collection::vec(any::<u8>(), 0..512)) {
        thread_local! { static AGENT: Agent = Agent::start(&[]); }
        AGENT.with(|agent| {
            answer(agent, &noise);
            // As the body of a request that is none of the harmful ones.
            let mut payload = vec![PROTOCOL_VERSION, 3];
            payload.extend_from_slice(&noise);
            answer(agent, &frame::encode_bytes(FrameKind::Request, &payload).expect("encoded"));
            agent.alive();
        });
    }
}
