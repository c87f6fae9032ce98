//! A definition becomes a machine file.
//!
//! The way: `check.rs` (the definition on this host) → `root.rs` (sources to a tree and its lock;
//! packages configured inside a machine) → `steps.rs` (steps inside the machine, what they changed
//! merged back) → `base.rs` (an object of the store that boots) → `snapshots.rs` (ready, frozen,
//! into one file). `layout.rs` lays together what a resume touches; `cache.rs` remembers what the slow stages
//! made; `builtin.rs` is the machine that needs no definition, `container.rs` those made of images; `kernel.rs` is
//! a kernel that a definition brings; `downloads.rs` is what can be had again.
//! `kept.rs` is the definition inside a finished file, to be built again; `newer.rs` compares what a
//! file was made of with what there is now.
#![forbid(unsafe_code)]

mod base;
mod builtin;
mod cache;
mod check;
mod container;
mod downloads;
mod error;
mod job;
mod kept;
mod kernel;
mod layout;
mod lock;
mod newer;
mod progress;
mod root;
mod run;
mod snapshots;
mod stage;
mod steps;

pub use builtin::{built_in, built_in_ready, built_in_tag};
pub use cache::{cached, forget_pruned};
pub use check::{Definition, check};
pub use container::{PlainRoot, image_base, plain_base};
pub use downloads::{CleanPolicy, Cleaned, Downloads, clean_downloads, kept_downloads};
pub use error::Error;
pub use kept::{Kept, read_definition, read_lock};
pub use kernel::{Kernel, KernelImage, KernelLock};
pub use lock::Lock;
pub use newer::{Part, changes, guest_parts, image_part, package_parts};
pub use progress::{Progress, Silent};
pub use run::{BuildOptions, BuildReport, SnapshotReport, build, rebuild};
