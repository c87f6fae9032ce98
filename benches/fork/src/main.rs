//! Copies and live snapshots of a running machine: `cargo run --release -p fork`.
//!
//! Fan-out: `smolvm fork --count N`, until all run, and until all have answered an `exec`; processor time until then.
//! Memory: what an idle copy has of its own (`memory.rs`). Pause: how long vCPUs and tasks stood still for a snapshot, by how much
//! memory was written since the resume; and how fast the file is written, beside what the disk takes from dd(1) in the
//! same minute.

mod memory;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::Value;

use memory::Idle;

#[derive(Parser)]
struct Args {
    /// The program to measure
    #[arg(long, default_value = "target/release/smolvm")]
    smolvm: PathBuf,
    /// Runs of each
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Memory of the machine
    #[arg(long, default_value = "1GiB")]
    memory: String,
    #[arg(long, default_value = "soft")]
    engine: String,
    /// Copies made at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    counts: Vec<usize>,
    /// MiB written in the guest before a snapshot
    #[arg(long, value_delimiter = ',', default_values_t = [0, 8, 64, 512])]
    dirty: Vec<usize>,
}

/// What a copy's start set going has ended then.
const SETTLE: Duration = Duration::from_secs(2);

struct Bench {
    args: Args,
    home: tempfile::TempDir,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bench = Bench { args, home: tempfile::tempdir()? };
    std::fs::write(
        bench.home.path().join("Smolfile"),
        format!("name = \"m\"\nmemory = \"{}\"\n", bench.args.memory),
    )?;
    bench.smolvm(&["build"])?;
    println!("engine {}, {} runs each, memory {}", bench.args.engine, bench.args.runs, bench.args.memory);
    let measured = bench.fan_out().and_then(|()| bench.pauses());
    bench.remove_all()?;
    measured
}

/// Middle and largest, in ms.
fn row(what: &str, mut us: Vec<u64>) {
    us.sort_unstable();
    let at = |permille: usize| us.get((us.len().max(1) - 1) * permille / 1000).copied().unwrap_or(0);
    let ms = |us: u64| us as f64 / 1000.0;
    println!("{what:<52} median {:>8.2} ms   p99 {:>8.2} ms", ms(at(500)), ms(at(990)));
}

