//! The only way to touch guest RAM.
//!
//! Problem: the soft CPU, device DMA and system calls all write guest memory while snapshots,
//! dirty tracking and translated code depend on knowing of every write *before* it happens.
//!
//! Strategy: one table of page flags. Every writer asks [`GuestMemory::before_write`] for the page
//! (one load when the page is already dirty and holds no code). A writer that keeps the permission
//! (the soft CPU's TLB) records [`GuestMemory::write_epoch`] and drops what it kept when the epoch
//! has moved.
//!
//! A snapshot of running memory hangs on the same gate: [`GuestMemory::hold`] installs a
//! [`WriteObserver`] that is told of the first write to each page and saves the old bytes.
//!
//! Invariants: a page without `DIRTY` has not been written since the flag was last cleared; a page
//! whose code generation is unchanged holds the same bytes in every place that was decoded.
//! Guest memory is never `&[u8]`: it changes under the reader.

mod access;
mod filed;
mod flags;
mod later;
mod memory;
mod ram;

pub use access::Pod;
pub use memory::{Error, GuestMemory, MMIO_HOLE_END, MMIO_HOLE_START, PAGE_SIZE, WriteObserver};
