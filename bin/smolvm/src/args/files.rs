//! The words of what is kept: imports, room, cleaning up, repair.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::EngineArgs;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm import search.smolmachine
  smolvm import --move ~/Downloads/search.smolmachine    without a copy on one file system")]
pub struct Import {
    /// The machine file
    pub file: PathBuf,
    /// Its name in the store; the machine's own when absent
    #[arg(long)]
    pub name: Option<String>,
    /// Move the file instead of copying it; it goes from its place once the store has all of it on the disk
    #[arg(long = "move")]
    pub moved: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "What has a name, what a machine or another machine file needs, frozen and stopped
machines and volumes stay in any case (-a: a name alone keeps nothing). In config.toml:
  [store]
  keep = \"30d\"          what was used in the last 30 days stays, too
  max_size = \"20GiB\"    but of a larger store what was used longest ago goes
Examples:
  smolvm prune --dry-run
  smolvm prune -a           also what only has a name, and downloads
  smolvm prune -a --keep 7d")]
pub struct Prune {
    /// Also what has a name, and packages and image layers that can be downloaded again
    #[arg(short, long)]
    pub all: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Leave what was used within this time, like 30d, whatever config.toml says
    #[arg(long, value_name = "SPAN")]
    pub keep: Option<spec::Duration>,
    /// Remove what was used longest ago until the store holds at most this, like 20GiB
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<spec::Size>,
}

#[derive(Debug, ClapArgs)]
pub struct System {
    #[command(subcommand)]
    pub verb: SystemVerb,
}

#[derive(Debug, Subcommand)]
pub enum SystemVerb {
    /// Say what takes room; RECLAIMABLE is what `smolvm prune -a` would free now
    Df {
        /// List everything, and what needs what
        #[arg(short = 'v', long)]
        details: bool,
    },
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exit code 0: nothing is wrong, or all of it was repaired; 1: something is (left) wrong,
or the file does not run here. A repair deletes nothing that holds data: it sets it aside and says where."
)]
pub struct Doctor {
    /// Can this host run this machine file, or the one of this name in the store?
    pub file: Option<PathBuf>,
    /// Move a computation and whole machines at work between this host's engines (with --json: to send in)
    #[arg(long, conflicts_with = "file")]
    pub selftest: bool,
    /// Repair what a power failure, a kill or a bad disk left in the store, machines, volumes and cache
    #[arg(long, conflicts_with_all = ["file", "selftest"])]
    pub repair: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}
