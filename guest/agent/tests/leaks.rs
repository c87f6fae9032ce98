//! After any amount of use, cut off at any point, the agent holds what it held before, and sleeps.

mod common;

use agent_protocol::{
    ExecSpec, FrameKind, LogsSpec, Probe, ReadySpec, Request, ServiceSpec, Transport, WinSize,
};
use common::{Agent, shell};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Waits until the agent is back at rest; how long that takes does not matter, that it does so does.
fn settles(agent: &Agent, descriptors: usize) {
    let start = Instant::now();
    while agent.descriptors() > descriptors || agent.children() > 0 {
        let (now, children) = (agent.descriptors(), agent.children());
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{now} descriptors, {children} children, {descriptors} before"
        );
        std::thread::yield_now();
    }
}

fn requests(port: u16) -> Vec<Request> {
    let terminal = ExecSpec { tty: Some(WinSize { rows: 5, columns: 5 }), stdin: true, ..shell("cat") };
    vec![
        Request::Ping,
        Request::Exec(shell("echo hello; cat /proc/self/stat")),
        Request::Exec(ExecSpec { stdin: true, ..shell("cat") }),
        Request::Exec(shell("head -c 3000000 /dev/zero")),
        Request::Exec(terminal),
        Request::Exec(ExecSpec { argv: vec!["/no/such".into()], ..ExecSpec::default() }),
        Request::Forward { port, transport: Transport::Tcp },
        Request::Forward { port, transport: Transport::Udp },
        Request::Logs(LogsSpec { follow: true, ..LogsSpec::default() }),
        Request::CopyOut { path: "/etc".into(), follow: false },
        Request::CopyIn { path: "/".into(), owner: None },
        Request::Ready(ReadySpec {
            probe: Probe::Port(1),
            timeout_ms: 60_000,
            interval_ms: 5,
            needs_service: false,
        }),
        Request::Ready(ReadySpec {
            probe: Probe::Log { pattern: "never".into(), regex: false },
            timeout_ms: 60_000,
            interval_ms: 0,
            needs_service: false,
        }),
        Request::Stats,
        Request::Sessions,
        Request::Wait { session: 0 },
    ]
}

#[test]
fn nothing_is_left_behind_and_nothing_spins() {
    let agent = Agent::start(&[]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Sends a little, takes a little, and goes away.
            let mut stream = stream;
            let _ = stream.write_all(&[1; 70_000]);
            let _ = stream.read(&mut [0; 100]);
        }
    });
    agent.alive();
    let descriptors = agent.descriptors();
    // Every operation, cut off before, within and after its first frames.
    for round in 0..4 {
        for request in requests(port) {
            let bytes = agent_protocol::frame::encode_request(&request).expect("encoded");
            let mut stream = agent.stream();
            let cut = if round == 0 { bytes.len() / 2 } else { bytes.len() };
            stream.write_all(bytes.get(..cut).expect("a part")).expect("sent");
            if round >= 2 {
                stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a limit");
                let _ = stream.read(&mut [0; 3]);
            }
            if round == 3 {
                let _ = stream.write_all(&agent_protocol::frame::header(FrameKind::Stdin, 10));
                let _ = stream.shutdown(std::net::Shutdown::Read);
            }
        }
    }
    settles(&agent, descriptors);
    agent.alive();
    let before = agent.wakeups();
    // Long enough for anything that spins or polls to show.
    std::thread::sleep(Duration::from_millis(400));
    let woken = agent.wakeups() - before;
    assert!(woken <= 2, "woke up {woken} times with nothing to do");
}

#[test]
fn a_stuck_reader_costs_no_wakeups() {
    let agent = Agent::start(&[]);
    let (_unread, _) = agent.exec(shell("yes"));
    let (mut unfed, _) = agent.exec(ExecSpec { stdin: true, ..shell("sleep 30") });
    unfed.send_data(FrameKind::Stdin, &[0; 200_000]).expect("buffered on the way");
    agent.connect().service(ServiceSpec { exec: shell("sleep 30"), log_limit: 0 }).expect("started");
    let mut reader = agent.connect();
    reader.start(&Request::Logs(LogsSpec { follow: true, ..LogsSpec::default() })).expect("sent");
    agent.alive();
    let start = Instant::now();
    // `yes` fills every buffer first; then all is quiet.
    loop {
        let before = agent.wakeups();
        std::thread::sleep(Duration::from_millis(200));
        if agent.wakeups() - before <= 1 {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it keeps waking up");
    }
}

#[test]
fn without_descriptors_the_agent_waits_and_comes_back() {
    let agent = Agent::start(&[]);
    agent.alive();
    let descriptors = agent.descriptors();
    let limit = rustix::process::Rlimit { current: Some(40), maximum: Some(40) };
    rustix::process::prlimit(Some(agent.pid()), rustix::process::Resource::Nofile, limit).expect("a limit");
    let many: Vec<_> = (0..100).map(|_| agent.stream()).collect();
    let before = agent.wakeups();
    std::thread::sleep(Duration::from_millis(500));
    let woken = agent.wakeups() - before;
    assert!(woken < 60, "woke up {woken} times with nothing it could do");
    drop(many);
    // Those it had not accepted yet come first, and take descriptors once more.
    settles(&agent, descriptors);
    agent.alive();
    assert_eq!(agent.shell("echo back").text(), "back\n");
}
