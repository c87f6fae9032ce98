//! The main service: its log, its end, readiness, ports.

mod common;

use agent_protocol::{
    Client, ErrorKind, ExecSpec, Exit, FrameKind, LogRecord, LogStream, LogsSpec, Probe, ReadySpec, Reply,
    Request, SERVICE_SESSION, ServiceSpec, SignalSpec, Transport,
};
use common::{Agent, shell};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};

fn serve(agent: &Agent, line: &str) {
    let spec = ServiceSpec { exec: shell(line), log_limit: 0 };
    agent.connect().service(spec).expect("the service starts");
}

fn logs(agent: &Agent, spec: LogsSpec) -> Vec<LogRecord> {
    let mut client = agent.connect();
    client.start(&Request::Logs(spec)).expect("sent");
    let mut records = Vec::new();
    loop {
        let frame = client.next_frame().expect("a frame");
        match frame.kind {
            FrameKind::Log => records.push(LogRecord::decode(&frame.payload).expect("a record")),
            FrameKind::DataEnd => return records,
            other => panic!("{other:?} among logs"),
        }
    }
}

fn check(agent: &Agent, probe: Probe, timeout_ms: u64, needs_service: bool) -> Result<(), ErrorKind> {
    let spec = ReadySpec { probe, timeout_ms, interval_ms: 10, needs_service };
    match agent.connect().call(&Request::Ready(spec)) {
        Ok(reply) => {
            assert_eq!(reply, Reply::Done);
            Ok(())
        }
        Err(error) => Err(error.kind()),
    }
}

#[test]
fn output_is_kept_with_time_and_stream_until_asked_for() {
    let agent = Agent::start(&[]);
    serve(&agent, "echo one; echo two >&2; sleep 0.1; printf unfinished; exit 3");
    assert_eq!(agent.connect().wait(SERVICE_SESSION).expect("an exit"), Exit::Code(3));
    let mut records = logs(&agent, LogsSpec::default());
    records.sort_by_key(|record| record.stream as u8);
    let text: Vec<_> = records.iter().map(|record| (record.stream, record.bytes.as_slice())).collect();
    assert_eq!(
        text,
        [
            (LogStream::Stdout, &b"one\n"[..]),
            (LogStream::Stdout, &b"unfinished"[..]),
            (LogStream::Stderr, &b"two\n"[..])
        ]
    );
    let last = records[1].time_ns;
    assert!(last > 1_600_000_000_000_000_000, "nanoseconds since the epoch");
    let tail = logs(&agent, LogsSpec { tail: Some(1), ..LogsSpec::default() });
    assert_eq!(tail.len(), 1);
    assert_eq!(tail[0].bytes, b"unfinished");
    let since = logs(&agent, LogsSpec { since_ns: Some(last), ..LogsSpec::default() });
    assert_eq!(since.len(), 1);
    // A follower of a service that ended has nothing to wait for.
    assert_eq!(logs(&agent, LogsSpec { follow: true, ..LogsSpec::default() }).len(), 3);
}

#[test]
fn a_follower_sees_lines_as_they_come_and_the_end() {
    let agent = Agent::start(&[]);
    serve(
        &agent,
        "echo start; while read -r line < /proc/self/fd/0; do :; done; for i in 1 2 3; do echo $i; sleep 0.05; done",
    );
    let records = logs(&agent, LogsSpec { follow: true, ..LogsSpec::default() });
    let text: Vec<u8> = records.into_iter().flat_map(|record| record.bytes).collect();
    assert_eq!(text, b"start\n1\n2\n3\n");
}

#[test]
fn a_great_deal_of_output_is_bounded_and_slow_readers_get_what_is_kept() {
    let agent = Agent::start(&[]);
    let spec = ServiceSpec { exec: shell("seq 300000"), log_limit: 1 << 20 };
    agent.connect().service(spec).expect("the service starts");
    agent.connect().wait(SERVICE_SESSION).expect("an exit");
    let records = logs(&agent, LogsSpec::default());
    assert!(records.len() > 10_000 && records.len() < 30_000, "{}", records.len());
    assert_eq!(records.last().expect("records").bytes, b"300000\n");
}

