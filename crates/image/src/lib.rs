//! Root file systems: from where they come (a directory, a tar, files, Debian packages, container
//! images) to the
//! read-only image that a machine boots, without root privileges and without a mkfs.
//!
//! Everything is a [`Tree`] in between: names and inodes in memory, contents as references into
//! a [`Spool`]. Nothing that a source names is ever written under that name on the host. The same
//! inputs give the same image, bit for bit.
//!
//! The ways through: `source/`, `debian/` or `oci/` → `tree/` → `erofs/` for a first image; then, with
//! what the machine changed while it was built, `merge.rs` → `erofs/` for the final one.
#![forbid(unsafe_code)]

pub mod archive;
pub mod content;
pub mod debian;
pub mod erofs;
pub mod ext4;
mod furnish;
mod lock;
mod merge;
pub mod oci;
mod source;
pub mod tree;

pub use archive::ArchiveError;
pub use content::{Content, Digest, FileRange, ReadAt, Spool, SpoolError};
pub use debian::{DebianError, DebianRoot};
pub use erofs::{ErofsError, ErofsOptions, ImageInfo, ReadError, read_erofs, write_erofs, write_erofs_where};
pub use ext4::{Ext4, Ext4Error, merge_upper_of_disk};
pub use furnish::{FURNISHED, furnish};
pub use lock::{ImageLock, PackageLock, SourceKind, SourceLock, hex};
pub use merge::{MergeOptions, merge_upper};
pub use source::{
    DirOptions, FileSource, Modes, Mtimes, Owner, Report, SourceError, add_dir, add_files, add_tar,
};
pub use tree::{Limits, Tree, TreeError};
