//! EROFS images: written from a tree and read back, without a mkfs and without mounting.
//!
//! The format is Linux's `fs/erofs/erofs_fs.h` (6.12), of which the uncompressed part is used;
//! docs/formats/root-image.md describes what we write. Next: `plan.rs` (where everything goes),
//! `write.rs` (one pass over the plan), `read.rs` (the way back).

mod dirs;
pub(crate) mod format;
mod plan;
mod read;
mod write;
mod xattr;

pub use read::{ReadError, read_erofs};
pub use write::{ErofsError, ErofsOptions, ImageInfo, write_erofs, write_erofs_where};
