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
    /// The soft CPU against the host's own: cases of every instruction, any difference a failure
    Oracle {
        /// Passed on, e.g. `--cases 10000000 --seed 7`; `--only MNEMONIC` for one instruction
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything that a change must pass: format, tidy, guest, clippy, tests
    Ci(ci::Options),
    /// Make the release archive
    Dist(dist::Options),
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
        Chore::Oracle { arguments } => ci::oracle(&paths, &arguments),
        Chore::Ci(options) => ci::run(&paths, &options),
        Chore::Dist(options) => dist::build(&paths, &options),
    }
}
