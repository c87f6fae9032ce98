//! What an idle copy has of its own.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

const PAGE: u64 = 4096;

/// One copy; in KiB. Copies inherit pages from the process that they were split off from, and share those of machine
/// files: both are in memory once, and are not counted.
#[derive(Clone, Copy)]
pub struct Idle {
    /// Pages that no other process has, but for the guest's.
    ours: u64,
    /// Pages that the guest wrote.
    guest: u64,
    /// The host's page tables for it.
    tables: u64,
    /// Processor time so far, µs.
    cpu_us: u64,
}

impl Idle {
    /// `log`: where its process said where the guest's memory is.
    pub fn of(pid: u64, log: &Path) -> Result<Self> {
        let said = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
        let traced = |name: &str| -> Result<u64> {
            let line = said.lines().find_map(|l| l.strip_prefix("smolvm-trace ")?.strip_prefix(name));
            line.and_then(|l| l.trim().parse().ok())
                .with_context(|| format!("{} has no {name}", log.display()))
        };
        let guest = private_pages(pid, traced("memory_start ")?, traced("memory_len ")?)? * (PAGE >> 10);
        let private = kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Private_Dirty:")?;
        let tables = kib(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmPTE:")?;
        Ok(Self { ours: private.saturating_sub(guest), guest, tables, cpu_us: cpu_us(pid)? })
    }
}

/// Nanoseconds on a processor, of all threads (Documentation/scheduler/sched-stats.rst).
fn cpu_us(pid: u64) -> Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the copy is gone")?.flatten();
    let times = tasks.map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat"))?;
        Ok(text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0))
    });
    Ok(times.sum::<Result<u64>>()? / 1000)
}

/// Pages in a range that are there, are not a file's and are mapped by nobody else (admin-guide/mm/pagemap.rst, bits 63,
/// 61 and 56): what was copied once for all copies, before they were split off, no guest wrote.
fn private_pages(pid: u64, start: u64, len: u64) -> Result<u64> {
    let mut words = vec![0; (len / PAGE * 8) as usize];
    File::open(format!("/proc/{pid}/pagemap"))?.read_exact_at(&mut words, start / PAGE * 8)?;
    let private = |word: &&[u8; 8]| u64::from_le_bytes(**word) >> 56 & 0b1010_0001 == 0b1000_0001;
    Ok(words.as_chunks::<8>().0.iter().filter(private).count() as u64)
}

/// A line `NAME   123 kB`.
fn kib(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
    number.with_context(|| format!("no {name}"))
}

/// Prints the middle and the largest.
pub fn tell(idle: &[Idle]) {
    let row = |what: &str, unit: &str, of: fn(&Idle) -> u64| {
        let mut values: Vec<u64> = idle.iter().map(of).collect();
        values.sort_unstable();
        let at = |n: usize| values.get(n).copied().unwrap_or(0);
        println!(
            "{what:<52} median {:>8} {unit}  most {:>8} {unit}",
            at(values.len() / 2),
            at(values.len().max(1) - 1)
        );
    };
    row("  an idle copy: private memory of ours", "KiB", |i| i.ours);
    row("  an idle copy: pages that its guest wrote", "KiB", |i| i.guest);
    row("  an idle copy: the host's page tables", "KiB", |i| i.tables);
    row("  an idle copy: processor time so far", "µs ", |i| i.cpu_us);
}
