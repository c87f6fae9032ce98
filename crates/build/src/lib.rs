//! A definition becomes a machine file.
//!
//! The way: `root.rs` (sources to a tree and its lock) → `base.rs` (an object of the store that
//! boots) → `stage.rs` (maintainer scripts and steps inside the machine, what they changed merged
//! back into a settled root) → the final base → ready → frozen into one file. `builtin.rs` is the
//! machine that needs no definition.
#![forbid(unsafe_code)]

mod base;
mod builtin;
mod error;
mod lock;
mod progress;
mod root;
mod run;
mod stage;

pub use builtin::{built_in, built_in_tag};
pub use error::Error;
pub use lock::Lock;
pub use progress::{Progress, Silent};
pub use run::{BuildOptions, BuildReport, build};
