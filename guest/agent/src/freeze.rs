//! Bringing the user's processes to rest, and letting them go on.
//!
//! The rest itself is the kernel's (cgroup v2 freezer): no process of the group runs in user mode once
//! `cgroup.events` says `frozen 1`, whatever it was doing. Hooks run before it, file data is written before it.

use crate::agent::{Agent, now_ms};
use crate::cgroup::Cgroup;
use crate::command::{run_hooks, wait_readable};
use crate::dispatch::nanoseconds;
use crate::worker::Channel;
use crate::world::{World, read_text};
use agent_protocol::{AgentState, ErrorKind, Failure, FreezeSpec, FrozenReport, Reply};
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::ClockId;

/// How long tasks may take to stop when nothing else was said.
const FREEZE_MS: u64 = 10_000;

/// A freeze under way.
pub struct Freezing {
    /// The host's connection.
    pub conn: u64,
    /// Holds a byte, [`STANDS`] or [`RUNS`], before the host has its answer. The copy's own end says nothing: the host
    /// may hang up, or ask for the next thing, before it.
    outcome: OwnedFd,
}

/// Everything stands still.
const STANDS: u8 = 1;
/// It failed, and everything runs.
const RUNS: u8 = 2;

impl Agent {
    /// Serves `Freeze`.
    ///
    /// # Errors
    /// `Busy` unless the machine runs; `Unsupported` without a control group.
    pub fn freeze(&mut self, id: u64, spec: FreezeSpec) -> Result<(), Failure> {
        self.must_run()?;
        if self.world.cgroup.is_none() {
            let text = "the guest has no cgroup v2, so its processes cannot be frozen";
            return Err(Failure::new(ErrorKind::Unsupported, text));
        }
        // A connection that is lost from now on is lost to the freeze.
        self.conns.values_mut().for_each(|conn| conn.before_freeze = true);
        let (outcome, done) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| Failure::new(ErrorKind::Other, format!("making a pipe: {error}")))?;
        self.work(id, move |world, channel| freeze_group(world, channel, &spec, &done))?;
        self.state = AgentState::Freezing;
        self.freezing = Some(Freezing { conn: id, outcome });
        Ok(())
    }

    /// Takes note of how a freeze went, if that is decided.
    pub fn learn_of_freeze(&mut self) {
        let Some(freezing) = &self.freezing else { return };
        let mut outcome = [0u8; 1];
        if rustix::io::read(&freezing.outcome, &mut outcome) != Ok(1) {
            return;
        }
        self.freezing = None;
        if outcome == [STANDS] {
            self.state = AgentState::Frozen;
        } else {
            let _ = self.let_go();
        }
    }

    /// The copy that froze, or failed to, ended.
    pub fn freeze_ended(&mut self) {
        self.learn_of_freeze();
        if self.freezing.is_some() {
            // It died half-way, or its host went away.
            let _ = self.let_go();
        }
    }

    /// Lets the group run and the agent take requests again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_go(&mut self) -> std::io::Result<()> {
        self.freezing = None;
        if self.state != AgentState::ShuttingDown {
            self.state = AgentState::Running;
        }
        self.conns.values_mut().for_each(|conn| conn.before_freeze = false);
        let thawed = self.world.cgroup.as_ref().map_or(Ok(()), |group| group.write("cgroup.freeze", "0"));
        self.start_held();
        thawed
    }

    /// Serves `Thaw`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn thaw(&mut self, id: u64) -> Result<(), Failure> {
        self.let_go().map_err(|error| {
            Failure::new(ErrorKind::Other, format!("letting the guest's processes go on: {error}"))
        })?;
        self.reply(id, &Reply::Done);
        Ok(())
    }
}

fn microseconds() -> u64 {
    nanoseconds(ClockId::Monotonic) / 1000
}

/// Runs in the copy: freezes, and tells first the agent, then the host.
fn freeze_group(world: &World, channel: &mut Channel, spec: &FreezeSpec, outcome: &OwnedFd) {
    match try_freeze(world, spec) {
        Ok(report) => {
            let _ = rustix::io::write(outcome, &[STANDS]);
            channel.reply(&Reply::Frozen(report));
        }
        Err(failure) => {
            let _ = rustix::io::write(outcome, &[RUNS]);
            channel.fail(&failure);
        }
    }
}

