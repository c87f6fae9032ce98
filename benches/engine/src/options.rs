//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    pub task: Option<Task>,
    #[command(flatten)]
    pub bench: Bench,
}

#[derive(Subcommand)]
pub enum Task {
    /// Debian services and tools: built, frozen, resumed, put under load
    Services(Services),
    /// One machine on the soft engine, spoken to over standard streams
    #[command(name = "__soft", hide = true)]
    Soft(SoftChild),
}

/// The services of examples/services.
#[derive(Args)]
pub struct Services {
    /// Only these
    pub names: Vec<String>,
    /// Don't compare with a native run (which needs root)
    #[arg(long)]
    pub no_native: bool,
    /// Write the table, with rows of earlier runs, into docs/performance.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub place: Place,
}

/// The table of workloads.
#[derive(Args)]
pub struct Bench {
    /// Only these rows (`boot` is one), by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Times that each row is run on each contender; medians are shown
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// A tenth of the work in each row, and two runs at most
    #[arg(long)]
    pub quick: bool,
    /// Divide the work by this (10 with --quick)
    #[arg(long)]
    pub divisor: Option<u64>,
    /// Leave contenders out, e.g. while the engine is slower than one waits
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub without: Vec<String>,
    /// Write the table into docs/performance.md (a full run does so unasked)
    #[arg(long)]
    pub write: bool,
    /// List the rows and end
    #[arg(long)]
    pub list: bool,
    #[command(flatten)]
    pub place: Place,
}

/// Where things are.
#[derive(Args, Clone)]
pub struct Place {
    /// The program that builds the root; built when it is not there
    #[arg(long)]
    pub smolvm: Option<PathBuf>,
    /// Directory for the root image and everything else that is kept
    #[arg(long)]
    pub work: Option<PathBuf>,
    /// Another kernel than the embedded one
    #[arg(long)]
    pub kernel: Option<PathBuf>,
    /// Memory of the machines, MiB
    #[arg(long, default_value_t = 1024)]
    pub memory: u64,
}

/// What the child that is a soft machine needs.
#[derive(Args)]
pub struct SoftChild {
    #[arg(long)]
    pub root: PathBuf,
    #[arg(long)]
    pub initramfs: PathBuf,
    #[arg(long)]
    pub kernel: PathBuf,
    #[arg(long)]
    pub memory: u64,
    #[arg(long)]
    pub cpus: u32,
    #[arg(long)]
    pub words: String,
    /// With a network that leads to the host's loopback
    #[arg(long)]
    pub network: bool,
    /// With a folder of the host
    #[arg(long)]
    pub folder: Option<PathBuf>,
}

impl Bench {
    /// Whether a row is wanted.
    pub fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == row)
    }

    pub fn divisor(&self) -> u64 {
        self.divisor.unwrap_or(if self.quick { 10 } else { 1 }).max(1)
    }

    pub fn runs(&self) -> usize {
        if self.quick { self.runs.clamp(1, 2) } else { self.runs.max(1) }
    }
}
