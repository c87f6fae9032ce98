//! The soft engine against QEMU TCG and against native: `cargo run --release -p engine`.
//!
//! Problem: a ratio between engines is worth something only if both did the same work. Strategy: one
//! kernel, one initramfs, one root image; both machines enter the kernel at the same instruction with
//! the same bytes in memory, so no firmware is in any figure; the same static program is PID 1 in both
//! and, natively, the only process of a chroot of the same root. All three stay up and take turns, one
//! works while the others sleep, so what disturbs the host disturbs all. Every answer has a check value
//! that must agree, and a time by the guest's clock that the host's clock is held against.
//!
//! Next: `setup.rs` (what is needed), `contender/` (the three), `measure.rs` (turns), `report.rs`.
//! `services.rs` is the second half: Debian's services frozen and resumed (`-- services`).

mod contender;
mod cpio;
mod document;
mod host;
mod measure;
mod options;
mod report;
mod services;
mod setup;

use clap::Parser;
use options::{Options, Task};

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    match &options.task {
        Some(Task::Soft(part)) => contender::soft::child(part),
        Some(Task::Services(services)) => services::run(services),
        None => measure::run(&options),
    }
}
