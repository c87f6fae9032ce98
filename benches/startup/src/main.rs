//! How long starting takes, as a user feels it, and what a machine costs that does nothing:
//! `cargo run --release -p startup`.
//!
//! Every time is a median and a 99th percentile over fresh processes, for each size of memory. "exec" is the moment
//! before the bench starts the program. What happens inside it comes from its own clock readings (`SMOLVM_TRACE`),
//! which are of the same clock.
//!
//! Next: `bench.rs` (the program in a home of its own), `idle.rs` (what idle machines cost).
#![forbid(unsafe_code)]

mod bench;
mod idle;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use bench::{Bench, Trace};

#[derive(Parser)]
struct Args {
    /// The program to measure; built as for a release when absent
    #[arg(long)]
    smolvm: Option<PathBuf>,
    /// Runs of each
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Runs of a cold boot
    #[arg(long, default_value_t = 20)]
    boots: usize,
    /// Memory of the machine; several sizes are measured one after the other
    #[arg(long, default_values = ["512MiB", "4GiB"])]
    memory: Vec<String>,
    /// What executes the guest
    #[arg(long, default_value = "soft")]
    engine: String,
    /// Seconds for which an idle machine is watched; 0: not at all
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Idle machines that are watched together; 0: none
    #[arg(long, default_value_t = 100)]
    machines: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.runs > 0 && args.boots > 0, "--runs and --boots must be at least 1");
    let program = match &args.smolvm {
        Some(program) => program.clone(),
        None => bench::build()?,
    };
    for memory in &args.memory {
        println!("engine {}, memory {memory}, {} runs each", args.engine, args.runs);
        let bench = Bench::new(&program, &args.engine, memory)?;
        times(&bench, &args)?;
        if args.idle > 0 {
            idle::one(&bench, args.idle)?;
        }
        println!();
    }
    if args.machines > 0 && args.idle > 0 {
        let memory = args.memory.first().map_or("512MiB", String::as_str);
        let bench = Bench::new(&program, &args.engine, memory)?;
        idle::many(&bench, args.machines, args.idle)?;
    }
    Ok(())
}

/// Everything that is a time.
fn times(bench: &Bench, args: &Args) -> Result<()> {
    let traced = (0..args.runs).map(|_| bench.traced()).collect::<Result<Vec<Trace>>>()?;
    let between = |from: &'static str, to: &'static str| {
        traced.iter().map(move |trace| Ok(trace.at(to)?.saturating_sub(trace.at(from)?)))
    };
    row("exec to main", between("exec", "main"))?;
    row("main to file open (trust)", between("main", "file"))?;
    row("exec to first guest instruction", between("exec", "first_run"))?;
    row("first instruction to agent's answer", between("first_run", "agent"))?;
    row("first instruction to command runs", between("first_run", "command_runs"))?;
    row("first instruction to command's end", between("first_run", "joined"))?;
    let mut counts = traced.iter().map(|t| t.value("instructions")).collect::<Result<Vec<_>>>()?;
    counts.sort_unstable();
    println!(
        "  {:<40} median {:>8.2} M",
        "guest instructions to the end",
        counts[counts.len() / 2] as f64 / 1e6
    );
    let many = |count: usize, args: &'static [&'static str]| (0..count).map(move |_| bench.timed(args));
    row("run FILE -- /bin/true, to its exit", many(args.runs, &["run", bench::FILE, "--", "/bin/true"]))?;
    bench.smolvm(&["run", "-d", "--name", "warm", bench::FILE])?;
    row("exec NAME /bin/true, to its exit", many(args.runs, &["exec", "warm", "/bin/true"]))?;
    bench.smolvm(&["rm", "-f", "warm"])?;
    row("run -d FILE, until it prints the name", (0..args.runs).map(|_| bench.detached()))?;
    let cold = &["run", "--cold", bench::FILE, "--", "/bin/true"];
    row("run --cold FILE -- /bin/true (boot)", many(args.boots, cold))
}

fn row(what: &str, times: impl Iterator<Item = Result<Duration>>) -> Result<()> {
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort();
    let at = |permille: usize| times[(times.len() - 1) * permille / 1000].as_secs_f64() * 1000.0;
    println!("  {what:<40} median {:>8.2} ms   p99 {:>8.2} ms", at(500), at(990));
    Ok(())
}