fn middle(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn us(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

impl Bench {
    fn command(&self, args: &[&str]) -> Result<Command> {
        let program = std::path::absolute(&self.args.smolvm)?;
        let mut command = Command::new(program);
        command.args(args).current_dir(self.home.path()).env("SMOLVM_HOME", self.home.path().join("home"));
        // A machine's process then says where the guest's memory is.
        command.env("SMOLVM_ENGINE", &self.args.engine).env("SMOLVM_TRACE", "1").stdin(Stdio::null());
        Ok(command)
    }

    fn smolvm(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args)?.output().context("running smolvm; build it with --release first")?;
        if !output.status.success() {
            bail!("smolvm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.smolvm(args)?)?)
    }

    fn remove_all(&self) -> Result<()> {
        let names = self.smolvm(&["ps", "-a", "-q"])?;
        let names: Vec<&str> = names.lines().collect();
        if names.is_empty() { Ok(()) } else { self.smolvm(&[&["rm", "-f"], &names[..]].concat()).map(drop) }
    }

    fn fan_out(&self) -> Result<()> {
        for count in &self.args.counts {
            let (mut pause, mut stopped, mut first, mut all, mut answered) =
                (vec![], vec![], vec![], vec![], vec![]);
            let mut idle = Vec::new();
            for _ in 0..self.args.runs {
                self.smolvm(&["run", "-d", "--name", "m", "m.smolmachine"])?;
                let begun = Instant::now();
                let told = self.json(&["fork", "m", "--count", &count.to_string(), "--json"])?;
                let report = &told["source_report"];
                pause.push(number(report, "pause_us"));
                stopped.push(number(report, "stopped_us"));
                let copies = told["copies"].as_array().context("no copies")?;
                first.push(number(&told, "running_us"));
                all.push(number(&told, "total_us"));
                let looking = Instant::now();
                std::thread::sleep(SETTLE);
                idle.extend(self.idle_copies()?);
                let looking = us(looking);
                self.all_answer(copies)?;
                answered.push(us(begun) - looking);
                self.remove_all()?;
            }
            println!("fork --count {count}");
            row("  source: vCPUs stood still", pause);
            row("  source: tasks stood still", stopped);
            row("  the last copy's first instruction", first);
            row("  the last copy's agent has put it right", all);
            row("  every copy has answered an exec", answered);
            memory::tell(&idle);
        }
        Ok(())
    }

    fn all_answer(&self, copies: &[Value]) -> Result<()> {
        let next = Mutex::new(copies.iter());
        let work = || -> Result<()> {
            loop {
                let copy = next.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some(copy) = copy else { return Ok(()) };
                let name = copy["name"].as_str().context("a copy without a name")?;
                let said = self.smolvm(&["exec", name, "hostname"])?;
                if said.trim() != name {
                    bail!("{name} calls itself {said}");
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread died"))?)
        })
    }

    /// What each copy has of its own.
    fn idle_copies(&self) -> Result<Vec<Idle>> {
        let rows = self.json(&["ps", "--json"])?;
        let rows = rows.as_array().context("no machines")?.iter();
        let copies = rows.filter(|r| r["forked_from"].is_string());
        copies
            .map(|row| {
                let name = row["name"].as_str().context("a machine without a name")?;
                let log = self.home.path().join("home/state/instances").join(name).join("vmm.log");
                Idle::of(number(row, "pid"), &log)
            })
            .collect()
    }

    /// How fast dd(1) writes so many bytes to the same disk, MB/s.
    fn dd(&self, bytes: u64, how: &str) -> Result<u64> {
        const PIECE: u64 = 4 << 20;
        let (path, pieces) = (self.home.path().join("dd"), bytes.div_ceil(PIECE).max(1));
        let mut dd = Command::new("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", path.display())).arg(how);
        dd.args([format!("bs={PIECE}"), format!("count={pieces}")]).stderr(Stdio::null());
        let begun = Instant::now();
        if !dd.status().context("running dd")?.success() {
            bail!("dd {how} failed; does the file system of {} take it?", path.display());
        }
        let rate = pieces * PIECE / us(begun).max(1);
        std::fs::remove_file(path)?;
        Ok(rate)
    }

    fn pauses(&self) -> Result<()> {
        for mib in &self.args.dirty {
            let (mut pause, mut stopped, mut rate, mut writing) = (vec![], vec![], vec![], vec![]);
            let (mut direct, mut synced) = (vec![], vec![]);
            for _ in 0..self.args.runs {
                self.smolvm(&["run", "-d", "--name", "m", "m.smolmachine"])?;
                let script = format!(
                    "dd if=/dev/urandom of=/tmp/r bs=64k count=16 2>/dev/null; mount -o remount,size=100% /dev/shm; \
                     i=0; while [ $i -lt {mib} ]; do cat /tmp/r; i=$((i+1)); done >/dev/shm/x"
                );
                self.smolvm(&["exec", "m", "sh", "-c", &script])?;
                let begun = Instant::now();
                let report = self.json(&["snapshot", "m", "--json", "-o", "s.smolmachine"])?;
                let whole = begun.elapsed().max(Duration::from_micros(1));
                pause.push(number(&report, "pause_us"));
                stopped.push(number(&report, "stopped_us"));
                let bytes = number(&report, "file_bytes");
                rate.push((bytes as f64 / whole.as_secs_f64() / 1e6) as u64);
                writing.push(bytes / number(&report, "write_us").max(1));
                direct.push(self.dd(bytes, "oflag=direct")?);
                synced.push(self.dd(bytes, "conv=fdatasync")?);
                std::fs::remove_file(self.home.path().join("s.smolmachine"))?;
                self.remove_all()?;
            }
            println!("snapshot of a machine that wrote {mib} MiB");
            row("  vCPUs stood still", pause);
            row("  tasks stood still", stopped);
            println!(
                "  written, durable: {} MB/s; without the rest of the command {} MB/s",
                middle(rate),
                middle(writing)
            );
            println!(
                "  the disk, by dd: direct {} MB/s; with one sync {} MB/s",
                middle(direct),
                middle(synced)
            );
        }
        Ok(())
    }
}
