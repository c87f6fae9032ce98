//! `rightsize`: runs a command in a machine, measures it, and proposes what its Smolfile should say.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use instance::Instance;
use serde::Serialize;
use spec::Size;

use crate::args::{Global, Rightsize};
use crate::cmd::stats::{Sample, sample};
use crate::cmd::vmm;
use crate::interrupt;
use crate::launch::Home;
use crate::ui;
use crate::ui::say::say;

/// Time between two looks, at least and at most.
const EVERY: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];
/// CPU use is looked at over no less: shorter bursts need no CPU of their own.
const WINDOW: Duration = Duration::from_secs(1);
/// How long a service is watched when no command is given.
const WATCH: Duration = Duration::from_secs(30);
/// Share of a CPU, in percent, above which it counts as fully used.
const FULL: u64 = 85;
/// Memory is proposed in steps of this, and never less than two of them.
const STEP: u64 = 64 << 20;

/// What a run used at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Measured {
    seconds: f64,
    vcpus: u32,
    /// Hundredths of a CPU that were busy: at most over [`WINDOW`], and over the whole run.
    cpu_peak: u64,
    cpu_mean: u64,
    /// Bytes that the machine has, that its kernel leaves, and that were used at most.
    memory: u64,
    memory_guest: u64,
    memory_peak: u64,
    /// Bytes of the host's memory at most.
    own_peak: u64,
    /// Bytes written to the root.
    disk: u64,
}

/// What the Smolfile should say, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Proposal {
    cpus: u64,
    cpus_why: String,
    memory: u64,
    memory_why: String,
    disk: u64,
    disk_why: String,
}

#[derive(Serialize)]
struct Report {
    exit_code: u8,
    measured: Measured,
    proposal: Proposal,
}

pub fn rightsize(rightsize: &Rightsize, global: &Global, home: &Home) -> Result<u8> {
    let name = instance::new_name(&home.dirs);
    let remove = |name: &str| drop(program(&["rm", "-f", name]).and_then(|mut c| Ok(c.output()?)));
    let (_, undo) = interrupt::making(
        || start(rightsize, &name),
        |()| {
            let name = name.clone();
            move || remove(&name)
        },
    )?;
    let instance = Instance::open(&home.dirs, &name)?;
    let result = measure(rightsize, &instance);
    remove(&name);
    drop(undo);
    let (exit_code, measured) = result?;
    let proposal = propose(&measured);
    if global.json {
        ui::json(&Report { exit_code, measured, proposal })?;
    } else {
        print(&measured, &proposal);
    }
    Ok(exit_code)
}

/// This program again, which finds the same store.
fn program(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(vmm::this_program());
    command.args(args).stdin(Stdio::null());
    Ok(command)
}

fn start(rightsize: &Rightsize, name: &str) -> Result<()> {
    let mut command = program(&["run", "-d", "--name", name, "--engine", &rightsize.engine.engine])?;
    if rightsize.engine.force_template {
        command.arg("--force-template");
    }
    let cpus = rightsize.cpus.map(|n| n.to_string());
    for (flag, value) in [("--cpus", &cpus), ("--memory", &rightsize.memory)] {
        if let Some(value) = value {
            command.args(["--cold", flag, value]);
        }
    }
    let output = command.arg(&rightsize.file).output().context("starting the machine")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("smolvm: "));
    }
    Ok(())
}

fn measure(rightsize: &Rightsize, instance: &Instance) -> Result<(u8, Measured)> {
    // clap keeps a `--` before the command as its first word.
    let argv = rightsize.command.strip_prefix(&["--".to_owned()]).unwrap_or(&rightsize.command);
    let (done, told) = channel::<()>();
    thread::scope(|scope| {
        let watcher = scope.spawn(move || watch(instance, &told));
        let code = match argv {
            [] => {
                thread::sleep(WATCH);
                Ok(0)
            }
            argv => exec(instance.name(), argv),
        };
        drop(done);
        let measured = watcher.join().unwrap_or_else(|_| bail!("the measuring thread failed"));
        Ok((code?, measured?))
    })
}

/// The command's output goes to stderr: stdout is for the proposal.
fn exec(name: &str, argv: &[String]) -> Result<u8> {
    let mut command = program(&["exec", name])?;
    let status = command.args(argv).stdout(std::io::stderr()).status().context("running the command")?;
    Ok(status.code().map_or(125, |code| code as u8))
}

/// Looks at the machine until `told` says that the run is over.
fn watch(instance: &Instance, told: &Receiver<()>) -> Result<Measured> {
    let first = sample(instance)?;
    let mut meter = Meter::new(first);
    loop {
        let over = told.recv_timeout(pause(meter.begun.elapsed())) != Err(RecvTimeoutError::Timeout);
        match sample(instance) {
            Ok(sample) => meter.add(sample),
            // It ended with its command.
            Err(_) if over => return Ok(meter.measured()),
            Err(e) => return Err(e).context("measuring"),
        }
        if over {
            return Ok(meter.measured());
        }
    }
}

/// How long to wait for the next look: a fiftieth of the time so far. What a short run takes for a moment is seen as well
/// as what a long one takes for longer.
fn pause(elapsed: Duration) -> Duration {
    (elapsed / 50).clamp(EVERY[0], EVERY[1])
}

