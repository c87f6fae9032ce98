//! Words of the verbs that take a machine as it is at the moment.

use std::path::PathBuf;

use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
pub struct Snapshot {
    /// The machine
    pub name: String,
    /// The machine file to write
    #[arg(short, long)]
    pub output: PathBuf,
    /// Only what changed since the machine file that the machine was resumed from; running it needs
    /// that file in the store
    #[arg(long)]
    pub incremental: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Of a volume that the machine writes each copy has its own, VOLUME-COPY, which goes with it;
`smolvm volume snapshot` keeps one.
Examples:
  smolvm fork search                     search-1, a running copy
  smolvm fork search --count 100         search-1 to search-100
  smolvm fork search --name trial        trial"
)]
pub struct Fork {
    /// The machine
    pub name: String,
    /// How many copies
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// Their name; of several, followed by a number
    #[arg(long = "name", value_name = "NAME")]
    pub as_name: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exit code 1 when something differs (memory alone does not count), 0 when nothing does.
Examples:
  smolvm diff search                     since it was resumed
  smolvm diff monday.smolmachine tuesday.smolmachine"
)]
pub struct Diff {
    /// A machine, a machine file, or a name in the store
    pub what: String,
    /// What it is compared with; the machine file that it came from when absent
    pub with: Option<String>,
}
