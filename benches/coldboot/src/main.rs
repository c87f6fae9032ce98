//! `cargo run --release -p coldboot`: see `run.rs`.

mod init;
mod run;

use clap::Parser;

fn main() -> anyhow::Result<()> {
    run::run(&run::Options::parse())
}
