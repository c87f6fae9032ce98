//! Changing a tree: insert, link, remove, each either done whole or not at all.

use std::collections::BTreeMap;

use super::path::{Last, components};
use super::{Device, Item, Kind, MAX_PATH, Meta, Node, NodeId, PathError, ROOT, Tree};

/// What an inserted directory does where a symbolic link to a directory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSymlink {
    /// The link stays and the directory's entries go where it points: what dpkg does, so that
    /// `lib/x` lands in `usr/lib/x` on a merged /usr.
    Keep,
    /// The directory takes the link's place: what an overlay's upper layer means.
    Replace,
}

/// Why a change was refused. The tree is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("cannot place `{path}` in the image: {why}")]
    Path { path: String, why: PathError },
    #[error("cannot put a file in the place of directory `{path}`, which is not empty")]
    NotEmpty { path: String },
    #[error("cannot make `{path}` a hard link to `{target}`: {why}")]
    Link { path: String, target: String, why: &'static str },
    #[error("`{path}`: {what} exceeds what an image holds ({limit})")]
    Inode { path: String, what: &'static str, limit: u64 },
    #[error(
        "more than {limit} {what} in one root; the source is not what it should be, or the limit is too low"
    )]
    Limit { what: &'static str, limit: u64 },
}

impl TreeError {
    fn path(path: &[u8], why: PathError) -> Self {
        Self::Path { path: shown(path), why }
    }
}

/// A path for a message: no control characters reach the terminal, no line is endless.
pub(crate) fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(256)];
    let text = String::from_utf8_lossy(cut);
    text.chars().flat_map(char::escape_debug).collect()
}

impl Tree {
    /// Puts `item` at `path`, in the place of whatever is there, and returns its node.
    ///
    /// Missing parents are made (0755, root). Symbolic links among the parents are followed
    /// inside the tree. A directory that is already there keeps its entries and takes `meta`.
    /// An empty path or `.` means the root, whose metadata is then set.
    ///
    /// # Errors
    /// A path that cannot be placed, a limit, a file in the place of a filled directory.
    pub fn insert(
        &mut self,
        path: impl AsRef<[u8]>,
        item: Item,
        meta: Meta,
        rule: OnSymlink,
    ) -> Result<NodeId, TreeError> {
        let path = path.as_ref();
        self.check(path, &item, &meta)?;
        let names = components(path).map_err(|why| TreeError::path(path, why))?;
        let Some((name, parents)) = names.split_last() else {
            return self.insert_root(path, item, meta);
        };
        let dir = self.make_parents(path, parents)?;
        self.insert_at(path, (dir, name), item, meta, rule)
    }

    /// [`Tree::insert`] as `name` in a directory that is already found.
    fn insert_at(
        &mut self,
        path: &[u8],
        (dir, name): (NodeId, &[u8]),
        item: Item,
        meta: Meta,
        rule: OnSymlink,
    ) -> Result<NodeId, TreeError> {
        let old = self.child(dir, name);
        if let (Some(old), Item::Dir) = (old, &item)
            && let Some(kept) = self.existing_dir(old, rule)
        {
            if let Some(node) = self.node_mut(kept)
                && kept == old
            {
                node.meta = meta;
            }
            return Ok(kept);
        }
        if old.is_some_and(|old| self.has_children(old)) {
            return Err(TreeError::NotEmpty { path: shown(path) });
        }
        self.check_room(old, &item)?;
        let path_len = self.path_len(path, dir, name)?;
        if let Some(old) = old {
            self.unlink(dir, name, old);
        }
        let id = self.add_node(item, meta, dir, path_len);
        self.enter(dir, name, id);
        Ok(id)
    }

    /// Gives the file at `target` another name, `path`. A link of a name to itself changes
    /// nothing.
    ///
    /// # Errors
    /// [`TreeError::Link`] when the target is not there or a directory; as [`Tree::insert`].
    pub fn link(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Result<NodeId, TreeError> {
        let (path, target) = (path.as_ref(), target.as_ref());
        let refuse = |why| TreeError::Link { path: shown(path), target: shown(target), why };
        let id = self.lookup(target).ok_or_else(|| refuse("the target is not in the image"))?;
        if self.get(id).is_none_or(Node::is_dir) {
            return Err(refuse("the target is a directory"));
        }
        let names = components(path).map_err(|why| TreeError::path(path, why))?;
        let (name, parents) = names.split_last().ok_or(TreeError::path(path, PathError::Root))?;
        let dir = self.make_parents(path, parents)?;
        let old = self.child(dir, name);
        if old == Some(id) {
            return Ok(id);
        }
        if old.is_some_and(|old| self.has_children(old)) {
            return Err(TreeError::NotEmpty { path: shown(path) });
        }
        self.check_entries(1)?;
        self.path_len(path, dir, name)?;
        if let Some(old) = old {
            self.unlink(dir, name, old);
        }
        self.enter(dir, name, id);
        if let Some(node) = self.node_mut(id) {
            node.names += 1;
        }
        Ok(id)
    }

    /// Takes `path` out, with everything below it; says whether it was there. Parents' symbolic
    /// links are followed, the path's own is not. The root stays, emptied.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) -> bool {
        let Ok(names) = components(path.as_ref()) else {
            return false;
        };
        let Some((name, parents)) = names.split_last() else {
            return self.clear(ROOT);
        };
        let Ok(dir) = self.resolve(ROOT, parents, Last::Follow) else {
            return false;
        };
        self.remove_child(dir, name)
    }

