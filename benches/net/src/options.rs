//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// User-mode networks against each other
#[derive(Parser)]
#[command(name = "net")]
pub struct Options {
    #[command(subcommand)]
    pub task: Option<Task>,
    #[command(flatten)]
    pub relays: Relays,
}

#[derive(Subcommand)]
pub enum Task {
    /// One stream in a machine of ours and in QEMU's, same kernel and root
    Guest(Guest),
    /// Our relay by itself (for the benchmark)
    #[command(name = "__relay", hide = true)]
    Relay {
        socket: PathBuf,
        #[arg(long)]
        checksums: bool,
    },
    /// One machine on the soft engine (for the benchmark)
    #[command(name = "__soft", hide = true)]
    Soft(engine::options::SoftChild),
}

/// The relays alone.
#[derive(Args)]
pub struct Relays {
    /// Turns of each row; an odd number has a middle
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// MiB that a stream moves
    #[arg(long, default_value_t = 512)]
    pub mib: u64,
    /// MiB that a stream of 1460-byte segments moves
    #[arg(long, default_value_t = 128)]
    pub small_mib: u64,
    /// Round trips of one byte in each turn
    #[arg(long, default_value_t = 2000)]
    pub trips: usize,
    /// Connections at once
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// Only relays whose name has this word
    #[arg(long)]
    pub only: Option<String>,
    /// Only streams whose name begins so
    #[arg(long, default_value = "")]
    pub rows: String,
    /// Write the table into docs/performance.md
    #[arg(long)]
    pub write: bool,
}

/// In guests.
#[derive(Args, Clone)]
pub struct Guest {
    /// Turns of each row
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// MiB that a stream moves
    #[arg(long, default_value_t = 64)]
    pub mib: u64,
    /// Write the table into docs/performance.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub place: engine::options::Place,
}
