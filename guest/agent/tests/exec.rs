//! Processes: output, input, exit codes, signals, users, directories, backpressure.

mod common;

use agent_protocol::{ErrorKind, ExecSpec, Exit, FrameKind, Request, SignalSpec};
use common::{Agent, finish, read_until, shell};

fn refusal(agent: &Agent, spec: ExecSpec) -> ErrorKind {
    let mut client = agent.connect();
    client.start(&Request::Exec(spec)).expect("sent");
    client.started().expect_err("refused").kind()
}

#[test]
fn output_and_exit_code_come_back() {
    let agent = Agent::start(&[]);
    let ran = agent.shell("echo out; echo err >&2; exit 7");
    assert_eq!(
        (ran.out.as_slice(), ran.err.as_slice(), ran.exit),
        (&b"out\n"[..], &b"err\n"[..], Exit::Code(7))
    );
    assert_eq!(agent.shell("kill -9 $$").exit, Exit::Signal(9));
    assert_eq!(Exit::Signal(9).code(), 137);
    agent.alive();
}

#[test]
fn what_cannot_start_is_told_by_kind() {
    let agent = Agent::start(&[]);
    let command = |word: &str| ExecSpec { argv: vec![word.into()], ..ExecSpec::default() };
    let plain = agent.path().join("plain");
    std::fs::write(&plain, "text").expect("a file");
    assert_eq!(refusal(&agent, command("no-such-command-here")), ErrorKind::NotFound);
    assert_eq!(refusal(&agent, command("/no/such/file")), ErrorKind::NotFound);
    assert_eq!(refusal(&agent, command(plain.to_str().expect("utf-8"))), ErrorKind::NotExecutable);
    assert_eq!(refusal(&agent, command("")), ErrorKind::BadRequest);
    assert_eq!(refusal(&agent, ExecSpec::default()), ErrorKind::BadRequest);
    let user = ExecSpec { user: Some("nobody-of-that-name".into()), ..command("true") };
    assert_eq!(refusal(&agent, user), ErrorKind::NoSuchUser);
    let place = ExecSpec { cwd: Some("/no/such/place".into()), ..command("true") };
    assert_eq!(refusal(&agent, place), ErrorKind::NoSuchDirectory);
    assert_eq!((ErrorKind::NotFound.exit_code(), ErrorKind::NotExecutable.exit_code()), (127, 126));
    agent.alive();
}

#[test]
fn environment_directory_and_streams_are_as_asked() {
    let agent = Agent::start(&[]);
    let spec = ExecSpec {
        env: vec![("GREETING".into(), "hello there".into())],
        cwd: Some("/usr".into()),
        ..shell(
            "echo \"$GREETING\"; pwd; umask; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; echo $HOME",
        )
    };
    let ran = finish(agent.exec(spec).0);
    // 0 to 2 and the directory that ls reads.
    assert_eq!(ran.text(), "hello there\n/usr\n0022\n/dev/null\n4\n/root\n");
}

#[test]
fn a_process_leads_its_own_session_with_default_signals() {
    let agent = Agent::start(&[]);
    let line = "read a < /proc/$$/stat; echo $a; exec grep -E 'Sig(Blk|Ign)' /proc/self/status";
    let ran = agent.shell(line);
    let mut lines = ran.text().lines();
    let fields: Vec<&str> = lines.next().expect("stat").split(' ').collect();
    assert_eq!((fields[0], fields[0]), (fields[4], fields[5]), "pid is group and session");
    for line in lines {
        let mask =
            line.split('\t').nth(1).and_then(|mask| u64::from_str_radix(mask, 16).ok()).expect("a mask");
        // 32 and 33 belong to the C library and may come ignored from whoever started the test.
        assert_eq!(mask & 0x7fff_ffff, 0, "{line}");
    }
}

#[test]
fn another_user_has_its_ids_and_home() {
    let agent = Agent::start(&[]);
    let spec = ExecSpec { user: Some("65534:65533".into()), ..shell("id -u; id -g; id -G") };
    let ran = finish(agent.exec(spec).0);
    assert_eq!(ran.text(), "65534\n65533\n65533\n");
}

#[test]
fn big_input_comes_back_whole_through_a_slow_process() {
    let agent = Agent::start(&[]);
    let (client, _) = agent.exec(ExecSpec { stdin: true, ..shell("sleep 0.2; cat") });
    let sent: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let copy = sent.clone();
    let writer = client.into_stream();
    let reader = agent_protocol::Client::new(writer.try_clone().expect("a second handle"));
    let feeding = std::thread::spawn(move || {
        let mut client = agent_protocol::Client::new(writer);
        client.send_data(FrameKind::Stdin, &copy).expect("fed");
        client.send_mark(FrameKind::StdinEof).expect("ended");
    });
    let ran = finish(reader);
    feeding.join().expect("fed");
    assert_eq!(ran.exit, Exit::Code(0));
    assert!(ran.out == sent, "{} of {} bytes came back", ran.out.len(), sent.len());
}

#[test]
fn a_host_that_does_not_read_stops_the_process_and_nobody_else() {
    let agent = Agent::start(&[]);
    let (client, _) = agent.exec(shell("head -c 20000000 /dev/zero; echo done >&2"));
    for _ in 0..20 {
        assert_eq!(agent.shell("echo other").text(), "other\n");
    }
    let ran = finish(client);
    assert_eq!((ran.out.len(), ran.err.as_slice()), (20_000_000, &b"done\n"[..]));
}

#[test]
fn signals_reach_the_process_or_its_group() {
    let agent = Agent::start(&[]);
    let (mut client, started) =
        agent.exec(shell("trap 'echo got; exit 3' USR1; echo up; while :; do sleep 0.05; done"));
    let mut seen = Vec::new();
    read_until(&mut client, &mut seen, "up\n");
    client.send(FrameKind::Signal, &SignalSpec { signal: 10, group: false }).expect("sent");
    read_until(&mut client, &mut seen, "got\n");
    assert_eq!(finish(client).exit, Exit::Code(3));
    let gone = agent
        .connect()
        .call(&Request::Kill { session: started.session, signal: SignalSpec { signal: 9, group: true } });
    assert_eq!(gone.expect_err("gone").kind(), ErrorKind::NoSuchSession);
    let (client, started) = agent.exec(shell("sleep 100; echo never"));
    let kill = Request::Kill { session: started.session, signal: SignalSpec { signal: 15, group: true } };
    agent.connect().call(&kill).expect("signalled");
    assert_eq!(finish(client).exit, Exit::Signal(15));
}

#[test]
fn a_descendant_that_holds_the_pipe_does_not_hold_up_the_end() {
    let agent = Agent::start(&[]);
    let ran = agent.shell("echo first; sleep 30 & exit 5");
    assert_eq!((ran.text(), ran.exit), ("first\n", Exit::Code(5)));
}

#[test]
fn someone_else_can_wait_for_a_process() {
    let agent = Agent::start(&[]);
    let (client, started) = agent.exec(ExecSpec { stdin: true, ..shell("read line; exit 9") });
    let waiter = agent.connect();
    let waiting = std::thread::spawn(move || waiter.wait(started.session).expect("an exit"));
    let mut client = client;
    client.send_data(FrameKind::Stdin, b"go\n").expect("fed");
    assert_eq!(finish(client).exit, Exit::Code(9));
    assert_eq!(waiting.join().expect("waited"), Exit::Code(9));
}
