//! A resume with nothing of its file in the host's memory.
//!
//! The machine holds data in memory, and is ready when it has read them. One file is as a build writes it: what the
//! resume touches lies together and is read ahead. The other is a snapshot of that machine, which knows of no working set.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use artifact::MachineFile;
use clap::Args;
use rustix::fs::Advice;
use snapshot::WorkingSet;

use crate::lab::Lab;
use crate::rows::row;

#[derive(Args)]
pub struct Cold {
    /// MiB that the resumed machine reads
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Runs of each
    #[arg(long, default_value_t = 100)]
    runs: usize,
}

/// What reads the data (`cat` would have the guest's kernel pass them on unread).
const READ: &str = "dd if=/dev/shm/x of=/dev/null bs=1M 2>/dev/null";
const LAID: &str = "m.smolmachine";
const PLAIN: &str = "plain.smolmachine";
/// Bytes read at a time where they are read one after the other.
const PIECE: usize = 1 << 20;

impl Cold {
    pub fn run(&self, program: &Path) -> Result<()> {
        let lab = Lab::new(program)?;
        let memory = self.mib * 2 + 192;
        lab.build(
            &format!(
                "name = \"m\"\nmemory = \"{memory}MiB\"\n[run]\ncommand = \"mount -o remount,size=90% /dev/shm; \
                 dd if=/dev/urandom of=/dev/shm/x bs=1M count={} 2>/dev/null; touch /run/there; exec sleep 99999\"\n\
                 [ready]\nexec = [\"sh\", \"-c\", \"test -e /run/there && {READ}\"]\n",
                self.mib
            ),
            LAID,
        )?;
        lab.smolvm(&["run", "-d", "-q", "--name", "m", LAID])?;
        lab.smolvm(&["snapshot", "-q", "m", "-o", PLAIN])?;
        lab.smolvm(&["rm", "-f", "m"])?;
        lab.take_in(PLAIN)?;
        let (laid, plain) = (lab.object(LAID)?, lab.object(PLAIN)?);
        let set = WorkingSet::read(&laid)?.context("the build laid nothing together")?;
        let bytes: u64 = set.ranges().iter().map(|(_, len)| len).sum();
        println!("working set: {} KiB in {} pieces", bytes >> 10, set.ranges().len());
        let [mut warm, mut cold, mut without, mut read] = [const { Vec::new() }; 4];
        for _ in 0..self.runs {
            warm.push(resume(&lab, LAID)?);
            forget(&laid)?;
            cold.push(resume(&lab, LAID)?);
            forget(&plain)?;
            without.push(resume(&lab, PLAIN)?);
            forget(&laid)?;
            read.push(read_all(laid.file(), set.ranges())?);
        }
        let warm = row("resumed and read, all in the host's memory", &warm);
        let cold = row("the same, nothing in it, working set read ahead", &cold);
        let without = row("the same, nothing in it, no working set", &without);
        let read = row("its bytes read one after the other, nothing else done", &read);
        let ratio = |time: Duration| time.as_secs_f64() / read.max(Duration::from_nanos(1)).as_secs_f64();
        println!("cold / reading: {:.2} with, {:.2} without", ratio(cold), ratio(without));
        let [more, more_without] = [cold, without].map(|time| ratio(time.saturating_sub(warm)));
        println!("what nothing in memory adds / reading: {more:.2} with, {more_without:.2} without");
        let least = ratio(warm.max(read));
        println!("cold / the longer of warm and reading: {:.2}", ratio(cold) / least);
        Ok(())
    }
}

fn resume(lab: &Lab, file: &str) -> Result<Duration> {
    lab.timed(&["run", file, "--", "sh", "-c", READ])
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
