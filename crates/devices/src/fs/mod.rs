//! virtio-fs (virtio 1.2, 5.11): folders of the host, by FUSE requests in two queues.
//!
//! The device carries requests and replies; what they mean is `hostfs`'s. Every machine has one, with or without
//! folders: a machine that was frozen without any can be given some when it goes on (docs/adr/0107). It has no thread
//! and, without folders, no file; requests are answered on the thread that notifies (docs/adr/0032), so none is in
//! flight when the vCPUs stand still and none can hang in a frozen guest.
//!
//! Way (b): `virtio/transport/mmio.rs` → `worker.rs` here → `hostfs::Server::answer`, and back to the worker.

mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::FsState;
pub use worker::{Fs, TAG};
