//! virtio-vsock (virtio 1.2, 5.10): stream sockets between the guest and this process.
//!
//! Problem: bytes must flow both ways between guest sockets and ordinary host streams without a
//! thread each, without memory that a guest can blow up, and without losing or hanging anything
//! when the machine is frozen and comes back without its host side.
//!
//! Strategy: each connection is one end of a [`std::os::unix::net::UnixStream`] pair; the caller
//! of [`VsockHandle::connect`] or a listener gets the other. What the guest sends is written to
//! the stream at once, on the thread that notified; what does not fit waits in the connection, at
//! most as much as the credit that the guest was given. What the host sends is read straight
//! before it goes into the guest's buffers, as much as the guest's credit and buffers allow; one
//! I/O thread sleeps until a stream has something.
//!
//! ```text
//! packet.rs      the 44-byte header, and nothing else
//! connection.rs  one connection: credit, both directions, shutdown
//! table.rs       all connections, and what is owed to the guest
//! worker.rs      the queues: transmit and receive
//! handle.rs      connect and listen
//! io.rs          the thread
//! ```
//!
//! Invariants: one lock guards all of it, and guest memory is touched only under it while not
//! paused; resets for connections that a snapshot cut come before any other packet; buffered for
//! each connection at most [`WINDOW`] from the guest and [`CHUNK`] to it.

mod connection;
mod handle;
mod io;
mod packet;
mod saved_state;
mod table;
#[cfg(test)]
mod tests;
mod worker;

pub use handle::{ConnectError, ListenError, VsockHandle};
pub use saved_state::VsockState;
pub use worker::Vsock;

/// Bytes that the guest may send before the host's reader took any (the stream's own buffer in
/// the kernel comes on top).
pub const WINDOW: u32 = 256 * 1024;
/// Bytes read from a stream at a time.
pub const CHUNK: usize = 64 * 1024;
/// Connections at a time, both directions together.
pub const MAX_CONNECTIONS: usize = 1024;
