//! The model of a root file system: names, inodes, and references to content.
//!
//! Problem: archives name paths, and a hostile one names paths outside. Strategy: nothing is
//! unpacked on the host; entries become nodes of this tree, whose paths are resolved *inside
//! it* as a chroot would, so there is no outside to reach. Invariants: the root is a directory;
//! every node but the root is named by at least one directory entry; directories by exactly
//! one; the limits hold after every call.
//!
//! Next: `path.rs` (how a path is understood), `edit.rs` (insert, link, remove), `walk.rs`.

mod copy;
mod edit;
mod hash;
mod path;
mod walk;

use std::collections::BTreeMap;

use crate::content::Content;

pub(crate) use edit::shown;
pub use edit::{OnSymlink, TreeError};
pub(crate) use path::normal;
pub use path::{MAX_NAME, MAX_PATH, PathError};
pub use walk::Walk;

/// A moment as file systems record it: seconds since 1970 and nanoseconds below 10^9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

impl Time {
    /// A whole second.
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }
}

/// Extended attributes by their full name (`security.capability`).
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What an inode says about itself, apart from what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits: 0 to 0o7777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: Xattrs,
}

impl Meta {
    /// Owned by root, no attributes, at the beginning of time.
    pub fn root_owned(mode: u16) -> Self {
        Self { mode: mode & 0o7777, ..Self::default() }
    }
}

/// A device number as user space speaks of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// 0 to 4095, what Linux's 32-bit encoding holds.
    pub major: u32,
    /// 0 to 1048575.
    pub minor: u32,
}

/// Something to put under a name.
#[derive(Clone, Debug)]
pub enum Item {
    Dir,
    File(Content),
    /// The target, as written.
    Symlink(Box<[u8]>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Socket,
}

/// What a node is. A directory's entries are sorted bytewise.
#[derive(Clone, Debug)]
pub enum Kind {
    Dir(BTreeMap<Box<[u8]>, NodeId>),
    File(Content),
    Symlink(Box<[u8]>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Socket,
}

/// One inode.
#[derive(Clone, Debug)]
pub struct Node {
    pub meta: Meta,
    kind: Kind,
    /// Directory entries that name this node.
    names: u32,
    parent: NodeId,
    /// Length of a directory's path, so that no chain of links makes one longer than MAX_PATH.
    path_len: u16,
}

impl Node {
    /// What it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir(_))
    }

    /// How many names a non-directory has (hard links); 1 for a directory.
    pub fn names(&self) -> u32 {
        self.names
    }
}

/// A node's place in its tree. Valid for that tree until the node is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// Its number: below [`Tree::slots`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a tree may grow to. Exceeding one is an error, never memory without end.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names in all directories together.
    pub entries: u32,
    /// Bytes of all regular files together (hard links counted once).
    pub bytes: u64,
    /// Names and values of one inode's extended attributes together, in bytes.
    pub xattr_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 256 << 30, xattr_bytes: 64 * 1024 }
    }
}

/// A file system in memory.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    limits: Limits,
    entries: u32,
    bytes: u64,
}

/// The root directory's place.
pub const ROOT: NodeId = NodeId(0);

impl Tree {
    /// An empty root directory, mode 0755, owned by root.
    pub fn new(limits: Limits) -> Self {
        let root = Node {
            meta: Meta::root_owned(0o755),
            kind: Kind::Dir(BTreeMap::new()),
            names: 1,
            parent: ROOT,
            path_len: 0,
        };
        Self { nodes: vec![Some(root)], free: Vec::new(), limits, entries: 0, bytes: 0 }
    }

    /// The node at `id`, if it is still there.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_ref()
    }

    /// The metadata at `id`, to change it.
    pub fn meta_mut(&mut self, id: NodeId) -> Option<&mut Meta> {
        let node = self.nodes.get_mut(id.0 as usize)?.as_mut()?;
        Some(&mut node.meta)
    }

    /// Names in all directories together.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of all regular files together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The limits it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Above every node's number, for tables by node.
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }

    /// A path of node `id` for a message; `?` in the place of what has no name any more.
    pub(crate) fn path_of(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            let dir = self.parent(at);
            let name = self.children(dir).find(|(_, child)| *child == at);
            names.push(name.map_or("?".to_owned(), |(name, _)| shown(name)));
            at = dir;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }

    /// The directory that holds directory `id`; the root's is itself.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.get(id).map_or(ROOT, |node| node.parent)
    }
}
