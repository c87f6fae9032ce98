//! What a machine changed while it was built, put over the root that it was built from.
//!
//! The agent sends the overlay's upper directory as a tar: paths from that directory, pax records
//! `SCHILY.xattr.*` for attributes (also overlayfs's own), no sockets. The marks in it are those
//! of Linux's overlayfs (Documentation/filesystems/overlayfs.rst): a character device 0/0, or an
//! empty file with the attribute `overlay.whiteout`, takes a name away; a directory with
//! `overlay.opaque` = y hides what was below; one with `overlay.redirect` was renamed. Then what differs from one run to the next is held still: times are clamped,
//! and logs, caches and identities emptied. The tar comes from a guest, so nothing in it is
//! trusted; the worst it can do is make its own root useless.

mod gone;
mod moved;
mod pyc;
mod runtime;
mod volatile;

use std::io::Read;

use self::gone::Gone;
use self::moved::Moved;
use crate::archive::{ArchiveError, Entry, EntryKind, TarReader, Unpacker};
use crate::content::{Content, Spool};
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
    base: Tree,
    upper: impl Read,
    spool: &Spool,
    options: &MergeOptions,
) -> Result<Tree, ArchiveError> {
    let mut tar = TarReader::new(upper);
    let mut layer = Layer::over(base, spool);
    while let Some(entry) = tar.next_entry()? {
        layer.entry(entry, &mut tar)?;
    }
    layer.settled(options)
}

/// [`merge_upper`] of members that come from elsewhere, with their contents.
pub(crate) fn merge_entries<E: From<ArchiveError>>(
    base: Tree,
    upper: impl Iterator<Item = Result<(Entry, Content), E>>,
    spool: &Spool,
    options: &MergeOptions,
) -> Result<Tree, E> {
    let mut layer = Layer::over(base, spool);
    for member in upper {
        let (entry, content) = member?;
        layer.entry(entry, &mut content.reader())?;
    }
    Ok(layer.settled(options)?)
}

/// What an upper layer's entry means for the name.
enum Mark {
    Gone,
    /// A directory whose old entries are gone.
    Opaque,
    /// A directory that was renamed: what is not in the upper layer is still at the old place.
    Redirect(Box<[u8]>),
    None,
}

struct Layer<'a> {
    tree: Tree,
    /// The root as it was: what renamed directories refer to.
    lower: Tree,
    spool: &'a Spool,
    moved: Moved,
    gone: Gone,
}

impl<'a> Layer<'a> {
    fn over(base: Tree, spool: &'a Spool) -> Self {
        Self { tree: base.clone(), lower: base, spool, moved: Moved::default(), gone: Gone::default() }
    }

    /// The whole, when nothing more comes.
    fn settled(self, options: &MergeOptions) -> Result<Tree, ArchiveError> {
        let mut tree = self.tree;
        if options.settle {
            volatile::settle(&mut tree);
            runtime::make_directories(&mut tree, options.epoch);
        }
        clamp(&mut tree, options.epoch)?;
        Ok(tree)
    }

    fn entry(&mut self, mut entry: Entry, data: &mut impl Read) -> Result<(), ArchiveError> {
        let is_dir = entry.kind == EntryKind::Dir;
        if let EntryKind::HardLink(target) = &entry.kind
            && self.gone.has(target)
        {
            self.tree.remove(&entry.path);
            return Ok(());
        }
        match take_marks(&mut entry)? {
            Mark::Gone => {
                self.gone.add(&entry.path)?;
                self.tree.remove(&entry.path);
                return Ok(());
            }
            Mark::Opaque => {
                let dir = self.tree.lookup(&entry.path);
                dir.map(|id| self.tree.clear(id));
            }
            Mark::Redirect(to) if is_dir => return self.renamed(entry, &to),
            // A file in a directory's place hides all that was in it.
            Mark::None if !is_dir => {
                let old = self.tree.lookup(&entry.path);
                if old.is_some_and(|id| self.tree.children(id).next().is_some()) {
                    self.tree.remove(&entry.path);
                }
            }
            Mark::Redirect(_) | Mark::None => {}
        }
        self.place(entry, data)?;
        Ok(())
    }

    fn place(&mut self, entry: Entry, data: &mut impl Read) -> Result<NodeId, ArchiveError> {
        let (tree, spool) = (&mut self.tree, self.spool);
        Unpacker { tree, spool, on_symlink: OnSymlink::Replace }.entry(entry, data)
    }

    /// A directory that the machine renamed gets what the root had at its old place.
    fn renamed(&mut self, entry: Entry, to: &[u8]) -> Result<(), ArchiveError> {
        let wrong = || ArchiveError::Damaged { at: 0, what: "a renamed directory names no directory" };
        let origin = self.moved.add(&entry.path, to).ok_or_else(wrong)?;
        let from = self.lower.lookup(&origin).ok_or_else(wrong)?;
        self.tree.remove(&entry.path);
        let id = self.place(entry, &mut std::io::empty())?;
        self.tree.copy_below(id, &self.lower, from)?;
        Ok(())
    }
}

/// Reads overlayfs's attributes and takes them off the entry.
fn take_marks(entry: &mut Entry) -> Result<Mark, ArchiveError> {
    let mut mark = match entry.kind {
        EntryKind::CharDevice(Device { major: 0, minor: 0 }) => Mark::Gone,
        _ => Mark::None,
    };
    let mut data_below = false;
    entry.meta.xattrs.retain(|name, value| {
        let rest = name.strip_prefix(b"trusted.overlay.").or(name.strip_prefix(b"user.overlay."));
        match rest {
            Some(b"opaque") if value[..] == *b"y" => mark = Mark::Opaque,
            Some(b"whiteout") if entry.size == 0 => mark = Mark::Gone,
            Some(b"redirect") if !matches!(mark, Mark::Opaque) => mark = Mark::Redirect(value.clone()),
            Some(b"metacopy") => data_below = true,
            _ => {}
        }
        rest.is_none()
    });
    match data_below {
        false => Ok(mark),
        true => Err(ArchiveError::Unsupported {
            path: shown(&entry.path),
            what: "a file whose data stayed in the lower layer",
            way_out: "mount the overlay with metacopy=off",
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
