//! Virtio 1.2: split virtqueues, the device trait, the MMIO transport. (Section numbers in this
//! crate are those of "Virtual I/O Device (VIRTIO) Version 1.2", OASIS, July 2022.)
//!
//! Way (b) through the house starts here: `transport/mmio.rs` → `devices/<d>/worker.rs` →
//! `request.rs` → `disk`, and back to the worker.
//!
//! Problem: everything in a queue is written by the guest, maybe while we look.
//!
//! Strategy: each field is read once; a chain is copied out and checked whole (bounds, loops,
//! lengths, order) before a device sees it. A queue that breaks the rules stops, and the driver
//! is told by NEEDS_RESET; the machine goes on.
//!
//! Invariants: a queue's place and size cannot change between QueueReady and a reset; segments
//! that a device sees are RAM; at most [`MAX_CHAIN`] segments a chain.
#![forbid(unsafe_code)]

mod chain;
mod device;
#[cfg(any(test, feature = "driver_mock"))]
pub mod driver_mock;
pub mod features;
mod queue;
mod saved_state;
mod signal;
pub mod transport;

pub use chain::{Chain, MAX_CHAIN, Reader, Segment, ViewError, Writer};
pub use device::{Activation, ROUNDS, VirtioDevice};
pub use queue::{Queue, QueueError, QueueHandle, QueueLayout};
pub use saved_state::{QueueState, TransportState, VirtioState};
pub use signal::Signal;
pub use transport::mmio::{MmioTransport, QUEUE_NOTIFY};
