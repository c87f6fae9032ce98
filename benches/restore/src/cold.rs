//! A resume with nothing of its file in the host's memory.
//!
//! First what is usual: a program that holds data went on running until the freeze, and goes on after the resume by looking
//! through its data, at a word of each page or at every byte. Then one that comes after the resume: a shell and `dd`. Of
//! each there are two files. One is as a build writes it: what the resume touches lies together and is read ahead. The
//! other is a snapshot of that machine, which knows of no working set.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use artifact::MachineFile;
use clap::Args;
use engine::{options, setup};
use engine_guest::hold::DONE;
use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};
use snapshot::WorkingSet;

use crate::lab::Lab;
use crate::rows::row;

#[derive(Args)]
pub struct Cold {
    /// MiB that the resumed machine looks through
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Runs of each
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Which machines
    #[arg(long, value_delimiter = ',', default_values = ["pages", "bytes", "command"])]
    machines: Vec<String>,
}

/// What reads the data of the machine `command` (`cat` would have the guest's kernel pass them on unread).
const READ: &str = "dd if=/dev/shm/x of=/dev/null bs=1M 2>/dev/null";
const LAID: &str = "m.smolmachine";
const PLAIN: &str = "plain.smolmachine";
/// Bytes read at a time where they are read one after the other.
const PIECE: usize = 1 << 20;

/// What of a machine is timed.
enum Resumed {
    /// `run FILE` until its service says that it is done.
    Service,
    /// `run FILE -- sh -c READ`, to its exit.
    Command,
}

impl Cold {
    pub fn run(&self, program: &Path) -> Result<()> {
        for machine in &self.machines {
            self.machine(program, machine).with_context(|| format!("machine {machine}"))?;
        }
        Ok(())
    }

    fn machine(&self, program: &Path, machine: &str) -> Result<()> {
        let lab = Lab::new(program)?;
        let memory = self.mib * 2 + 192;
        let (rest, resumed) = match machine {
            "pages" | "bytes" => {
                std::fs::copy(guest(program, lab.path("guest"))?, lab.path("hold"))?;
                (hold(self.mib, machine), Resumed::Service)
            }
            "command" => (data(self.mib), Resumed::Command),
            _ => anyhow::bail!("{machine} is none of the machines: pages, bytes, command"),
        };
        lab.build(&format!("name = \"m\"\nmemory = \"{memory}MiB\"\n{rest}"), LAID)?;
        lab.smolvm(&["run", "-d", "-q", "--name", "m", LAID])?;
        lab.smolvm(&["snapshot", "-q", "m", "-o", PLAIN])?;
        lab.smolvm(&["rm", "-f", "m"])?;
        lab.take_in(PLAIN)?;
        let (laid, plain) = (lab.object(LAID)?, lab.object(PLAIN)?);
        let set = WorkingSet::read(&laid)?.context("the build laid nothing together")?;
        let bytes: u64 = set.ranges().iter().map(|(_, len)| len).sum();
        println!("{machine}: working set of {} KiB in {} pieces", bytes >> 10, set.ranges().len());
        let [mut warm, mut cold, mut without, mut read] = [const { Vec::new() }; 4];
        for _ in 0..self.runs {
            warm.push(resumed.time(&lab, LAID)?);
            forget(&laid)?;
            cold.push(resumed.time(&lab, LAID)?);
            forget(&plain)?;
            without.push(resumed.time(&lab, PLAIN)?);
            forget(&laid)?;
            read.push(read_all(laid.file(), set.ranges())?);
        }
        let warm = row("  resumed and done, all in the host's memory", &warm);
        let cold = row("  the same, nothing in it, working set read ahead", &cold);
        let without = row("  the same, nothing in it, no working set", &without);
        let read = row("  its bytes read one after the other, nothing else done", &read);
        let ratio = |time: Duration| time.as_secs_f64() / read.max(Duration::from_nanos(1)).as_secs_f64();
        println!("  cold / reading: {:.2} with, {:.2} without", ratio(cold), ratio(without));
        println!("  cold / the longer of warm and reading: {:.2}", ratio(cold) / ratio(warm.max(read)));
        Ok(())
    }
}

/// A program that holds data and is ready when it has answered.
fn hold(mib: usize, how: &str) -> String {
    format!(
        "[root]\nfiles = {{ \"hold\" = \"/bin/hold\" }}\n[run]\ncommand = [\"/bin/hold\", \"hold\", \"{mib}\", \"{how}\"]\n\
         [ready]\nhttp = \"http://127.0.0.1:8000/\"\n"
    )
}

/// Data in a file system, ready when they were read once.
fn data(mib: usize) -> String {
    format!(
        "[run]\ncommand = \"mount -o remount,size=90% /dev/shm; dd if=/dev/urandom of=/dev/shm/x bs=1M count={mib} \
         2>/dev/null; touch /run/there; exec sleep 99999\"\n\
         [ready]\nexec = [\"sh\", \"-c\", \"test -e /run/there && {READ}\"]\n"
    )
}

/// The program of guests, built.
fn guest(program: &Path, work: PathBuf) -> Result<PathBuf> {
    let place =
        options::Place { smolvm: Some(program.to_owned()), work: Some(work), kernel: None, memory: 0 };
    Ok(setup::setup_program(&place)?.guest)
}

impl Resumed {
    fn time(&self, lab: &Lab, file: &str) -> Result<Duration> {
        match self {
            Self::Service => until_said(lab.command(&["run", "-q", file])),
            Self::Command => lab.timed(&["run", file, "--", "sh", "-c", READ]),
        }
    }
}

/// How long until the machine's service says that it is done; then it is ended.
fn until_said(mut command: Command) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("running smolvm")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    let took = begun.elapsed();
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    child.wait()?;
    ensure!(line.trim_end() == DONE, "its service said {line:?}");
    Ok(took)
}

/// Takes a file out of the host's memory. What was written has to be on the disk for that.
fn forget(file: &MachineFile) -> Result<()> {
    file.file().sync_all()?;
    rustix::fs::fadvise(file.file(), 0, None, Advice::DontNeed)?;
    Ok(())
}

fn read_all(file: &File, ranges: &[(u64, u64)]) -> Result<Duration> {
    let mut buffer = vec![0; PIECE];
    let begun = Instant::now();
    for &(start, len) in ranges {
        let mut at = start;
        while at < start + len {
            let piece = ((start + len - at) as usize).min(PIECE);
            file.read_exact_at(&mut buffer[..piece], at)?;
            at += piece as u64;
        }
    }
    Ok(begun.elapsed())
}
