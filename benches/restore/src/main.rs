//! What resumes of unusual files take, and what files of frozen machines cost: `cargo run --release -p restore -- WHAT`.
//!
//! - `chain`: the resume of the first generation of incremental snapshots and of the last of thousands.
//! - `cold`: a resume with nothing of the file in the host's memory, with the working set laid together and without.
//! - `density`: the memory that idle machines of one file take, beside QEMU's.
//! - `peer`: resumes beside QEMU's of a machine like it, and of any other program's that a flag names.
//! - `size`: a file's bytes beside the pages that it cannot do without.
//!
//! Every time is a median and a 99th percentile over fresh processes; contenders take turns, so that what else the host
//! does meets all of them. `startup` has the steps of one start, `fork` copies and live snapshots.
//! Next: `lab.rs` (the program in a home of its own), then a file for each.
#![forbid(unsafe_code)]

mod chain;
mod cold;
mod density;
mod lab;
mod peer;
mod rows;
mod size;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    /// The program to measure: built with --release
    #[arg(long, global = true, default_value = "target/release/smolvm")]
    smolvm: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Incremental snapshots of each other
    Chain(chain::Chain),
    /// With nothing in the host's memory
    Cold(cold::Cold),
    /// Memory of idle machines, beside QEMU's
    Density(density::Density),
    /// Beside QEMU and others
    Peer(peer::Peer),
    /// Bytes of a file beside unique non-zero pages
    Size(size::Size),
}

fn main() -> Result<()> {
    let args = Args::parse();
    println!("load before: {}", engine::host::load());
    match &args.what {
        What::Chain(chain) => chain.run(&args.smolvm),
        What::Density(density) => density.run(&args.smolvm),
        What::Peer(peer) => peer.run(&args.smolvm),
        What::Cold(cold) => cold.run(&args.smolvm),
        What::Size(size) => size.run(&args.smolvm),
    }
}
