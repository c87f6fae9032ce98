//! The machine's end: TERM, a grace, KILL, file data to the disks, power off.

use crate::agent::{Agent, now_ms};
use crate::worker::Channel;
use crate::world::{World, say};
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{AgentState, Failure, Power, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal};
use std::io::Write;

impl Agent {
    /// Ends every process and the machine, in a forked copy; processes are reaped here meanwhile.
    ///
    /// # Errors
    /// `Busy` when it is going down already.
    pub fn shut_down(&mut self, id: u64, power: Power, grace_ms: u32) -> Result<(), Failure> {
        if self.state == AgentState::ShuttingDown {
            return self.must_run();
        }
        self.state = AgentState::ShuttingDown;
        self.ending = Some(id);
        let running = self.sessions.values().filter(|session| session.exit.is_none());
        let leaders: Vec<Pid> = running.map(|session| session.pid).collect();
        self.work(id, move |world, channel| end_machine(world, channel, &leaders, power, grace_ms))
    }
}

fn end_machine(world: &World, channel: &mut Channel, leaders: &[Pid], power: Power, grace_ms: u32) {
    if let Some(group) = &world.cgroup {
        // A stopped process cannot heed a signal.
        let _ = group.write("cgroup.freeze", "0");
    }
    signal_everything(world, leaders, Signal::TERM);
    if !wait_until_empty(world, leaders, u64::from(grace_ms)) {
        signal_everything(world, leaders, Signal::KILL);
        wait_until_empty(world, leaders, 5000);
    }
    rustix::fs::sync();
    if let Ok(done) = frame::encode(FrameKind::Reply, &Reply::Done) {
        // Nobody has to be there to hear it.
        let _ = channel.write_all(&done);
    }
    if world.pid1 {
        power_down(world, power);
    }
}

/// Signals every process but init and this one; outside a machine only what the agent started.
fn signal_everything(world: &World, leaders: &[Pid], signal: Signal) {
    if world.pid1 {
        // Only ever as PID 1, where every process there is belongs to this machine.
        let _ = crate::sys::process::signal_all(signal);
    } else {
        for leader in leaders {
            let _ = rustix::process::kill_process_group(*leader, signal);
        }
    }
}

/// Waits until no process of the user's is left, woken by the kernel; `false` when time ran out.
fn wait_until_empty(world: &World, leaders: &[Pid], limit_ms: u64) -> bool {
    let end = now_ms().saturating_add(limit_ms);
    let events = world.cgroup.as_ref().and_then(|group| group.open_file("cgroup.events").ok());
    loop {
        let empty = match &world.cgroup {
            Some(group) => !group.event("populated"),
            None => leaders.iter().all(|pid| rustix::process::test_kill_process_group(*pid).is_err()),
        };
        let left = end.saturating_sub(now_ms());
        if empty || left == 0 {
            return empty;
        }
        // With a group the kernel wakes us; without one (in a test) we look ten times a second.
        let wait = if events.is_some() { left.min(1000) } else { left.min(100) };
        let limit = Timespec { tv_sec: (wait / 1000) as i64, tv_nsec: (wait % 1000) as i64 * 1_000_000 };
        let mut watched: Vec<PollFd<'_>> = events.iter().map(|fd| PollFd::new(fd, PollFlags::PRI)).collect();
        let _ = poll(&mut watched, Some(&limit));
    }
}

/// Makes the disks clean and gives the machine back.
fn power_down(world: &World, power: Power) {
    if let Err(error) = crate::identity::keep(world) {
        say(&format!("smolvm-agent: keeping /etc/machine-id and /etc/hosts: {error}\n"));
    }
    crate::mounts::unmount_all();
    let _ = rustix::mount::mount_remount("/", MountFlags::RDONLY, "");
    if let Some(disk) = &world.writable {
        // The disk's own mount is outside our root; its descriptor still names it.
        let _ = rustix::process::fchdir(disk);
        let _ = rustix::mount::mount_remount(".", MountFlags::RDONLY, "");
    }
    rustix::fs::sync();
    say("smolvm-agent: power off\n");
    let command = match power {
        Power::Off => rustix::system::RebootCommand::PowerOff,
        Power::Reboot => rustix::system::RebootCommand::Restart,
    };
    let _ = rustix::system::reboot(command);
}
