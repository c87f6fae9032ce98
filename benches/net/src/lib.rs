//! See `main.rs`; a library so that the generator is tested against our own relay.
#![forbid(unsafe_code)]

pub mod frames;
mod guest;
mod measure;
pub mod nic;
mod options;
pub mod relay;
mod report;
pub mod server;
pub mod tcp;
pub mod wire;

pub use options::Options;

/// Does what the command line says.
///
/// # Errors
/// What cannot be measured.
pub fn run(options: Options) -> anyhow::Result<()> {
    match options.task {
        Some(options::Task::Relay { socket, checksums }) => relay::ours::child(&socket, checksums),
        Some(options::Task::Soft(part)) => engine::contender::soft::child(&part),
        Some(options::Task::Guest(guest)) => guest::run(&guest),
        None => measure::run(&options.relays),
    }
}
