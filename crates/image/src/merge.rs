//! What a machine changed while it was built, put over the root that it was built from.
//!
//! The agent sends the overlay's upper directory as a tar: paths from that directory, pax records
//! `SCHILY.xattr.*` for attributes (also overlayfs's own), no sockets. Overlayfs's marks are Linux's overlayfs
//! (Documentation/filesystems/overlayfs.rst): a character device 0/0, or an empty file with the
//! attribute `overlay.whiteout`, takes a name away; a directory with `overlay.opaque` = y hides
//! what was below. Then what differs from one run to the next is held still: times are clamped,
//! and logs, caches and identities emptied. The tar comes from a guest, so nothing in it is
//! trusted; the worst it can do is make its own root useless.

mod pyc;
mod volatile;

use std::io::Read;

use crate::archive::{ArchiveError, Entry, EntryKind, TarReader, Unpacker};
use crate::content::Spool;
use crate::tree::{Device, NodeId, OnSymlink, Time, Tree, shown};

/// How an upper layer becomes part of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeOptions {
    /// Nothing in the result is newer. The lock's epoch.
    pub epoch: Time,
    /// Empty what every run writes differently: logs, caches, temporary files, the machine's
    /// identity.
    pub settle: bool,
}

/// The root as the machine left it: `base` with `upper` (a plain tar) over it.
///
/// # Errors
/// [`ArchiveError`]: a damaged tar, limits, overlay features that the machine must not use.
pub fn merge_upper(
    mut base: Tree,
    upper: impl Read,
    spool: &Spool,
    options: &MergeOptions,
) -> Result<Tree, ArchiveError> {
    let mut tar = TarReader::new(upper);
    while let Some(entry) = tar.next_entry()? {
        layer(&mut base, spool, entry, &mut tar)?;
    }
    if options.settle {
        volatile::settle(&mut base);
    }
    clamp(&mut base, options.epoch)?;
    Ok(base)
}

/// What an upper layer's entry means for the name.
enum Mark {
    Gone,
    /// A directory whose old entries are gone.
    Opaque,
    None,
}

fn layer(tree: &mut Tree, spool: &Spool, mut entry: Entry, data: &mut impl Read) -> Result<(), ArchiveError> {
    let mark = take_marks(&mut entry)?;
    let is_dir = entry.kind == EntryKind::Dir;
    match mark {
        Mark::Gone => {
            tree.remove(&entry.path);
            return Ok(());
        }
        Mark::Opaque => {
            let dir = tree.lookup(&entry.path);
            dir.map(|id| tree.clear(id));
        }
        // A file in a directory's place hides all that was in it.
        Mark::None if !is_dir => {
            let filled = tree.lookup(&entry.path).filter(|id| tree.children(*id).next().is_some());
            filled.map(|_| tree.remove(&entry.path));
        }
        Mark::None => {}
    }
    let mut into = Unpacker { tree, spool, on_symlink: OnSymlink::Replace };
    into.entry(entry, data)?;
    Ok(())
}

/// Reads overlayfs's attributes and takes them off the entry.
fn take_marks(entry: &mut Entry) -> Result<Mark, ArchiveError> {
    let mut mark = match entry.kind {
        EntryKind::CharDevice(Device { major: 0, minor: 0 }) => Mark::Gone,
        _ => Mark::None,
    };
    let mut unsupported = None;
    entry.meta.xattrs.retain(|name, value| {
        let rest = name.strip_prefix(b"trusted.overlay.").or(name.strip_prefix(b"user.overlay."));
        match rest {
            Some(b"opaque") if value[..] == *b"y" => mark = Mark::Opaque,
            Some(b"whiteout") if entry.size == 0 => mark = Mark::Gone,
            Some(b"redirect") => unsupported = Some("a renamed directory of an overlay"),
            Some(b"metacopy") => unsupported = Some("a file whose data stayed in the lower layer"),
            _ => {}
        }
        rest.is_none()
    });
    match unsupported {
        None => Ok(mark),
        Some(what) => Err(ArchiveError::Unsupported {
            path: shown(&entry.path),
            what,
            way_out: "mount the overlay with redirect_dir=off,metacopy=off",
        }),
    }
}

/// Makes nothing newer than `epoch`. Compiled Python modules name the time of their source, which
/// is kept true, else Python would compile them again at every start.
fn clamp(tree: &mut Tree, epoch: Time) -> Result<(), ArchiveError> {
    let compiled = pyc::of_newer_sources(tree, epoch)?;
    for (id, content) in compiled {
        tree.set_content(id, content)?;
    }
    let ids: Vec<NodeId> = tree.walk().map(|(_, id)| id).collect();
    for id in ids {
        if let Some(meta) = tree.meta_mut(id) {
            meta.mtime = meta.mtime.min(epoch);
        }
    }
    Ok(())
}