#[test]
fn one_service_at_a_time_and_it_can_be_signalled() {
    let agent = Agent::start(&[]);
    serve(&agent, "sleep 100");
    let again = agent.connect().service(ServiceSpec { exec: shell("true"), log_limit: 0 });
    assert_eq!(again.expect_err("one runs").kind(), ErrorKind::Busy);
    assert!(agent.connect().ping().expect("a pong").service);
    let signal = SignalSpec { signal: 15, group: true };
    agent.connect().call(&Request::Kill { session: SERVICE_SESSION, signal }).expect("signalled");
    assert_eq!(agent.connect().wait(SERVICE_SESSION).expect("an exit"), Exit::Signal(15));
    assert!(!agent.connect().ping().expect("a pong").service);
    serve(&agent, "exit 0");
    let bad = ExecSpec { argv: vec!["/no/such".into()], ..ExecSpec::default() };
    agent.connect().wait(SERVICE_SESSION).expect("an exit");
    let missing = agent.connect().service(ServiceSpec { exec: bad, log_limit: 0 });
    assert_eq!(missing.expect_err("not there").kind(), ErrorKind::NotFound);
}

#[test]
fn a_host_attaches_to_the_service() {
    let agent = Agent::start(&[]);
    let exec = ExecSpec { stdin: true, ..shell("while read line; do echo got $line; done; exit 5") };
    agent.connect().service(ServiceSpec { exec, log_limit: 0 }).expect("the service starts");
    let mut client = agent.connect();
    client.start(&Request::Attach { session: SERVICE_SESSION, replay: false }).expect("sent");
    client.started().expect("attached");
    client.send_data(FrameKind::Stdin, b"a\nb\n").expect("fed");
    common::read_until(&mut client, &mut Vec::new(), "got b\n");
    client.send_mark(FrameKind::StdinEof).expect("sent");
    assert_eq!(common::finish(client).exit, Exit::Code(5));
    assert_eq!(logs(&agent, LogsSpec::default()).len(), 2, "the log has it too");
}

#[test]
fn each_probe_finds_what_it_looks_for() {
    let agent = Agent::start(&[]);
    let flag = agent.path().join("flag");
    let exec = |flag: &std::path::Path| Probe::Exec(shell(&format!("test -e {}", flag.display())));
    assert_eq!(check(&agent, exec(&flag), 60, false), Err(ErrorKind::TimedOut));
    std::fs::write(&flag, "").expect("a file");
    assert_eq!(check(&agent, exec(&flag), 5000, false), Ok(()));

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    assert_eq!(check(&agent, Probe::Port(port), 5000, false), Ok(()));
    drop(listener);
    assert_eq!(check(&agent, Probe::Port(port), 60, false), Err(ErrorKind::TimedOut));

    let path = agent.path().join("socket");
    let text = path.to_str().expect("utf-8").to_string();
    assert_eq!(check(&agent, Probe::Socket(text.clone()), 60, false), Err(ErrorKind::TimedOut));
    let _listener = UnixListener::bind(&path).expect("a socket");
    assert_eq!(check(&agent, Probe::Socket(text), 5000, false), Ok(()));

    assert_eq!(check(&agent, Probe::After(20), 5000, false), Ok(()));
    assert_eq!(check(&agent, Probe::Http("ftp://x/".into()), 5000, false), Err(ErrorKind::BadRequest));
    let broken = Probe::Log { pattern: "(".into(), regex: true };
    assert_eq!(check(&agent, broken, 5000, false), Err(ErrorKind::BadRequest));
}

