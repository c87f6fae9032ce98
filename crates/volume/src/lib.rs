//! Volumes: durable disks outside the machine file, each a sparse file with an ext4 file system.
//!
//! Problem: what a machine writes lives as long as the instance; data that must outlive it, survive a
//! kill of the VMM at any instant and be handed to the next version of the machine needs a home of its
//! own.
//!
//! Strategy: a directory for each volume. The disk is written in place; a flush of the guest is an
//! fdatasync. Who uses it holds its lock (flock on the disk itself) for as long as the VMM lives, so a
//! killed one leaves nothing to clean up. A number that grows with every attachment for writing says
//! whether a frozen machine's volume is still the one that it knew.
//!
//! ```text
//! volumes/NAME/disk          the bytes, sparse; flock: exclusive = attached for writing
//!              volume.json   Info, replaced atomically
//! ```
//!
//! Invariants: a name appears when the volume is whole; at most one writer, and then no reader; a disk
//! never shrinks. Next: `volumes.rs` (the set), `attach.rs` (one in use), `copy.rs`.
#![forbid(unsafe_code)]

mod attach;
mod copy;
mod error;
mod volumes;

pub use attach::{Access, Attached};
pub use error::Error;
pub use volumes::{DEFAULT_SIZE, Info, MIN_SIZE, Volume, Volumes, valid_name};
