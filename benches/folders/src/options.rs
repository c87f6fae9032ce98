//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Shared folders
#[derive(Parser)]
#[command(name = "folders")]
pub struct Options {
    #[command(subcommand)]
    pub task: Option<Task>,
}

#[derive(Subcommand)]
pub enum Task {
    /// A machine of ours beside QEMU's with virtiofsd, same kernel and root
    Guest(Guest),
    /// One machine on the soft engine (for the benchmark)
    #[command(name = "__soft", hide = true)]
    Soft(engine::options::SoftChild),
}

/// In guests.
#[derive(Args)]
pub struct Guest {
    /// Turns of each row of reads
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Pages of 4 KiB that a turn reads
    #[arg(long, default_value_t = 16_384)]
    pub pages: u64,
    /// Files of the tree that git looks at
    #[arg(long, default_value_t = 8000)]
    pub files: usize,
    /// What npm installs
    #[arg(long, default_value = "express@4.21.2")]
    pub package: String,
    /// Without git and npm
    #[arg(long)]
    pub reads_only: bool,
    /// virtiofsd
    #[arg(long, default_value = "/usr/lib/qemu/virtiofsd")]
    pub virtiofsd: PathBuf,
    /// Write the table into docs/performance.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub place: engine::options::Place,
}