    /// Takes the entry `name` out of directory `dir`, with everything below it; says whether it
    /// was there.
    pub(crate) fn remove_child(&mut self, dir: NodeId, name: &[u8]) -> bool {
        let Some(id) = self.child(dir, name) else {
            return false;
        };
        self.unlink(dir, name, id);
        true
    }

    /// Takes everything out of directory `id`; says whether it was a directory.
    pub fn clear(&mut self, id: NodeId) -> bool {
        let Some(Kind::Dir(entries)) = self.node_mut(id).map(|node| &mut node.kind) else {
            return false;
        };
        let entries = std::mem::take(entries);
        self.entries -= entries.len() as u32;
        self.release(entries.into_values().collect());
        true
    }

    /// Gives the file at `id` other content. False where `id` is not a regular file.
    ///
    /// # Errors
    /// [`TreeError::Limit`] when the tree would become too large.
    pub fn set_content(&mut self, id: NodeId, content: crate::Content) -> Result<bool, TreeError> {
        let limit = self.limits.bytes;
        let Some(Kind::File(old)) = self.get(id).map(|node| &node.kind) else {
            return Ok(false);
        };
        let bytes = self.bytes - old.len();
        let bytes = bytes
            .checked_add(content.len())
            .filter(|sum| *sum <= limit)
            .ok_or(TreeError::Limit { what: "bytes", limit })?;
        self.bytes = bytes;
        if let Some(node) = self.node_mut(id) {
            node.kind = Kind::File(content);
        }
        Ok(true)
    }

    /// Enters `item` as `name` of directory `dir`, for a reader that walks an image itself.
    /// `name` must be new there.
    pub(crate) fn add_child(
        &mut self,
        dir: NodeId,
        name: &[u8],
        item: Item,
        meta: Meta,
    ) -> Result<NodeId, TreeError> {
        self.check(name, &item, &meta)?;
        self.new_name(dir, name)?;
        self.insert_at(name, (dir, name), item, meta, OnSymlink::Replace)
    }

    /// Names the file `id` a second time, as `name` of directory `dir`.
    pub(crate) fn add_link(&mut self, dir: NodeId, name: &[u8], id: NodeId) -> Result<(), TreeError> {
        self.new_name(dir, name)?;
        self.check_entries(1)?;
        self.path_len(name, dir, name)?;
        self.enter(dir, name, id);
        if let Some(node) = self.node_mut(id) {
            node.names += 1;
        }
        Ok(())
    }

