//! What a machine puts right after it was restored, before its processes go on.
//!
//! The order is fixed: random numbers (so that nothing drawn later repeats), the clock, the names, the generation
//! file, connections whose peers are gone, volumes, folders of the host, hooks, and the thaw last.

use crate::agent::Agent;
use crate::command::restore_hooks;
use crate::dispatch::nanoseconds;
use crate::identity::{MACHINE_ID, set_host_name};
use crate::sys::process::exit_now;
use crate::sys::{random, tcp};
use crate::world::World;
use agent_protocol::{ErrorKind, Failure, Reply, RestoredReport, RestoredSpec};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};
use std::io;

/// The file whose contents change with every restore.
const GENERATION_FILE: &str = "generation";
/// How the copy ends that could not mount what it should.
pub const STAYS_FROZEN: i32 = 3;
/// The shortest seed worth having, in bytes.
const SEED: usize = 32;

impl Agent {
    /// Serves `Restored`.
    ///
    /// # Errors
    /// `BadRequest` for a short seed. What fails on the way is noted in the report: a machine with a wrong host name
    /// is better than a frozen one.
    pub fn restored(&mut self, id: u64, spec: RestoredSpec) -> Result<(), Failure> {
        let begin = nanoseconds(ClockId::Monotonic);
        if spec.seed.len() < SEED {
            return Err(Failure::new(ErrorKind::BadRequest, format!("the seed has fewer than {SEED} bytes")));
        }
        // The freeze that this undoes is over, whether or not its copy was reaped yet.
        self.freezing = None;
        let mut report = put_right(&self.world, &spec);
        self.generation = spec.generation;
        self.drop_stale(id);
        if spec.hooks.commands.is_empty() && spec.mounts.is_empty() {
            note(&mut report.notes, "letting the processes go on", self.let_go());
            report.total_us = (nanoseconds(ClockId::Monotonic) - begin) / 1000;
            self.reply(id, &Reply::Restored(report));
            return Ok(());
        }
        let result = self.work(id, move |world, channel| {
            if let Err(failure) = crate::mounts::mount_all(world, &spec.mounts) {
                channel.fail(&failure);
                exit_now(STAYS_FROZEN);
            }
            if let Err(failure) = restore_hooks(world, &spec.hooks, spec.reason) {
                report.notes.push(failure.text);
            }
            let thawed = world.cgroup.as_ref().map_or(Ok(()), |group| group.write("cgroup.freeze", "0"));
            note(&mut report.notes, "letting the processes go on", thawed);
            report.total_us = (nanoseconds(ClockId::Monotonic) - begin) / 1000;
            channel.reply(&Reply::Restored(report));
        });
        match result {
            // New processes are born into the frozen group and wait for the thaw like the others.
            Ok(()) => {
                self.state = agent_protocol::AgentState::Running;
                self.restoring = Some(id);
                self.start_held();
            }
            Err(_) => drop(self.let_go()),
        }
        result
    }

    /// Drops the connections whose other ends were not restored with us, of all but `id`. The device resets them
    /// before it carries anything new, so each that is not marked shows by now that its host is gone; what is left
    /// came with the request that is being served.
    fn drop_stale(&mut self, id: u64) {
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let mut watched: Vec<PollFd<'_>> =
            self.conns.values().map(|conn| PollFd::new(&conn.fd, PollFlags::RDHUP)).collect();
        // A failure shows nobody as gone; their ends come as events.
        let _ = rustix::event::poll(&mut watched, Some(&Timespec::default()));
        let gone: Vec<bool> = watched.iter().map(|fd| fd.revents().intersects(gone)).collect();
        for ((other, conn), gone) in self.conns.iter_mut().zip(gone) {
            if *other != id && (conn.before_freeze || gone) {
                conn.before_freeze = true;
                conn.dead = true;
                self.touched.push(*other);
            }
        }
        self.settle_touched();
    }
}

fn note<E: std::fmt::Display>(notes: &mut Vec<String>, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        notes.push(format!("{what}: {error}"));
    }
}

/// Everything but hooks and thaw. Outside a machine the host's own clock, name and connections are left alone.
fn put_right(world: &World, spec: &RestoredSpec) -> RestoredReport {
    let mut report = RestoredReport::default();
    let notes = &mut report.notes;
    if world.pid1 {
        note(notes, "reseeding the random number generator", random::reseed(&spec.seed));
        let time = Timespec {
            tv_sec: i64::try_from(spec.realtime_ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (spec.realtime_ns % 1_000_000_000) as i64,
        };
        note(notes, "setting the clock", rustix::time::clock_settime(ClockId::Realtime, time));
        if let Some(name) = &spec.hostname {
            note(notes, "setting the host name", set_host_name(world, name, true));
        }
    }
    if let Some(machine) = spec.machine_id {
        note(notes, "writing /etc/machine-id", MACHINE_ID.write(world, hex(&machine).as_bytes()));
        if world.pid1 {
            note(notes, "changing the hardware address", crate::network::renew_hardware_address());
        }
    }
    note(notes, "writing the generation file", write_generation(world, &spec.generation));
    if world.pid1 && reaches_outside() {
        match tcp::reset_remote() {
            Ok(closed) => report.sockets_closed = closed,
            Err(error) => notes.push(format!("closing connections to the outside: {error}")),
        }
    }
    report
}

/// Whether there is an interface besides the loopback that is up; without one nobody outside can be a peer, and
/// looking through the kernel's tables of connections would take longer than all the rest.
fn reaches_outside() -> bool {
    const UP: u32 = 1; // IFF_UP, netdevice(7)
    let names = crate::world::open_directory(std::path::Path::new("/sys/class/net"));
    let Ok(names) = names.and_then(|directory| crate::walk::names_in(&directory)) else { return true };
    let is_up = |name: &std::ffi::CString| {
        let flags = crate::world::read_text(&format!("/sys/class/net/{}/flags", name.to_string_lossy()));
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
        flags.is_ok_and(|flags| flags & UP != 0)
    };
    names.iter().any(|name| name.as_c_str() != c"lo" && is_up(name))
}

fn hex(id: &[u8; 16]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(33);
    for byte in id {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    text
}

/// Writes the id of a restore; zeros before the first.
///
/// # Errors
/// The file system's.
pub fn write_generation(world: &World, id: &[u8; 16]) -> io::Result<()> {
    let path = world.run.join(GENERATION_FILE);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_bits_retain(0o444))?;
    // Always 33 bytes, written at once: no reader sees a half.
    rustix::io::pwrite(&file, hex(id).as_bytes(), 0)?;
    Ok(())
}