#[test]
fn http_is_ready_from_200_to_399() {
    let agent = Agent::start(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for status in ["503 Busy", "404 None", "302 Found"] {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                request.push(byte[0]);
            }
            asked.push(String::from_utf8(request).expect("text"));
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
        asked
    });
    assert_eq!(check(&agent, Probe::Http(format!("http://127.0.0.1:{port}/healthz")), 10_000, false), Ok(()));
    let asked = server.join().expect("served");
    assert!(asked[0].starts_with("GET /healthz HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(asked[0].contains(&format!("Host: 127.0.0.1:{port}\r\n")));
}

#[test]
fn lines_are_matched_even_when_they_come_in_pieces() {
    let agent = Agent::start(&[]);
    serve(&agent, "printf 'read'; sleep 0.1; printf 'y on 80'; sleep 0.1; echo 80; sleep 100");
    let log = |pattern: &str, regex| Probe::Log { pattern: pattern.into(), regex };
    assert_eq!(check(&agent, log("ready on 8080", false), 10_000, true), Ok(()));
    assert_eq!(check(&agent, log(r"^ready on \d+$", true), 10_000, true), Ok(()));
    assert_eq!(check(&agent, log("never", false), 60, true), Err(ErrorKind::TimedOut));
}

#[test]
fn a_check_ends_with_the_service_it_needs() {
    let agent = Agent::start(&[]);
    assert_eq!(check(&agent, Probe::After(1), 1000, true), Err(ErrorKind::NoSuchSession));
    serve(&agent, "sleep 0.2; exit 1");
    let waits: Vec<_> = [Probe::Port(1), Probe::Log { pattern: "x".into(), regex: false }]
        .into_iter()
        .map(|probe| {
            let mut client = agent.connect();
            let spec = ReadySpec { probe, timeout_ms: 60_000, interval_ms: 10, needs_service: true };
            client.start(&Request::Ready(spec)).expect("sent");
            client
        })
        .collect();
    for mut client in waits {
        assert_eq!(client.reply().expect_err("it ended").kind(), ErrorKind::ServiceExited);
    }
    assert_eq!(check(&agent, Probe::After(1), 1000, true), Err(ErrorKind::ServiceExited));
}

fn forward(agent: &Agent, port: u16, transport: Transport) -> Client<UnixStream> {
    let mut client = agent.connect();
    assert_eq!(client.call(&Request::Forward { port, transport }).expect("connected"), Reply::Done);
    client
}

#[test]
fn a_port_is_forwarded_with_half_close() {
    let agent = Agent::start(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("to the client's end");
        all.reverse();
        stream.write_all(&all).expect("answered after it");
        all.len()
    });
    let stream = forward(&agent, port, Transport::Tcp).into_stream();
    let sent: Vec<u8> = (0..4u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let mut writer = stream.try_clone().expect("a second handle");
    let copy = sent.clone();
    let feeding = std::thread::spawn(move || {
        writer.write_all(&copy).expect("fed");
        writer.shutdown(std::net::Shutdown::Write).expect("half closed");
    });
    let mut back = Vec::new();
    let mut reader = stream;
    reader.read_to_end(&mut back).expect("to the server's end");
    back.reverse();
    feeding.join().expect("fed");
    assert_eq!(server.join().expect("served"), sent.len());
    assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
    agent.alive();
}

#[test]
fn bytes_sent_before_the_answer_arrive() {
    let agent = Agent::start(&[]);
    let listener = TcpListener::bind("[::1]:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut stream = agent.stream();
    let request = Request::Forward { port, transport: Transport::Tcp };
    let mut bytes = agent_protocol::frame::encode_request(&request).expect("encoded");
    bytes.extend_from_slice(b"early");
    stream.write_all(&bytes).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    let (mut served, _) = listener.accept().expect("a client");
    let mut all = Vec::new();
    served.read_to_end(&mut all).expect("read");
    assert_eq!(all, b"early");
}

#[test]
fn nothing_listening_is_told() {
    let agent = Agent::start(&[]);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let refused = agent.connect().call(&Request::Forward { port, transport: Transport::Tcp });
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::Refused);
}

#[test]
fn datagrams_keep_their_bounds() {
    let agent = Agent::start(&[]);
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    let mut client = forward(&agent, port, Transport::Udp);
    for text in ["one", "three"] {
        client.send_data(FrameKind::Data, text.as_bytes()).expect("sent");
        let mut buffer = [0; 64];
        let (size, from) = server.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..size], text.as_bytes());
        server.send_to(&buffer[..size - 1], from).expect("answered");
        let frame = client.next_frame().expect("a datagram");
        assert_eq!((frame.kind, frame.payload.as_slice()), (FrameKind::Data, &buffer[..size - 1]));
    }
}