/// Hooks, file data, freeze; a failure leaves everything running.
fn try_freeze(world: &World, spec: &FreezeSpec) -> Result<FrozenReport, Failure> {
    let missing = || Failure::new(ErrorKind::Unsupported, "the guest has no control group");
    let group = world.cgroup.as_ref().ok_or_else(missing)?;
    let begin = microseconds();
    run_hooks(world, &spec.hooks, "snapshot")?;
    let hooked = microseconds();
    if world.pid1 {
        // Without it copies cost more; they get their ids all the same.
        let _ = crate::identity::MACHINE_ID.lay_over(world);
    }
    if spec.sync {
        rustix::fs::sync();
        if let Some(disk) = &world.writable {
            // The journal is written round and round: without this each snapshot of a snapshot holds a few more of its
            // 4096 blocks, once on the disk and once in the kernel's cache. Where it fails, files are larger.
            let _ = crate::sys::ext4::forget_journal(disk);
        }
        // The first one's journal commit leaves a superblock to be written: a machine that resumes with it wakes up
        // every five seconds for half a minute to look whether it is old enough.
        rustix::fs::sync();
    }
    let synced = microseconds();
    let limit = if spec.timeout_ms == 0 { FREEZE_MS } else { u64::from(spec.timeout_ms) };
    if let Err(failure) = freeze_within(group, limit) {
        let _ = group.write("cgroup.freeze", "0");
        return Err(failure);
    }
    Ok(FrozenReport {
        hooks_us: hooked - begin,
        sync_us: synced - hooked,
        freeze_us: microseconds().saturating_sub(synced),
    })
}

fn freeze_within(group: &Cgroup, limit_ms: u64) -> Result<(), Failure> {
    let other = |error: std::io::Error| {
        Failure::new(ErrorKind::Other, format!("freezing the guest's processes: {error}"))
    };
    let events = group.open_file("cgroup.events").map_err(other)?;
    group.write("cgroup.freeze", "1").map_err(other)?;
    let end = now_ms().saturating_add(limit_ms);
    // In an empty group there is nothing that could run.
    while !group.event("frozen") && group.event("populated") {
        let left = end.saturating_sub(now_ms());
        if left == 0 {
            let text = format!("after {limit_ms} ms the guest's processes still run: {}", stuck(group));
            return Err(Failure::new(ErrorKind::TimedOut, text));
        }
        // The kernel signals a change of the file; a second at most covers one between look and wait.
        wait_readable(&events, PollFlags::PRI, left.min(1000));
    }
    Ok(())
}

/// Names the tasks that are in the way: those in an uninterruptible wait, else those that run.
fn stuck(group: &Cgroup) -> String {
    const NAMED: usize = 8;
    const LOOKED_AT: usize = 4096;
    let mut waiting = Vec::new();
    let mut running = Vec::new();
    let tasks = group.members().into_iter().flat_map(|pid| {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        tasks.map(move |task| format!("/proc/{pid}/task/{}", task.file_name().to_string_lossy()))
    });
    for task in tasks.take(LOOKED_AT) {
        match task_state(&task) {
            Some(('D', line)) => waiting.push(line),
            Some(('R', line)) => running.push(line),
            _ => {}
        }
    }
    let mut lines = if waiting.is_empty() { running } else { waiting };
    let more = lines.len().saturating_sub(NAMED);
    lines.truncate(NAMED);
    match (lines.is_empty(), more) {
        (true, _) => "none of them can be named".to_string(),
        (_, 0) => lines.join(", "),
        _ => format!("{} and {more} more", lines.join(", ")),
    }
}

/// A task's state letter, and a line that names it.
fn task_state(task: &str) -> Option<(char, String)> {
    let stat = read_text(&format!("{task}/stat"));
    // pid (comm) state ...: the name may hold anything, so from its last parenthesis.
    let (head, tail) = stat.rsplit_once(')')?;
    let (id, name) = head.split_once(" (")?;
    let state = tail.trim_start().chars().next()?;
    let place = read_text(&format!("{task}/wchan"));
    let place = if place.is_empty() || place == "0" { "-" } else { place.trim() };
    Some((state, format!("task {id} ({name}) state {state} in {place}")))
}
