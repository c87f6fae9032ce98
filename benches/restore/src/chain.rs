//! Generations of incremental snapshots: each machine is resumed from the one before, changed, and frozen again.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use artifact::MachineFile;
use clap::Args;

use crate::lab::Lab;
use crate::rows::row;

#[derive(Args)]
pub struct Chain {
    /// How many generations
    #[arg(long, default_value_t = 10_000)]
    generations: usize,
    /// Resumes of the first generation and of the last, one after the other in turns
    #[arg(long, default_value_t = 100)]
    runs: usize,
}

/// Generations between two that are told of, beside the powers of two.
const TOLD: usize = 1000;
/// Generations between two looks for what nobody needs: they take up to 64 MiB each.
const PRUNED: usize = 8;
const FIRST: &str = "first.smolmachine";
const LAST: &str = "last.smolmachine";
/// What a generation changes: a file of 64 KiB, and a counter.
const CHANGE: &str =
    "n=$(cat /n 2>/dev/null || echo 0); echo $((n+1)) >/n; head -c 65536 /dev/urandom >/dev/shm/x";

impl Chain {
    pub fn run(&self, program: &Path) -> Result<()> {
        let lab = Lab::new(program)?;
        lab.build("name = \"m\"\nmemory = \"64MiB\"\n", "m.smolmachine")?;
        let mut before = "m.smolmachine".to_owned();
        let (mut begun, mut since) = (Instant::now(), 0);
        for generation in 1..=self.generations {
            let file =
                if generation == 1 { FIRST.to_owned() } else { format!("g{}.smolmachine", generation % 2) };
            // A name of its own: what a machine of this name started from before would stay in the store, too.
            let name = format!("m{generation}");
            lab.smolvm(&["run", "-d", "-q", "--name", &name, &before])?;
            lab.smolvm(&["exec", &name, "sh", "-c", CHANGE])?;
            lab.smolvm(&["snapshot", "-q", &name, "--incremental", "-o", &file])?;
            if generation % PRUNED == 0 {
                // Or the store keeps all of them. What the running machine needs stays.
                lab.smolvm(&["prune", "-q"])?;
            }
            lab.smolvm(&["rm", "-f", &name])?;
            let told =
                generation == self.generations || generation.is_power_of_two() || generation % TOLD == 0;
            if told {
                let each = begun.elapsed() / (generation - since) as u32;
                let (bytes, extents) = measure(&lab, &file)?;
                println!(
                    "generation {generation:>6}: {:>8} KiB, {extents} extents over the parent, {:.3} s each of the last {}",
                    bytes >> 10,
                    each.as_secs_f64(),
                    generation - since
                );
                (begun, since) = (Instant::now(), generation);
            }
            before = file;
        }
        let counted = lab.smolvm(&["run", &before, "--", "cat", "/n"])?;
        anyhow::ensure!(
            counted.trim() == self.generations.to_string(),
            "the last generation counts {counted}"
        );
        fs::rename(lab.path(&before), lab.path(LAST))?;
        lab.take_in(FIRST)?;
        lab.take_in(LAST)?;
        println!("the store: {} KiB", bytes_in(&lab.path("home/store/objects"))? >> 10);
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            first.push(lab.timed(&["run", FIRST, "--", "/bin/true"])?);
            last.push(lab.timed(&["run", LAST, "--", "/bin/true"])?);
        }
        let first = row("first generation, run FILE -- /bin/true, to its exit", &first);
        let last = row("last generation, the same", &last);
        println!(
            "last / first: {:.2}",
            last.as_secs_f64() / first.max(Duration::from_nanos(1)).as_secs_f64()
        );
        for (what, file) in [("first", FIRST), ("last", LAST)] {
            let (descriptors, mappings) = held(&lab, file)?;
            println!(
                "{what} generation, when it has run a command: {descriptors} descriptors, {mappings} mappings"
            );
        }
        Ok(())
    }
}

/// Open descriptors and mappings of the process of a machine that has run a command.
fn held(lab: &Lab, file: &str) -> Result<(usize, usize)> {
    lab.smolvm(&["run", "-d", "-q", "--name", "held", file])?;
    lab.smolvm(&["exec", "held", "/bin/true"])?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&lab.smolvm(&["ps", "--json"])?)?;
    let pid = rows.first().and_then(|row| row["pid"].as_u64()).context("no process")?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let mappings = fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count();
    lab.smolvm(&["rm", "-f", "held"])?;
    Ok((descriptors, mappings))
}

/// Bytes of the files in a directory.
fn bytes_in(dir: &Path) -> Result<u64> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// A file's length, and the pieces that its memory lies in.
fn measure(lab: &Lab, file: &str) -> Result<(u64, usize)> {
    let file = MachineFile::open_path(&lab.path(file))?;
    Ok((file.len(), snapshot::stored_pages(&file)?.len()))
}
