//! The command line: words to chores.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::paths::Paths;
use crate::{ci, dist, guest, setup, tidy};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the smolvm repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Set up, build smolvm, and see it work: `smolvm demo`
    Demo,
    /// Make a fresh Debian with Rust and apt ready: tools, then `guest`
    Setup,
    /// Make what the binary embeds: kernel, busybox, blank disk, agent, initramfs (in target/guest/)
    Guest(guest::Options),
    /// Check the house rules: sizes, unsafe, the order of the crates
    Tidy,
    /// Everything that a change must pass: format, tidy, guest, clippy, tests
    Ci(ci::Options),
    /// Make the release archive
    Dist,
}

/// Parses the command line and does the chore it names.
pub fn run() -> Result<()> {
    let args = Args::parse();
    let paths = Paths::find()?;
    match args.chore {
        Chore::Demo => setup::demo(&paths),
        Chore::Setup => setup::run(&paths),
        Chore::Guest(options) => guest::build(&paths, &options),
        Chore::Tidy => tidy::check(&paths),
        Chore::Ci(options) => ci::run(&paths, &options),
        Chore::Dist => dist::build(&paths),
    }
}
