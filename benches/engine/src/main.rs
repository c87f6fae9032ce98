//! The soft engine against QEMU TCG and against native: `cargo run --release -p engine`. See `lib.rs`.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    engine::run(&engine::options::Options::parse())
}