    fn new_name(&self, dir: NodeId, name: &[u8]) -> Result<(), TreeError> {
        let bad = name.is_empty() || name == b"." || name.contains(&b'/');
        let one = components(name).map_err(|why| TreeError::path(name, why))?;
        if bad || one.len() != 1 || self.child(dir, name).is_some() {
            return Err(TreeError::path(name, PathError::Name));
        }
        Ok(())
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.get(dir)?.kind {
            Kind::Dir(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn insert_root(&mut self, path: &[u8], item: Item, meta: Meta) -> Result<NodeId, TreeError> {
        if !matches!(item, Item::Dir) {
            return Err(TreeError::path(path, PathError::Root));
        }
        if let Some(root) = self.node_mut(ROOT) {
            root.meta = meta;
        }
        Ok(ROOT)
    }

    /// The directory that a new directory at `old` would be: itself, or where its link points.
    fn existing_dir(&self, old: NodeId, rule: OnSymlink) -> Option<NodeId> {
        let node = self.get(old)?;
        match (&node.kind, rule) {
            (Kind::Dir(_), _) => Some(old),
            (Kind::Symlink(target), OnSymlink::Keep) => {
                let from = if target.first() == Some(&b'/') { ROOT } else { node.parent };
                let names: Vec<&[u8]> =
                    target.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
                let id = self.resolve(from, &names, Last::Follow).ok()?;
                self.get(id).filter(|node| node.is_dir()).map(|_| id)
            }
            _ => None,
        }
    }

    fn make_parents(&mut self, path: &[u8], names: &[&[u8]]) -> Result<NodeId, TreeError> {
        let mut at = ROOT;
        for name in names {
            match self.resolve(at, &[name], Last::Follow) {
                Ok(id) if self.get(id).is_some_and(Node::is_dir) => at = id,
                Ok(_) => return Err(TreeError::path(path, PathError::NotADirectory)),
                // A dangling link is there but leads nowhere; making its target up would hide
                // a broken archive.
                Err(PathError::NotFound) if self.child(at, name).is_none() => {
                    self.check_entries(1)?;
                    let len = self.path_len(path, at, name)?;
                    let id = self.add_node(Item::Dir, Meta::root_owned(0o755), at, len);
                    self.enter(at, name, id);
                    at = id;
                }
                Err(why) => return Err(TreeError::path(path, why)),
            }
        }
        Ok(at)
    }

    fn has_children(&self, id: NodeId) -> bool {
        match self.get(id).map(|node| &node.kind) {
            Some(Kind::Dir(entries)) => !entries.is_empty(),
            _ => false,
        }
    }

    /// How long the path of `name` in `dir` is, by the directories it really passes.
    fn path_len(&self, path: &[u8], dir: NodeId, name: &[u8]) -> Result<u16, TreeError> {
        let above = self.get(dir).map_or(0, |node| usize::from(node.path_len));
        let len = above + 1 + name.len();
        if len > MAX_PATH {
            return Err(TreeError::path(path, PathError::TooLong));
        }
        Ok(len as u16)
    }

    fn add_node(&mut self, item: Item, meta: Meta, parent: NodeId, path_len: u16) -> NodeId {
        let kind = match item {
            Item::Dir => Kind::Dir(BTreeMap::new()),
            Item::File(content) => {
                self.bytes += content.len();
                Kind::File(content)
            }
            Item::Symlink(target) => Kind::Symlink(target),
            Item::CharDevice(device) => Kind::CharDevice(device),
            Item::BlockDevice(device) => Kind::BlockDevice(device),
            Item::Fifo => Kind::Fifo,
            Item::Socket => Kind::Socket,
        };
        let node = Some(Node { meta, kind, names: 1, parent, path_len });
        if let Some(id) = self.free.pop() {
            self.nodes[id.0 as usize] = node;
            return id;
        }
        self.nodes.push(node);
        NodeId((self.nodes.len() - 1) as u32) // entries are limited to u32
    }

    fn enter(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        if let Some(Kind::Dir(entries)) = self.node_mut(dir).map(|node| &mut node.kind)
            && entries.insert(name.into(), id).is_none()
        {
            self.entries += 1;
        }
    }

    fn unlink(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        if let Some(Kind::Dir(entries)) = self.node_mut(dir).map(|node| &mut node.kind)
            && entries.remove(name).is_some()
        {
            self.entries -= 1;
        }
        self.release(vec![id]);
    }

    /// Takes one name away from each of `ids`; what has none left goes, with what it holds.
    fn release(&mut self, mut ids: Vec<NodeId>) {
        while let Some(id) = ids.pop() {
            let Some(node) = self.node_mut(id) else {
                continue;
            };
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            match self.nodes[id.0 as usize].take().map(|node| node.kind) {
                Some(Kind::Dir(entries)) => {
                    self.entries -= entries.len() as u32;
                    ids.extend(entries.into_values());
                }
                Some(Kind::File(content)) => self.bytes -= content.len(),
                _ => {}
            }
            self.free.push(id);
        }
    }

    fn check_entries(&self, more: u32) -> Result<(), TreeError> {
        let limit = self.limits.entries;
        match self.entries.checked_add(more) {
            Some(sum) if sum <= limit => Ok(()),
            _ => Err(TreeError::Limit { what: "entries", limit: limit.into() }),
        }
    }

    fn check_room(&self, old: Option<NodeId>, item: &Item) -> Result<(), TreeError> {
        if old.is_none() {
            self.check_entries(1)?;
        }
        let Item::File(content) = item else {
            return Ok(());
        };
        let limit = self.limits.bytes;
        match self.bytes.checked_add(content.len()) {
            Some(sum) if sum <= limit => Ok(()),
            _ => Err(TreeError::Limit { what: "bytes", limit }),
        }
    }

    fn check(&self, path: &[u8], item: &Item, meta: &Meta) -> Result<(), TreeError> {
        let too_much = |what, limit: u64| Err(TreeError::Inode { path: shown(path), what, limit });
        match item {
            Item::Symlink(target) if target.len() > MAX_PATH => {
                return too_much("the symbolic link's length", MAX_PATH as u64);
            }
            Item::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return too_much("an empty symbolic link or one with a NUL", 0);
            }
            Item::CharDevice(Device { major, minor }) | Item::BlockDevice(Device { major, minor })
                if *major > 0xfff || *minor > 0xf_ffff =>
            {
                return too_much("the device number", 0xfff);
            }
            _ => {}
        }
        let xattrs: usize = meta.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        if xattrs > self.limits.xattr_bytes as usize {
            return too_much("the size of its extended attributes", self.limits.xattr_bytes.into());
        }
        Ok(())
    }
}
