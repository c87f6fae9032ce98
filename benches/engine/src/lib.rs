//! Machines of ours and of QEMU's that do the same work: what `main.rs` measures engines with, and what the benchmarks
//! of networks and folders (`benches/net`, `benches/folders`) take their machines from.
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

pub mod contender;
mod cpio;
pub mod document;
pub mod host;
mod measure;
pub mod options;
mod report;
mod services;
pub mod setup;

/// Does what the command line says.
///
/// # Errors
/// What cannot be measured.
pub fn run(options: &options::Options) -> anyhow::Result<()> {
    match &options.task {
        Some(options::Task::Soft(part)) => contender::soft::child(part),
        Some(options::Task::Services(services)) => services::run(services),
        None => measure::run(options),
    }
}
