//! The end: processes are asked, then forced; nothing new starts.

mod common;

use agent_protocol::{ErrorKind, Exit, Power, Reply, Request};
use common::{Agent, read_until, shell};

#[test]
fn processes_are_asked_then_forced() {
    let agent = Agent::start(&[]);
    let (mut polite, _) =
        agent.exec(shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done"));
    let (mut stubborn, _) = agent.exec(shell("trap '' TERM; echo up; while :; do sleep 0.02; done"));
    read_until(&mut polite, &mut Vec::new(), "up\n");
    read_until(&mut stubborn, &mut Vec::new(), "up\n");
    let mut client = agent.connect();
    client.start(&Request::Shutdown { power: Power::Off, grace_ms: 300 }).expect("sent");
    read_until(&mut polite, &mut Vec::new(), "bye\n");
    let refused = agent.connect().call(&Request::Exec(shell("true")));
    assert_eq!(refused.expect_err("too late").kind(), ErrorKind::Busy);
    assert_eq!(common::finish(polite).exit, Exit::Code(0));
    assert_eq!(common::finish(stubborn).exit, Exit::Signal(9));
    assert_eq!(client.reply().expect("done"), Reply::Done);
}

#[test]
fn the_end_does_not_wait_for_who_asked_for_it() {
    let agent = Agent::start(&[]);
    let (mut process, _) = agent.exec(shell("trap '' TERM; echo up; while :; do sleep 0.02; done"));
    read_until(&mut process, &mut Vec::new(), "up\n");
    let mut client = agent.connect();
    client.start(&Request::Shutdown { power: Power::Off, grace_ms: 200 }).expect("sent");
    drop(client);
    assert_eq!(common::finish(process).exit, Exit::Signal(9));
}
