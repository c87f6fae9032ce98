//! What machines cost in which nothing happens.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::{Bench, FILE, Trace};

const PAGE: u64 = 4096;
/// A machine is left alone for so long before it is watched: what a resume set going has ended.
const SETTLE: Duration = Duration::from_secs(5);

/// One machine: wake-ups, processor time, memory of our own.
pub fn one(bench: &Bench, seconds: u64) -> Result<()> {
    bench.smolvm_traced(&["run", "-d", "--name", "idle", FILE])?;
    let pid = pid(bench, "idle")?;
    std::thread::sleep(SETTLE);
    let used = watch(&[pid], seconds)?;
    println!(
        "  idle machine, {seconds} s: {:.2} wake-ups a second, {:.3} % of a core",
        used.wakeups, used.percent
    );
    let memory = own_memory(bench, "idle", pid)?;
    println!(
        "  idle machine: {:.1} MiB of its own, {:.1} MiB guest pages written",
        mib(memory.own),
        mib(memory.guest)
    );
    bench.smolvm(&["rm", "-f", "idle"]).map(drop)
}

/// Many machines of one file.
pub fn many(bench: &Bench, count: usize, seconds: u64) -> Result<()> {
    let before = available()?;
    let names: Vec<String> = (0..count).map(|i| format!("idle{i}")).collect();
    let begun = Instant::now();
    for name in &names {
        bench.smolvm_traced(&["run", "-d", "--name", name, FILE])?;
    }
    let started = begun.elapsed();
    std::thread::sleep(SETTLE);
    let pids = names.iter().map(|name| pid(bench, name)).collect::<Result<Vec<_>>>()?;
    let used = watch(&pids, seconds)?;
    let pss = pids.iter().map(|pid| pss(*pid)).sum::<Result<u64>>()?;
    let own = names.iter().zip(&pids).map(|(name, pid)| Ok(own_memory(bench, name, *pid)?.own));
    let own = own.sum::<Result<u64>>()?;
    let taken = before.saturating_sub(available()?);
    let each = |bytes: u64| mib(bytes) / count as f64;
    println!(
        "{count} idle machines of one file, started one after the other in {:.1} s",
        started.as_secs_f64()
    );
    println!("  {:.2} % of a core, {:.2} wake-ups a second each", used.percent, used.wakeups / count as f64);
    println!(
        "  each: {:.2} MiB of MemAvailable, PSS {:.2} MiB, {:.2} MiB of its own beside guest pages",
        each(taken),
        each(pss),
        each(own)
    );
    for name in &names {
        bench.smolvm(&["rm", "-f", name])?;
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn pid(bench: &Bench, name: &str) -> Result<u64> {
    let shown = bench.command(&["ps", "--json"]).output()?.stdout;
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&shown)?;
    let row = rows.iter().find(|row| row["name"] == name).with_context(|| format!("no machine {name}"))?;
    row["pid"].as_u64().context("no process")
}

/// What processes used while they were watched.
struct Used {
    /// Times that one of their threads was given a processor, a second.
    wakeups: f64,
    /// Processor time, in percent of one core.
    percent: f64,
}

fn watch(pids: &[u64], seconds: u64) -> Result<Used> {
    let sum = || {
        pids.iter().map(|pid| usage(*pid)).try_fold((0, 0), |sum, usage| {
            let usage = usage?;
            anyhow::Ok((sum.0 + usage.0, sum.1 + usage.1))
        })
    };
    let before = sum()?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = sum()?;
    let ns = after.1.saturating_sub(before.1) as f64;
    Ok(Used {
        wakeups: after.0.saturating_sub(before.0) as f64 / seconds as f64,
        percent: ns / (seconds as f64 * 1e9) * 100.0,
    })
}

/// Context switches of all kinds and nanoseconds on a processor, of all threads.
fn usage(pid: u64) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the machine is gone")?.flatten() {
        let status = fs::read_to_string(task.path().join("status"))?;
        let switches = status.lines().filter_map(|l| l.split_once("_ctxt_switches:"));
        sum.0 += switches.filter_map(|(_, n)| n.trim().parse::<u64>().ok()).sum::<u64>();
        let times = fs::read_to_string(task.path().join("schedstat"))?;
        sum.1 += times.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

struct Memory {
    /// Anonymous memory of the process that is not the guest's.
    own: u64,
    /// Pages that the guest wrote.
    guest: u64,
}

/// Anonymous memory, less the private pages inside the guest's memory: of each page of that range the kernel says
/// whether it is there and whether it is still the file's (admin-guide/mm/pagemap.rst, bits 63 and 61).
fn own_memory(bench: &Bench, name: &str, pid: u64) -> Result<Memory> {
    let said = fs::read_to_string(bench.instance_file(name, "vmm.log"))?;
    let trace = Trace::parse(&said);
    let (start, len) = (trace.value("memory_start")?, trace.value("memory_len")?);
    let mut words = vec![0; (len / PAGE * 8) as usize];
    fs::File::open(format!("/proc/{pid}/pagemap"))?.read_exact_at(&mut words, start / PAGE * 8)?;
    let private = |word: &[u8; 8]| u64::from_le_bytes(*word) >> 61 & 0b101 == 0b100;
    let guest = words.as_chunks::<8>().0.iter().filter(|word| private(word)).count() as u64 * PAGE;
    let anonymous = field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "RssAnon:")?;
    Ok(Memory { own: anonymous.saturating_sub(guest), guest })
}

fn pss(pid: u64) -> Result<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss:")
}

fn available() -> Result<u64> {
    field(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
}

/// A line `NAME   123 kB`, in bytes.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {name}"))? << 10)
}