struct Meter {
    begun: Instant,
    first: Sample,
    /// Where the present window began.
    window: Sample,
    last: Sample,
    seen: Measured,
}

impl Meter {
    fn new(first: Sample) -> Self {
        Self { begun: first.at, first, window: first, last: first, seen: Measured::default() }
    }

    fn add(&mut self, sample: Sample) {
        let Some(guest) = sample.guest else { return };
        let seen = &mut self.seen;
        seen.memory_peak = seen.memory_peak.max(guest.memory_used);
        seen.memory_guest = guest.memory_total;
        seen.own_peak = seen.own_peak.max(sample.usage.own);
        if sample.at.duration_since(self.window.at) >= WINDOW {
            seen.cpu_peak = seen.cpu_peak.max(busy(&self.window, &sample));
            self.window = sample;
        }
        self.last = sample;
    }

    fn measured(&self) -> Measured {
        let (first, last) = (&self.first, &self.last);
        let mean = busy(first, last);
        Measured {
            seconds: last.at.duration_since(self.begun).as_secs_f64(),
            vcpus: last.usage.vcpus,
            cpu_peak: self.seen.cpu_peak.max(mean),
            cpu_mean: mean,
            memory: last.usage.memory,
            disk: last.usage.disk.saturating_sub(first.usage.disk),
            ..self.seen
        }
    }
}

/// Hundredths of a CPU that the guest wanted between two looks: by its own count, which is whole also where the host
/// is too busy to give it that much.
fn busy(from: &Sample, to: &Sample) -> u64 {
    let ms = to.at.duration_since(from.at).as_millis() as u64;
    let at = |sample: &Sample| sample.guest.map_or(0, |guest| guest.busy_ms);
    at(to).saturating_sub(at(from)) * 100 / ms.max(1)
}

fn propose(seen: &Measured) -> Proposal {
    let cores = |hundredths: u64| format!("{:.1}", hundredths as f64 / 100.0);
    let have = u64::from(seen.vcpus);
    let full = seen.cpu_peak >= FULL * have;
    let cpus = if full { have } else { seen.cpu_peak.div_ceil(FULL).clamp(1, have.max(1)) };
    let more = if full { format!("; with `--cpus {}` more may help", have * 2) } else { String::new() };
    let cpus_why = format!(
        "busy {} of {have} at most for a second, {} on average{more}",
        cores(seen.cpu_peak),
        cores(seen.cpu_mean)
    );
    // What the kernel keeps for itself is not in the guest's total.
    let kernel = seen.memory.saturating_sub(seen.memory_guest);
    let needed = seen.memory_peak + seen.memory_peak / 4 + kernel;
    let tight = seen.memory_peak > seen.memory_guest / 100 * 90;
    let memory = if tight { seen.memory * 2 } else { needed.next_multiple_of(STEP).max(2 * STEP) };
    let memory_why = match tight {
        true => format!(
            "{} of {} were used: measure again with more",
            ui::bytes(seen.memory_peak),
            ui::bytes(seen.memory_guest)
        ),
        false => format!(
            "{} used at most, a quarter more to spare, {} for the kernel",
            ui::bytes(seen.memory_peak),
            ui::bytes(kernel)
        ),
    };
    let disk_why = format!("{} written to the root, which grows as it is written", ui::bytes(seen.disk));
    Proposal { cpus, cpus_why, memory, memory_why, disk: seen.disk.next_multiple_of(1 << 20), disk_why }
}

fn print(seen: &Measured, proposal: &Proposal) {
    say!("# measured over {:.1} s; the host gave {} of memory", seen.seconds, ui::bytes(seen.own_peak));
    say!("cpus = {:<16} # {}", proposal.cpus, proposal.cpus_why);
    let memory = format!("\"{}\"", Size(proposal.memory));
    say!("memory = {memory:<14} # {}", proposal.memory_why);
    say!("# disk: {:<15} # {}", Size(proposal.disk).to_string(), proposal.disk_why);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen(vcpus: u32, cpu_peak: u64, memory_peak: u64) -> Measured {
        let (memory, memory_guest) = (512 * MIB, 480 * MIB);
        Measured { vcpus, cpu_peak, memory, memory_guest, memory_peak, ..Measured::default() }
    }

    #[test]
    fn what_was_not_used_is_given_up() {
        let proposal = propose(&seen(4, 140, 100 * MIB));
        assert_eq!((proposal.cpus, proposal.memory), (2, 192 * MIB));
        assert!(proposal.cpus_why.contains("1.4 of 4"), "{}", proposal.cpus_why);
        let idle = propose(&seen(2, 0, 10 * MIB));
        assert_eq!((idle.cpus, idle.memory), (1, 128 * MIB));
    }

    #[test]
    fn short_runs_are_looked_at_more_often() {
        let ms = |ms| pause(Duration::from_millis(ms)).as_millis();
        assert_eq!([ms(0), ms(400), ms(1000), ms(5000), ms(1_000_000)], [10, 10, 20, 100, 250]);
    }

    #[test]
    fn what_was_short_is_said() {
        let proposal = propose(&seen(2, 199, 470 * MIB));
        assert_eq!((proposal.cpus, proposal.memory), (2, 1024 * MIB));
        assert!(proposal.cpus_why.contains("--cpus 4") && proposal.memory_why.contains("with more"));
    }
}
