//! Freezing with a real control group, where the host lets us make one.

mod common;

use agent_protocol::{
    AgentState, ErrorKind, Exit, FreezeSpec, HookSet, Reply, Request, RestoreReason, RestoredSpec, SignalSpec,
};
use common::{Agent, finish, read_until, shell};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs;
use std::io::{Read, Seek};
use std::path::PathBuf;

/// A control group of our own, removed with the value.
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Option<Group> {
        for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let path = PathBuf::from(place).join(format!("smolvm-agent-test-{name}-{}", std::process::id()));
            if fs::create_dir(&path).is_ok() {
                if path.join("cgroup.freeze").exists() {
                    return Some(Group(path));
                }
                let _ = fs::remove_dir(&path);
            }
        }
        eprintln!("SKIPPED: no cgroup v2 that may be written here");
        None
    }

    fn agent(&self) -> Agent {
        Agent::start(&["--cgroup", self.0.to_str().expect("utf-8")])
    }
}

impl Group {
    /// Ends whatever is in it and removes it.
    fn end(&self) -> std::io::Result<()> {
        fs::write(self.0.join("cgroup.freeze"), "0")?;
        fs::write(self.0.join("cgroup.kill"), "1")?;
        // The killed die when they run next. The file says so, and poll hears of its change (Linux, cgroup-v2.rst).
        let mut events = fs::File::open(self.0.join("cgroup.events"))?;
        loop {
            let mut said = String::new();
            events.rewind()?;
            events.read_to_string(&mut said)?;
            if said.contains("populated 0") {
                return fs::remove_dir(&self.0);
            }
            let mut change = [PollFd::new(&events, PollFlags::PRI)];
            if poll(&mut change, Some(&Timespec { tv_sec: 20, tv_nsec: 0 }))? == 0 {
                return Err(std::io::Error::other(format!("what was killed lives: {said}")));
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        match self.end() {
            Err(error) if !std::thread::panicking() => panic!("{} stays: {error}", self.0.display()),
            _ => {}
        }
    }
}

fn restored(hooks: Vec<Vec<String>>) -> Request {
    Request::Restored(RestoredSpec {
        reason: RestoreReason::Fork,
        realtime_ns: 1,
        seed: vec![1; 64],
        generation: [0xcd; 16],
        hostname: None,
        machine_id: None,
        hooks: HookSet { commands: hooks, timeout_ms: 5000 },
        mounts: Vec::new(),
    })
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| word.to_string()).collect()
}

#[test]
fn frozen_processes_stand_still_and_go_on_with_their_sessions() {
    let Some(group) = Group::make("still") else { return };
    let agent = group.agent();
    let (mut client, started) =
        agent.exec(shell("trap 'echo got; exit 3' USR1; echo up; while :; do sleep 0.02; done"));
    read_until(&mut client, &mut Vec::new(), "up\n");
    let flag = agent.path().join("hooked");
    let hooks = HookSet { commands: vec![words(&["touch", flag.to_str().expect("utf-8")])], timeout_ms: 0 };
    let reply = agent.connect().call(&Request::Freeze(FreezeSpec { hooks, timeout_ms: 5000, sync: false }));
    assert!(matches!(reply, Ok(Reply::Frozen(_))), "{reply:?}");
    assert!(flag.exists(), "the hook ran");
    assert!(fs::read_to_string(group.0.join("cgroup.events")).expect("events").contains("frozen 1"));
    // What is asked for now waits for the restore, unless its host goes away before.
    let mut waiting = agent.connect();
    waiting.start(&Request::Exec(shell("echo held"))).expect("sent");
    let mut gone = agent.connect();
    let never = agent.path().join("never");
    gone.start(&Request::Exec(shell(&format!("touch {}", never.display())))).expect("sent");
    assert_eq!(agent.connect().ping().expect("a pong").state, AgentState::Frozen);
    drop(gone);
    // A host lost to the freeze ends nothing; whoever comes after the restore finds the process.
    drop(client);
    let reply = agent.connect().call(&restored(vec![]));
    assert!(matches!(reply, Ok(Reply::Restored(ref report)) if report.notes.is_empty()), "{reply:?}");
    waiting.started().expect("it goes on");
    let done = finish(waiting);
    assert_eq!((done.text(), done.exit), ("held\n", Exit::Code(0)));
    assert!(!never.exists(), "nobody wanted it any more");
    let pong = agent.connect().ping().expect("a pong");
    assert_eq!((pong.state, pong.generation), (AgentState::Running, [0xcd; 16]));
    assert_eq!(
        fs::read_to_string(agent.path().join("run/generation")).expect("a file").trim(),
        "cd".repeat(16)
    );
    let mut client = agent.connect();
    client.start(&Request::Attach { session: started.session, replay: true }).expect("sent");
    client.started().expect("attached");
    client.send(agent_protocol::FrameKind::Signal, &SignalSpec { signal: 10, group: false }).expect("sent");
    read_until(&mut client, &mut Vec::new(), "got\n");
    assert_eq!(finish(client).exit, Exit::Code(3));
}

#[test]
fn a_hook_that_fails_stops_a_freeze_and_not_a_thaw() {
    let Some(group) = Group::make("hooks") else { return };
    let agent = group.agent();
    let hooks = HookSet { commands: vec![words(&["false"])], timeout_ms: 0 };
    let refused = agent.connect().call(&Request::Freeze(FreezeSpec { hooks, ..FreezeSpec::default() }));
    let refused = refused.expect_err("the hook failed");
    assert!(
        refused.to_string().contains("hook false") && refused.to_string().contains("exited with 1"),
        "{refused}"
    );
    assert_eq!(agent.shell("echo runs").text(), "runs\n");
    let slow = HookSet { commands: vec![words(&["sleep", "30"])], timeout_ms: 50 };
    let late = agent.connect().call(&Request::Freeze(FreezeSpec { hooks: slow, ..FreezeSpec::default() }));
    assert_eq!(late.expect_err("too slow").kind(), ErrorKind::TimedOut);
    // The failure once told, everything is as before: at once, every time.
    for _ in 0..30 {
        let hooks = HookSet { commands: vec![words(&["false"])], timeout_ms: 0 };
        agent
            .connect()
            .call(&Request::Freeze(FreezeSpec { hooks, ..FreezeSpec::default() }))
            .expect_err("the hook failed");
        assert_eq!(agent.connect().ping().expect("a pong").state, AgentState::Running);
    }
    agent.connect().call(&Request::Freeze(FreezeSpec::default())).expect("frozen");
    let said = agent.path().join("said");
    let tell = format!("echo $SMOLVM_REASON > {}", said.display());
    let reply = agent.connect().call(&restored(vec![
        words(&["sh", "-c", &tell]),
        words(&["false"]),
        words(&["true"]),
    ]));
    let Ok(Reply::Restored(report)) = reply else { panic!("{reply:?}") };
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    assert_eq!(fs::read_to_string(said).expect("the hook ran"), "fork\n");
    assert_eq!(agent.shell("echo runs").text(), "runs\n");
}

#[test]
fn a_freeze_that_takes_too_long_is_undone_and_names_who_ran() {
    let Some(group) = Group::make("stuck") else { return };
    let agent = group.agent();
    // Many processes that always run, and a limit no machine can keep: one of them is still running when it is over.
    let (mut client, _) =
        agent.exec(shell("for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; echo up; wait"));
    read_until(&mut client, &mut Vec::new(), "up\n");
    for _ in 0..200 {
        match agent.connect().call(&Request::Freeze(FreezeSpec { timeout_ms: 1, ..FreezeSpec::default() })) {
            Ok(_) => drop(agent.connect().call(&Request::Thaw).expect("thawed")),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                assert!(error.to_string().contains("after 1 ms"), "{error}");
                break;
            }
        }
    }
    assert!(fs::read_to_string(group.0.join("cgroup.events")).expect("events").contains("frozen 0"));
    assert_eq!(agent.shell("echo runs").text(), "runs\n");
}

