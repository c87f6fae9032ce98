//! virtio-console (virtio 1.2, 5.3): one port, with a window size.
//!
//! Output goes to the [`crate::Output`] as the guest writes it; input waits, at most
//! [`INPUT_LIMIT`] bytes, until the guest gives buffers for it.

mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::ConsoleState;
pub use worker::{Console, INPUT_LIMIT};
