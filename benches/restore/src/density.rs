//! What idle machines of one file take of the host's memory, ours and QEMU's, each a process.
//!
//! Two figures for each: by how much the host's free memory (MemAvailable) went down, and the processes' proportional
//! set size, which gives each page that several have mapped to them in equal parts. QEMU's machine is the one of
//! `peer.rs`: it reads its memory from a file and has it for itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use engine::setup;

use crate::lab::Lab;
use crate::peer;

#[derive(Args)]
pub struct Density {
    /// Machines at once
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Memory of each, MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
}

const FILE: &str = "m.smolmachine";
/// What a resume set going has ended then.
const SETTLE: Duration = Duration::from_secs(5);

impl Density {
    pub fn run(&self, program: &Path) -> Result<()> {
        let version = setup::qemu()?;
        let lab = Lab::new(program)?;
        lab.build(&format!("name = \"m\"\nmemory = \"{}MiB\"\n", self.memory), FILE)?;
        let (setup, saved) = peer::theirs(&lab, program, &lab.path(FILE), self.memory)?;
        println!("{version}, TCG; {} idle machines of {} MiB", self.count, self.memory);
        // One of each first: what the host keeps of their files is in its memory before anything is counted.
        drop(saved.another(&setup, self.count)?);

        let before = available()?;
        let names: Vec<String> = (0..self.count).map(|number| format!("m{number}")).collect();
        for name in &names {
            lab.smolvm(&["run", "-d", "-q", "--name", name, FILE])?;
        }
        let ours = self.taken("ours", before, &pids(&lab)?)?;
        names.iter().try_for_each(|name| lab.smolvm(&["rm", "-f", name]).map(drop))?;

        let before = available()?;
        let machines = (0..self.count).map(|number| saved.another(&setup, number));
        let machines: Vec<_> = machines.collect::<Result<_>>().context("resuming QEMU's machines")?;
        let theirs =
            self.taken("QEMU", before, &machines.iter().map(|m| m.pid().into()).collect::<Vec<_>>())?;
        println!("QEMU / ours: {:.1} of MemAvailable, {:.1} of PSS", theirs.0 / ours.0, theirs.1 / ours.1);
        Ok(())
    }

    /// What each takes, MiB: of MemAvailable, which was `before`, and as PSS.
    fn taken(&self, whose: &str, before: u64, pids: &[u64]) -> Result<(f64, f64)> {
        std::thread::sleep(SETTLE);
        let each = |bytes: u64| bytes as f64 / f64::from(1 << 20) / self.count as f64;
        let pss = pids
            .iter()
            .map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:"))
            .sum::<Result<u64>>()?;
        let (free, pss) = (each(before.saturating_sub(available()?)), each(pss));
        println!("{whose:<4} each: {free:>7.2} MiB of MemAvailable, PSS {pss:>7.2} MiB");
        Ok((free, pss))
    }
}

/// The processes of all machines.
fn pids(lab: &Lab) -> Result<Vec<u64>> {
    let rows: Vec<serde_json::Value> = serde_json::from_str(&lab.smolvm(&["ps", "--json"])?)?;
    rows.iter().map(|row| row["pid"].as_u64().context("a machine without a process")).collect()
}

fn available() -> Result<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// A line `NAME   123 kB` of a file, in bytes.
fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {name} in {path}"))? << 10)
}
