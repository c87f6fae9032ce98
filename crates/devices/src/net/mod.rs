//! virtio-net (virtio 1.2, 5.1): the guest's end of a user-mode network.
//!
//! Problem: frames of up to 64 KiB must flow both ways at the cost of a few copies, without memory that a guest can blow
//! up, and a machine must be frozen without losing what it did not see yet.
//!
//! Strategy: one thread owns the data path. It sleeps in the poller until the guest notifies, a host socket has
//! something, or a timer is due; then it takes what the guest transmits, brings what came, and does what is due. A
//! notification only raises an event, so a vCPU never waits for a socket. Frames are as large as the MTU that the device
//! announces (docs/adr/0095), spread over as many of the guest's buffers as they need (MRG_RXBUF); no offload is offered
//! but checksums, which are not computed at all between memory and memory.
//!
//! ```text
//! port.rs      the receive queue as the stack's link    worker.rs    the device, and the thread
//! ```
//!
//! Invariants: guest memory is touched only under the state's lock while not paused; at most one frame waits for the
//! guest here; flows do not travel with a snapshot (docs/adr/0096). Without a stack the device has no carrier.

mod port;
mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::NetState;
pub use worker::Net;
