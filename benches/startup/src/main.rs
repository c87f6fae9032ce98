//! How long starting takes, as a user feels it: `cargo run --release -p startup`.
//!
//! Every figure is a median (and p99) over fresh processes: from the exec of `smolvm run FILE` to
//! the first guest instruction after the restore; `smolvm run FILE -- /bin/true` to its exit;
//! `smolvm exec NAME /bin/true`; a cold boot; and what an idle machine costs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The program to measure
    #[arg(long, default_value = "target/release/smolvm")]
    smolvm: PathBuf,
    /// Runs of each
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Memory of the machine
    #[arg(long, default_value = "512MiB")]
    memory: String,
    #[arg(long, default_value = "soft")]
    engine: String,
}

struct Bench {
    args: Args,
    home: tempfile::TempDir,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bench = Bench { args, home: tempfile::tempdir()? };
    bench.prepare()?;
    println!("engine {}, {} runs each, memory {}", bench.args.engine, bench.args.runs, bench.args.memory);
    bench.row("exec to first guest instruction", |b| b.first_instruction())?;
    bench.row("run FILE -- /bin/true, to its exit", |b| b.run_true())?;
    bench.smolvm(&["run", "-d", "--name", "idle", "m.smolmachine"])?;
    bench.row("exec /bin/true in a running machine", |b| b.timed(&["exec", "idle", "/bin/true"]))?;
    bench.idle()?;
    bench.smolvm(&["rm", "-f", "idle"])?;
    bench.row("run --cold -- /bin/true (boot)", |b| {
        b.timed(&["run", "--cold", "m.smolmachine", "--", "/bin/true"])
    })?;
    Ok(())
}

impl Bench {
    fn command(&self, args: &[&str]) -> Result<Command> {
        let program = std::path::absolute(&self.args.smolvm)?;
        let mut command = Command::new(program);
        command.args(args).current_dir(self.home.path()).env("SMOLVM_HOME", self.home.path().join("home"));
        command.env("SMOLVM_ENGINE", &self.args.engine).stdin(Stdio::null());
        Ok(command)
    }

    fn smolvm(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args)?.output().context("running smolvm; build it with --release first")?;
        if !output.status.success() {
            bail!("smolvm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// A frozen built-in machine of the wanted size, in the store.
    fn prepare(&self) -> Result<()> {
        let definition = format!("name = \"m\"\nmemory = \"{}\"\n", self.args.memory);
        std::fs::write(self.home.path().join("Smolfile"), definition)?;
        self.smolvm(&["build"])?;
        // The first run of a fresh file may not be recorded in the store's table of paths.
        std::thread::sleep(Duration::from_millis(2100));
        self.smolvm(&["run", "m.smolmachine", "--", "/bin/true"]).map(drop)
    }

    fn row(&self, what: &str, measure: impl Fn(&Self) -> Result<Duration>) -> Result<()> {
        let mut times = (0..self.args.runs).map(|_| measure(self)).collect::<Result<Vec<_>>>()?;
        times.sort();
        let at = |permille: usize| times[(times.len() - 1) * permille / 1000].as_secs_f64() * 1000.0;
        println!("{what:<40} median {:>8.2} ms   p99 {:>8.2} ms", at(500), at(990));
        Ok(())
    }

    fn timed(&self, args: &[&str]) -> Result<Duration> {
        let begun = Instant::now();
        self.smolvm(args)?;
        Ok(begun.elapsed())
    }

    fn run_true(&self) -> Result<Duration> {
        self.timed(&["run", "m.smolmachine", "--", "/bin/true"])
    }

    fn first_instruction(&self) -> Result<Duration> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let begun = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let mut command = self.command(&["run", "m.smolmachine", "--", "/bin/true"])?;
        let output = command.env("SMOLVM_TRACE", "1").output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let word = said.lines().find_map(|l| l.strip_prefix("smolvm-trace first_run_ns "));
        let ns: u64 = word.context("no trace line")?.trim().parse()?;
        Ok(Duration::from_nanos(ns.saturating_sub(begun)))
    }

    /// Wake-ups and own memory of the machine `idle` while nothing happens.
    fn idle(&self) -> Result<()> {
        let shown = self.command(&["ps", "--json"])?.output()?.stdout;
        let rows: serde_json::Value = serde_json::from_slice(&shown)?;
        let pid = rows[0]["pid"].as_u64().context("no process")?;
        let seconds = 10;
        let before = switches(pid)?;
        std::thread::sleep(Duration::from_secs(seconds));
        let woken = switches(pid)?.saturating_sub(before);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let anonymous =
            status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or("?").trim().to_owned();
        println!("idle machine: {:.1} wake-ups a second, RssAnon {anonymous}", woken as f64 / seconds as f64);
        Ok(())
    }
}

/// Voluntary context switches of all threads of a process.
fn switches(pid: u64) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let status = std::fs::read_to_string(task.path().join("status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.and_then(|l| l.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}
