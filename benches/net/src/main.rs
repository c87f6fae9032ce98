//! User-mode networks against each other: `cargo run --release -p net`.
//!
//! Problem: what a guest sees of its network is its own processor first. Strategy: the relay alone. One generator of
//! frames (`nic.rs`, over `tcp.rs` and `frames.rs`) plays the guest's card for ours, libslirp and passt, over the same
//! kind of socket, against the same programs of the host (`server.rs`), in turns, so that what disturbs the host
//! disturbs all. `guest.rs` is the second half (`-- guest`): the same stream in a machine of ours and in QEMU's.
//!
//! Next: `measure.rs` (turns), `relay/` (the processes), `report.rs`.
#![forbid(unsafe_code)]

use clap::Parser;

fn main() -> anyhow::Result<()> {
    net::run(net::Options::parse())
}
