//! The user's store: every machine file that was used once, verified, read-only, named by its identity.
//!
//! A first use copies the user's file in and checks the copy (`import.rs`); from then on a path is recognised by
//! its stamp (`paths.rs`; `take.rs` moves it in, `alike.rs` keeps common sections once) and a resume maps the store's file, which it holds against removal (`pin.rs`). Names
//! are `tags.rs`, lasting uses `refs.rs`, cleaning up `prune.rs`, what went wrong `check.rs`; where the store and everything else of smolvm
//! lies is `dirs.rs`. The store's layout:
//!
//! ```text
//! objects/<id>     machine files, 0400, the name is the id; never written, only made and removed
//! tags/<name>      which id a name stands for
//! paths/<dev-ino>  which id the user's file with these numbers was seen to have
//! refs/<id>/<key>  directories (instances) that need an object while they exist
//! locks/           one import of a file at a time
//! tmp/             files being written, marks of files that move in (`moves.rs`)
//! damaged/         what was found wrong and set aside
//! ```
//!
//! Next on the way of a run: crate `instance`, which pins an object and maps its pages.

mod alike;
mod check;
pub mod dirs;
mod error;
mod import;
mod list;
mod moves;
mod paths;
mod pin;
mod prune;
mod refs;
mod root;
mod tags;
mod take;

pub use check::{CheckOptions, Fault, Finding};
pub use dirs::Dirs;
pub use error::{Error, Result};
pub use import::{ImportOptions, Stage};
pub use list::{Image, ImageKind};
pub use pin::{ObjectWriter, Pin};
pub use prune::{PrunePolicy, Pruned, Removed};
pub use root::Store;
pub use tags::{Origin, Tag, check_name};
pub use take::Taken;
