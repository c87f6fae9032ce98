//! Root file systems: from where they come to the image that a machine boots.
pub mod content;
pub mod erofs;
pub mod tree;
pub use content::{Content, Digest, ReadAt, Spool, SpoolError};
pub use erofs::{ErofsError, ErofsOptions, ImageInfo, ReadError, read_erofs, write_erofs};
