//! The boot benchmark: guest instructions and time from the kernel's entry to the first process.
//!
//! The machine is the built-in one, its first process replaced by one that asks for a reset with its
//! first instructions; the few thousand instructions of that reset are in the count. On the soft engine
//! the count is exact; interrupts make it vary by less than a percent from run to run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use disk::{Disk, Overlay, SparseDisk, private_file};
use machine::{EngineChoice, Machine, MachineConfig, Outcome};

use crate::init;

/// What can be told.
#[derive(Parser)]
pub struct Options {
    /// Runs; the median is printed
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Memory in MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Another kernel than the embedded one
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// More words for the kernel's command line, e.g. `initcall_debug ignore_loglevel`
    #[arg(long, default_value = "")]
    words: String,
    /// Print what the guest writes to its console
    #[arg(long)]
    console: bool,
}

/// Boots as often as asked and prints medians.
pub fn run(options: &Options) -> Result<()> {
    let kernel = match &options.kernel {
        Some(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => assets::kernel(),
    };
    let initramfs = init::initramfs().context("the embedded initramfs holds no program")?;
    ensure!(options.runs > 0, "--runs must be at least 1");
    let mut counts = Vec::new();
    let mut times = Vec::new();
    for _ in 0..options.runs {
        let (count, time) = boot(options, &kernel, &initramfs)?;
        counts.push(count);
        times.push(time);
    }
    counts.sort_unstable();
    times.sort_unstable();
    let (count, time) = (counts[counts.len() / 2], times[times.len() / 2]);
    let millions = count as f64 / 1e6;
    println!(
        "soft, {} MiB, {} vCPU: {millions:.2} M guest instructions (from {:.2} to {:.2}), {:.0} ms, {:.1} MIPS; {} runs",
        options.memory,
        options.vcpus,
        counts[0] as f64 / 1e6,
        counts[counts.len() - 1] as f64 / 1e6,
        time.as_secs_f64() * 1e3,
        millions / time.as_secs_f64(),
        options.runs,
    );
    Ok(())
}

/// One boot: instructions executed, and the time from the first to the reset.
fn boot(options: &Options, kernel: &[u8], initramfs: &[u8]) -> Result<(u64, Duration)> {
    let blank: Arc<dyn Disk> =
        Arc::new(SparseDisk::new(assets::blank_ext4_list()).context("the blank disk")?);
    let private = private_file(&env::temp_dir()).context("a file for the writable disk")?;
    let scratch = Arc::new(Overlay::new(blank.clone(), private).context("the writable disk")?);
    let config = MachineConfig::new(EngineChoice::Soft, options.vcpus, options.memory << 20, blank, scratch);
    let line = format!("{} {}", machine::COMMAND_LINE, options.words);
    let shown = options.console;
    let console = Box::new(move |bytes: &[u8]| {
        if shown {
            eprint!("{}", String::from_utf8_lossy(bytes));
        }
    });
    let machine = Machine::boot(config, kernel, initramfs, line.trim(), console)?;
    let begun = Instant::now();
    machine.resume();
    let outcome =
        machine.wait(Some(Duration::from_secs(120))).context("the guest did not get there in 120 s")?;
    let time = begun.elapsed();
    ensure!(matches!(outcome, Outcome::Reset | Outcome::TripleFault), "the guest ended otherwise: {outcome}");
    let count = machine.instructions().context("the soft engine counts instructions")?;
    Ok((count, time))
}
