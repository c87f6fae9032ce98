//! virtio-blk (virtio 1.2, 5.2): one queue over a [`disk::Disk`].
//!
//! Way (b): `virtio/transport/mmio.rs` → `worker.rs` here → `request.rs` (pure) → `disk`, and back
//! to the worker. Requests are executed on the thread that notifies, a whole batch for each
//! notification, so nothing is in flight when the vCPUs stand still.

mod regs;
mod request;
mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::BlkState;
pub use worker::{Blk, BlkStats};
