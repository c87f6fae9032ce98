//! Processes that are split off and wait for each other. Without the test harness, whose threads would forbid splitting.

use std::time::Duration;

use host::{Rendezvous, Side, split};
use rustix::process::{Pid, WaitOptions, waitpid};

/// Far longer than anything here takes: only a mistake waits for it.
const LONG: Duration = Duration::from_secs(60);

fn main() {
    all_have_come_when_the_last_one_has();
    who_ends_has_come();
}

/// Runs `body` in a process of its own, which ends with 0 where it was true.
fn process(body: impl FnOnce() -> bool) -> u32 {
    match split().unwrap() {
        Side::Child => std::process::exit(i32::from(!body())),
        Side::Parent(pid) => pid,
    }
}

fn exit_code(pid: u32) -> Option<i32> {
    let pid = Pid::from_raw(pid as i32);
    waitpid(pid, WaitOptions::empty()).unwrap().and_then(|(_, status)| status.exit_status())
}

fn all_have_come_when_the_last_one_has() {
    let point = Rendezvous::new().unwrap();
    let others: Vec<u32> = (0..3)
        .map(|_| {
            process(|| {
                point.come();
                point.come();
                point.wait(LONG)
            })
        })
        .collect();
    assert!(!point.wait(Duration::ZERO), "this one has not come");
    point.come();
    assert!(point.wait(LONG));
    assert!(others.into_iter().all(|pid| exit_code(pid) == Some(0)));
}

fn who_ends_has_come() {
    let point = Rendezvous::new().unwrap();
    let other = process(|| true);
    point.come();
    assert!(point.wait(LONG));
    assert_eq!(exit_code(other), Some(0));
}
