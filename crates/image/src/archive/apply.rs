//! Archive members into a tree.

use std::io::Read;

use super::{ArchiveError, Entry, EntryKind, TarReader};
use crate::content::Spool;
use crate::tree::{Item, NodeId, OnSymlink, Tree, shown};

/// Where members go and how.
pub struct Unpacker<'a> {
    pub tree: &'a mut Tree,
    pub spool: &'a Spool,
    pub on_symlink: OnSymlink,
}

/// What came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub entries: u64,
    pub bytes: u64,
}

/// Puts every member of `archive` (not compressed) into the tree, in order, later ones in the
/// place of earlier ones.
///
/// # Errors
/// The first member that cannot be read or placed; members before it are in the tree.
pub fn apply_tar(archive: impl Read, into: &mut Unpacker<'_>) -> Result<Applied, ArchiveError> {
    let mut tar = TarReader::new(archive);
    let mut applied = Applied::default();
    while let Some(entry) = tar.next_entry()? {
        applied.entries += 1;
        applied.bytes += entry.size;
        into.entry(entry, &mut tar)?;
    }
    Ok(applied)
}

impl Unpacker<'_> {
    /// Places one member whose data `data` gives.
    ///
    /// # Errors
    /// As [`apply_tar`].
    pub fn entry(&mut self, entry: Entry, data: &mut impl Read) -> Result<NodeId, ArchiveError> {
        let item = match entry.kind {
            EntryKind::HardLink(target) => return Ok(self.tree.link(&entry.path, target)?),
            EntryKind::File => {
                let content = self
                    .spool
                    .add(data, entry.size)
                    .map_err(|source| ArchiveError::Spool { path: shown(&entry.path), source })?;
                Item::File(content)
            }
            EntryKind::Dir => Item::Dir,
            EntryKind::Symlink(target) => Item::Symlink(target.into()),
            EntryKind::CharDevice(device) => Item::CharDevice(device),
            EntryKind::BlockDevice(device) => Item::BlockDevice(device),
            EntryKind::Fifo => Item::Fifo,
        };
        Ok(self.tree.insert(&entry.path, item, entry.meta, self.on_symlink)?)
    }
}
