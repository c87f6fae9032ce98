//! What one machine file has that another has not, as a file: small where little changed.
//!
//! Problem: a new version of a machine is mostly the old one, but nothing is where it was: the guest booted
//! anew, its pages lie elsewhere, and pages that hold the same things hold other addresses.
//!
//! Strategy, page by page of the new file: a page that the old file has anywhere is named by its place there
//! (found by its digest); one that is like an old page (`similar.rs`: most of its lines are the same once
//! addresses count by their low bits only) is stored as the difference of its 64-bit words, where a moved
//! address is the same small set of numbers over and over; any other page is stored as it is. zstd does the
//! rest. Applying it checks the old file's id, the delta's digest, and every byte of the new file against
//! its own id.
//!
//! Invariants: a delta leads from one file to one other, bit for bit; neither memory nor output grows beyond
//! what the delta's head says and the disk has free. docs/formats/delta.md is the format.
//! Next: `create.rs`, `apply.rs`, both over `format.rs`.
#![forbid(unsafe_code)]

mod apply;
mod create;
mod error;
mod format;
mod similar;

pub use apply::apply;
pub use create::{Report, create};
pub use error::Error;
