//! The command line: words to chores.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::guest;
use crate::paths::Paths;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the smolvm repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Make what the binary embeds: kernel, busybox, blank disk, agent, initramfs (in target/guest/)
    Guest(guest::Options),
}

/// Parses the command line and does the chore it names.
pub fn run() -> Result<()> {
    let args = Args::parse();
    let paths = Paths::find()?;
    match args.chore {
        Chore::Guest(options) => guest::build(&paths, &options),
    }
}
