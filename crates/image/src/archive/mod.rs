//! Archives as streams: what compressed them, the entries in them, and how entries become a
//! tree. Nothing is ever written under a name that an archive gives.
//!
//! Next: `decompress.rs` → `tar.rs` (entries; `header.rs` for their fields) → `apply.rs`.

mod apply;
mod ar;
mod bomb;
mod decompress;
mod header;
mod tar;

pub use apply::{Applied, Unpacker, apply_tar};
pub(crate) use ar::Ar;
pub use bomb::decompress_bounded;
pub(crate) use bomb::{EXPANDED, RATIO};
pub use decompress::decompress;
pub use tar::{Entry, EntryKind, TarReader};

use std::io;

use crate::content::SpoolError;
use crate::tree::TreeError;

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("reading the archive failed: {0}")]
    Io(#[from] io::Error),
    #[error("the archive is cut short: {0}")]
    Short(&'static str),
    #[error("this is not a tar archive but {0}")]
    NotTar(&'static str),
    #[error("the archive is damaged at byte {at}: {what}")]
    Damaged { at: u64, what: &'static str },
    #[error("the archive member `{path}` is {what}, which is not supported; {way_out}")]
    Unsupported { path: String, what: &'static str, way_out: &'static str },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("unpacking `{path}`: {source}")]
    Spool { path: String, source: SpoolError },
}
