//! A layer over the layers below it (OCI image specification, "Image Layer Filesystem Changeset").
//!
//! A member `.wh.NAME` takes NAME of the *lower* layers away, `.wh..wh..opq` everything of theirs
//! in its directory, wherever in the archive they stand: so it is remembered what this layer
//! brought, and that stays. Directories are remembered by node, other entries by directory and
//! name, since a hard link may name a lower layer's file. A directory takes a symbolic link's
//! place, a file a directory's, as container runtimes do.

use std::collections::HashSet;
use std::io::{self, Read};

use crate::archive::{ArchiveError, Entry, EntryKind, TarReader, Unpacker};
use crate::content::Spool;
use crate::tree::{NodeId, OnSymlink, ROOT, Tree, normal, shown};

/// Most members of all layers of one image together: time, not memory, is what they would cost.
pub const MAX_ENTRIES: u64 = 8_000_000;

const WHITEOUT: &[u8] = b".wh.";
/// Names of AUFS itself (`.wh..wh.plnk` and others); only the opaque mark means something.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies layers, the lowest first.
pub struct Applier<'a> {
    tree: &'a mut Tree,
    spool: &'a Spool,
    entries: u64,
    own_dirs: HashSet<NodeId>,
    own_names: HashSet<(NodeId, Box<[u8]>)>,
}

impl<'a> Applier<'a> {
    /// Over what is in `tree`; contents go to `spool`.
    pub fn new(tree: &'a mut Tree, spool: &'a Spool) -> Self {
        Self { tree, spool, entries: 0, own_dirs: HashSet::new(), own_names: HashSet::new() }
    }

    /// Applies one layer, a plain tar.
    ///
    /// # Errors
    /// [`ArchiveError`]: damaged, cut short, a member that cannot be placed, limits.
    pub fn apply(&mut self, layer: impl Read) -> Result<(), ArchiveError> {
        self.own_dirs.clear();
        self.own_names.clear();
        let mut tar = TarReader::new(layer);
        while let Some(entry) = tar.next_entry()? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(crate::TreeError::Limit { what: "members of layers", limit: MAX_ENTRIES }.into());
            }
            self.entry(entry, &mut tar)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: Entry, data: &mut impl Read) -> Result<(), ArchiveError> {
        let path = normal(&entry.path).ok_or_else(|| ArchiveError::Unsupported {
            path: shown(&entry.path),
            what: "of a name that leads out of the image or is too long",
            way_out: "build the image anew with a tool that writes plain paths",
        })?;
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], &path[..]),
        };
        if name == OPAQUE {
            self.hide_below(parent);
            return Ok(());
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.hide(parent, hidden);
            return Ok(());
        }
        // Marks of overlayfs would mean something to the machine's own overlay.
        entry
            .meta
            .xattrs
            .retain(|name, _| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
        self.place(entry, &path, data)
    }

    fn place(&mut self, entry: Entry, path: &[u8], data: &mut impl Read) -> Result<(), ArchiveError> {
        if entry.kind != EntryKind::Dir {
            let old = self.tree.lookup(path);
            if old.is_some_and(|id| id != ROOT && self.tree.children(id).next().is_some()) {
                self.tree.remove(path);
            }
        }
        let is_dir = entry.kind == EntryKind::Dir;
        let unpacker = &mut Unpacker { tree: self.tree, spool: self.spool, on_symlink: OnSymlink::Replace };
        let id = unpacker.entry(entry, data)?;
        let Some((dir, name)) = self.tree.locate(path) else {
            return Ok(()); // the root itself
        };
        match is_dir {
            true => self.own_dir(id),
            false => {
                self.own_names.insert((dir, name.into()));
                self.own_dir(dir);
            }
        }
        Ok(())
    }

    /// Remembers a directory, and those above it, as this layer's.
    fn own_dir(&mut self, mut dir: NodeId) {
        while dir != ROOT && self.own_dirs.insert(dir) {
            dir = self.tree.parent(dir);
        }
    }

    /// Takes everything of the lower layers out of a directory.
    fn hide_below(&mut self, dir: &[u8]) {
        let found = self.tree.lookup_follow(dir).filter(|id| self.tree.get(*id).is_some_and(|n| n.is_dir()));
        let mut todo: Vec<NodeId> = found.into_iter().collect();
        while let Some(dir) = todo.pop() {
            let children: Vec<(Box<[u8]>, NodeId)> =
                self.tree.children(dir).map(|(name, id)| (name.into(), id)).collect();
            for (name, id) in children {
                match self.hidden(dir, &name, id) {
                    true => drop(self.tree.remove_child(dir, &name)),
                    false if self.own_dirs.contains(&id) => todo.push(id),
                    false => {}
                }
            }
        }
    }

    /// Takes one name of the lower layers away.
    fn hide(&mut self, parent: &[u8], name: &[u8]) {
        if name.is_empty() || name == b"." || name == b".." {
            return;
        }
        let Some(dir) = self.tree.lookup_follow(parent) else {
            return;
        };
        let Some(id) = self.tree.child(dir, name) else {
            return;
        };
        if self.hidden(dir, name, id) {
            self.tree.remove_child(dir, name);
        } else if self.own_dirs.contains(&id) {
            let path = [parent, b"/", name].concat();
            self.hide_below(&path);
        }
    }

    /// Whether an entry is of a lower layer alone.
    fn hidden(&self, dir: NodeId, name: &[u8], id: NodeId) -> bool {
        !self.own_dirs.contains(&id) && !self.own_names.contains(&(dir, name.into()))
    }
}

/// What stands behind every layer: some tools leave a tar's end mark away, and the digest of the
/// whole says better that nothing is missing.
pub(super) fn with_end(layer: impl Read) -> impl Read {
    layer.chain(io::Cursor::new([0u8; 1024]))
}
