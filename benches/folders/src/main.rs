//! Shared folders: what a request costs by itself (`cargo run --release -p folders`), and what a guest sees of them
//! beside QEMU's virtiofsd (`-- guest`).
//!
//! Next: `requests.rs`; `guest.rs` (turns), `tree.rs` (what is in the folder).
#![forbid(unsafe_code)]

mod guest;
mod options;
mod requests;
mod tree;

use clap::Parser;
use options::{Options, Task};

fn main() -> anyhow::Result<()> {
    match Options::parse().task {
        Some(Task::Guest(guest)) => guest::run(&guest),
        Some(Task::Soft(part)) => engine::contender::soft::child(&part),
        None => requests::run(),
    }
}
