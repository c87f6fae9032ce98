//! A resume of ours beside QEMU's of a machine like it: the same kernel, the same memory, one idle first process.
//!
//! QEMU (Debian's) is the leanest that it has: `microvm`, no firmware, TCG, as on a host without usable KVM; its machine
//! was written by its migration to a file, which it reads back (`-incoming`). "Runs" is its own event RESUME. A host with
//! KVM can have others beside: `--also NAME=COMMAND` is a shell command that resumes a machine, waits for its guest's
//! first answer and ends. With Firecracker that is a script of four steps: start `firecracker --api-sock S`, PUT
//! `/snapshot/load` with `resume_vm`, wait for the guest's answer on its vsock or serial port, end the process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use engine::contender::peer::Saved;
use engine::setup::Setup;
use engine::{options, setup};

use crate::lab::Lab;
use crate::rows::row;

#[derive(Args)]
pub struct Peer {
    /// Runs of each, in turns
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Memory of the machines, MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Another one: its name, and a command that resumes a machine, waits for its first answer and ends
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named)]
    also: Vec<(String, String)>,
}

fn named(text: &str) -> Result<(String, String), String> {
    let (name, command) = text.split_once('=').ok_or("say NAME=COMMAND")?;
    Ok((name.to_owned(), command.to_owned()))
}

/// A machine of QEMU's like ours, saved: of the same kernel, and of the root of our `file`.
pub fn theirs(lab: &Lab, program: &Path, file: &Path, memory: u64) -> Result<(Setup, Saved)> {
    let (smolvm, work) = (Some(program.to_owned()), Some(lab.path("peer")));
    let mut setup = setup::setup_program(&options::Place { smolvm, work, kernel: None, memory })?;
    setup.root = lab.path("root.erofs");
    setup::extract(file, &setup.root)?;
    let saved = Saved::new(&setup, 1).context("saving QEMU's machine")?;
    Ok((setup, saved))
}

const FILE: &str = "m.smolmachine";

/// CLOCK_MONOTONIC.
fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Peer {
    pub fn run(&self, program: &Path) -> Result<()> {
        let version = setup::qemu()?;
        let lab = Lab::new(program)?;
        lab.build(&format!("name = \"m\"\nmemory = \"{}MiB\"\n", self.memory), FILE)?;
        let (theirs, saved) = theirs(&lab, program, &lab.path(FILE), self.memory)?;
        println!("{version}, TCG");
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len() >> 10);
        println!(
            "its file: {} KiB; ours: {} KiB, all included",
            bytes(&saved.file()),
            bytes(&lab.path(FILE))
        );
        let [mut first, mut done, mut runs, mut answer] = [const { Vec::new() }; 4];
        let mut others = vec![Vec::new(); self.also.len()];
        for _ in 0..self.runs {
            let (begun, at) = (Instant::now(), now());
            let said = lab.traced(&["run", FILE, "--", "/bin/true"])?;
            done.push(begun.elapsed());
            first.push(said.saturating_sub(at));
            let (ran, answered) = saved.resume(&theirs).context("resuming QEMU's machine")?;
            runs.push(ran);
            answer.push(answered);
            for ((name, command), times) in self.also.iter().zip(&mut others) {
                let begun = Instant::now();
                let status = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).status()?;
                ensure!(status.success(), "{name}: {command} ended with {status}");
                times.push(begun.elapsed());
            }
        }
        let ours = row("ours: exec to the first guest instruction", &first);
        let theirs = row("QEMU: exec until its CPU runs", &runs);
        let all = row("ours: `run FILE -- /bin/true`, to its exit", &done);
        let answered = row("QEMU: until its guest has answered a line", &answer);
        for ((name, _), times) in self.also.iter().zip(&others) {
            row(&format!("{name}: to the end of its command"), times);
        }
        let ratio = |theirs: Duration, ours: Duration| theirs.as_secs_f64() / ours.as_secs_f64();
        println!(
            "QEMU / ours: {:.1} until it runs, {:.1} until it has answered",
            ratio(theirs, ours),
            ratio(answered, all)
        );
        Ok(())
    }
}