#[test]
fn a_freeze_whose_host_goes_away_leaves_the_machine_running() {
    let Some(group) = Group::make("gone") else { return };
    let agent = group.agent();
    let hooks = HookSet { commands: vec![words(&["sleep", "20"])], timeout_ms: 30_000 };
    let mut client = agent.connect();
    client.start(&Request::Freeze(FreezeSpec { hooks, ..FreezeSpec::default() })).expect("sent");
    drop(client);
    while agent.connect().ping().expect("a pong").state != AgentState::Running {
        std::thread::yield_now();
    }
    assert_eq!(agent.shell("echo runs").text(), "runs\n");
}

#[test]
fn a_thaw_undoes_a_freeze_and_keeps_connections() {
    let Some(group) = Group::make("thaw") else { return };
    let agent = group.agent();
    let (mut client, _) = agent.exec(agent_protocol::ExecSpec { stdin: true, ..shell("echo up; cat") });
    read_until(&mut client, &mut Vec::new(), "up\n");
    for _ in 0..20 {
        agent.connect().call(&Request::Freeze(FreezeSpec::default())).expect("frozen");
        agent.connect().call(&Request::Thaw).expect("thawed");
        client.send_data(agent_protocol::FrameKind::Stdin, b"still\n").expect("fed");
        read_until(&mut client, &mut Vec::new(), "still\n");
    }
    let plain = Agent::start(&[]);
    let refused = plain.connect().call(&Request::Freeze(FreezeSpec::default()));
    assert_eq!(refused.expect_err("no group").kind(), ErrorKind::Unsupported);
}
