//! virtio-rng (virtio 1.2, 5.4): random bytes of the host for the guest's pool.
//!
//! A request is answered at once with at most [`MAX_REQUEST`] bytes, through a small buffer on the
//! stack: a guest that asks for gigabytes costs no memory.

mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::RngState;
pub use worker::{MAX_REQUEST, Rng};
