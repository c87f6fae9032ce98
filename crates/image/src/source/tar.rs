//! A tar of a root, compressed or not.

use std::io::Read;

use crate::archive::{Applied, ArchiveError, Unpacker, apply_tar, decompress_bounded};
use crate::content::Spool;
use crate::tree::{OnSymlink, Tree};

/// Unpacks `archive` (plain, gzip, xz or zstd, told by its first bytes) into `tree`. Owners,
/// modes, times, attributes and device nodes come as recorded. A directory member where the tree
/// has a symbolic link to a directory leaves the link, as dpkg does.
///
/// # Errors
/// [`ArchiveError`]: not a tar, damaged, cut short, a decompression bomb, or too large for the tree's or the spool's
/// limits.
pub fn add_tar(tree: &mut Tree, spool: &Spool, archive: impl Read + Send) -> Result<Applied, ArchiveError> {
    let plain = decompress_bounded(archive)?;
    let mut into = Unpacker { tree, spool, on_symlink: OnSymlink::Keep };
    apply_tar(plain, &mut into)
}
