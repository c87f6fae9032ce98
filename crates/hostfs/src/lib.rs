//! Folders of the host, served to a guest in FUSE's words (linux/fuse.h, protocol 7.31 and later).
//!
//! Problem: a guest that may be hostile works on folders that a user named, while the host works on them, too; and
//! the machine may be frozen at any instant and go on elsewhere, or without them. Strategy: requests are bytes in,
//! bytes out; a node is a *path* below its folder, walked anew for each request by the kernel's own confined
//! resolution (`RESOLVE_BENEATH`, no links), and compared with the inode that the guest knows. What does not match is
//! ESTALE, upon which a Linux guest looks the name up again. So the host may rename and replace as it likes, nodes
//! cost no descriptors, and a session is plain data that travels in a snapshot (docs/adr/0105, 0106).
//!
//! ```text
//! wire.rs    the protocol's numbers, requests and replies as bytes     folder.rs  a folder that was opened for a guest
//! nodes.rs   what the guest knows, by number                           handles.rs its open files
//! ids.rs     owners: the user here is root there                       state.rs   what travels
//! server.rs  which request is whose                                    ops/       the requests
//! ```
//!
//! Invariants: nothing outside a named folder is ever opened, no link is followed, no device or pipe is opened, no
//! set-user-id bit is set; a read-only folder is not written whatever the guest says; memory is bounded
//! ([`nodes::BUDGET`], [`handles::MAX_HANDLES`], [`MAX_DATA`]); nothing here waits for the guest or holds a lock for
//! it. It knows no virtio. Next above: `devices/<d>/worker.rs` of the device that carries the requests.
#![forbid(unsafe_code)]

mod folder;
pub mod handles;
mod ids;
pub mod nodes;
mod ops;
mod server;
mod state;
mod wire;

pub use folder::{Folder, MAX_FOLDERS, Placed};
pub use ids::Ids;
pub use server::Server;
pub use state::SessionState;
pub use wire::{MAX_DATA, MAX_REQUEST, Reply};
