//! What the guest knows of its folders, by number.
//!
//! A node is a place (parent and name) and the inode that was there when the guest looked. Numbers are never used
//! twice in a session. Invariants: the parents of a directory lead to a folder's root without a circle; what all nodes
//! cost stays below [`BUDGET`].

use std::collections::HashMap;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The directory that holds the folders.
pub const ROOT: u64 = 1;
/// The folders' own nodes are `ROOT + 1 + id`; what is in them begins here.
pub(crate) const FIRST: u64 = 1024;
/// Most that all nodes may cost, by what is saved of them: about 330,000 of usual names, which take twice that in memory. The guest forgets nodes when it runs out of memory
/// for inodes; beyond the budget lookups fail with ENFILE.
pub const BUDGET: usize = 48 << 20;
/// What a node costs beside its name; more than its saved form ever takes.
const NODE_COST: usize = 128;
/// Components of a path: PATH_MAX over the shortest, `x/`.
const MAX_DEPTH: usize = 2048;
/// Bytes of a path, its NUL included (PATH_MAX).
const PATH_MAX: usize = 4096;

/// Tells one content of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub size: u64,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Change time: seconds, nanoseconds.
    pub ctime: (i64, u32),
}

impl Version {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }

    /// The same content as far as a copy on another file system can show it.
    pub(crate) fn looks_like(&self, other: &Self) -> bool {
        (self.size, self.mtime) == (other.size, other.mtime)
    }
}

/// A file or directory that the guest knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// The folder that it is in.
    pub folder: u32,
    /// 0: it has no place any more.
    pub parent: u64,
    pub name: Box<[u8]>,
    pub dev: u64,
    pub ino: u64,
    /// The file type's bits of a mode.
    pub kind: u32,
    /// How often the guest was told of it.
    pub lookups: u64,
    /// What the guest may have in its page cache, as of its last open.
    pub version: Option<Version>,
    /// Not looked at since a restore: what is in its place counts.
    pub unsure: bool,
}

impl Node {
    fn cost(&self) -> usize {
        NODE_COST + self.name.len()
    }

    /// The folder's own node, which lives as long as the session.
    pub fn is_folder(id: u64) -> bool {
        id > ROOT && id < FIRST
    }

    fn is(&self, stat: &Stat) -> bool {
        (self.dev, self.ino, self.kind) == (stat.st_dev, stat.st_ino, kind(stat))
    }
}

/// The type's bits.
pub(crate) fn kind(stat: &Stat) -> u32 {
    FileType::from_raw_mode(stat.st_mode).as_raw_mode()
}

/// The folder's own node.
pub(crate) fn folder_node(id: u32) -> u64 {
    ROOT + 1 + u64::from(id)
}

/// All nodes.
#[derive(Default)]
pub(crate) struct Nodes {
    by_id: HashMap<u64, Node>,
    by_inode: HashMap<(u32, u64, u64), u64>,
    next: u64,
    cost: usize,
}

impl Nodes {
    pub fn get(&self, id: u64) -> Result<&Node, Errno> {
        self.by_id.get(&id).ok_or(Errno::STALE)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Node> {
        self.by_id.get_mut(&id)
    }

    /// The path below its folder, without a `/` in front; empty for the folder itself.
    pub fn path(&self, id: u64) -> Result<Vec<u8>, Errno> {
        let mut names: Vec<&[u8]> = Vec::new();
        let (mut at, mut len) = (id, 0);
        while !Node::is_folder(at) {
            let node = self.get(at)?;
            if node.parent == 0 {
                return Err(Errno::STALE);
            }
            len += node.name.len() + 1;
            if len >= PATH_MAX || names.len() >= MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            names.push(&node.name);
            at = node.parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Adds a node as it is (a folder's own, or one that was saved).
    pub fn insert(&mut self, id: u64, node: Node) -> Result<(), Errno> {
        let cost = self.cost + node.cost();
        if cost > BUDGET {
            return Err(Errno::NFILE);
        }
        self.cost = cost;
        self.next = self.next.max(id + 1).max(FIRST);
        if node.parent != 0 {
            self.by_inode.insert((node.folder, node.dev, node.ino), id);
        }
        self.by_id.insert(id, node);
        Ok(())
    }

    /// The node of what was found as `name` in `parent`, told to the guest once more.
    pub fn enter(&mut self, parent: u64, name: &[u8], stat: &Stat) -> Result<u64, Errno> {
        let folder = self.get(parent)?.folder;
        let key = (folder, stat.st_dev, stat.st_ino);
        if let Some(id) = self.by_inode.get(&key).copied()
            && self.get(id)?.is(stat)
        {
            if Node::is_folder(id) || !self.place(id, parent, name)? {
                // A directory inside itself, by a mount of the host's.
                return Err(Errno::LOOP);
            }
            if let Some(node) = self.by_id.get_mut(&id) {
                node.lookups = node.lookups.saturating_add(1);
            }
            return Ok(id);
        }
        let id = self.next.max(FIRST);
        let node = Node {
            folder,
            parent,
            name: name.into(),
            dev: stat.st_dev,
            ino: stat.st_ino,
            kind: kind(stat),
            lookups: 1,
            version: None,
            unsure: false,
        };
        self.insert(id, node)?;
        Ok(id)
    }

    /// Where a node is from now on; `false` when it would be inside itself.
    fn place(&mut self, id: u64, parent: u64, name: &[u8]) -> Result<bool, Errno> {
        let node = self.get(id)?;
        if node.parent == parent && *node.name == *name {
            return Ok(true);
        }
        if node.kind == FileType::Directory.as_raw_mode() && self.is_above(id, parent) {
            return Ok(false);
        }
        let grows = name.len().saturating_sub(node.name.len());
        if self.cost + grows > BUDGET {
            return Err(Errno::NFILE);
        }
        if let Some(node) = self.by_id.get_mut(&id) {
            self.cost = self.cost - node.name.len() + name.len();
            (node.parent, node.name) = (parent, name.into());
        }
        Ok(true)
    }

    fn is_above(&self, id: u64, mut below: u64) -> bool {
        for _ in 0..MAX_DEPTH {
            if below == id {
                return true;
            }
            match self.by_id.get(&below) {
                Some(node) if !Node::is_folder(below) && node.parent != 0 => below = node.parent,
                _ => return false,
            }
        }
        true
    }

    /// Takes note of a rename: what is known by this inode is now `name` in `parent`.
    pub fn moved(&mut self, stat: &Stat, parent: u64, name: &[u8]) {
        if let Some(id) = self.known(parent, stat)
            && !matches!(self.place(id, parent, name), Ok(true))
        {
            self.lose(id);
        }
    }

    /// Takes note of a removal: what is known by this inode is no longer `name` in `parent`.
    pub fn removed(&mut self, stat: &Stat, parent: u64, name: &[u8]) {
        if let Some(id) = self.known(parent, stat)
            && self.get(id).is_ok_and(|node| node.parent == parent && *node.name == *name)
        {
            self.lose(id);
        }
    }

    fn known(&self, parent: u64, stat: &Stat) -> Option<u64> {
        let folder = self.get(parent).ok()?.folder;
        let id = *self.by_inode.get(&(folder, stat.st_dev, stat.st_ino))?;
        (!Node::is_folder(id)).then_some(id)
    }

    /// It has no place any more; its number will not mean another file that gets its inode.
    fn lose(&mut self, id: u64) {
        let Some(node) = self.by_id.get_mut(&id) else { return };
        node.parent = 0;
        let key = (node.folder, node.dev, node.ino);
        if self.by_inode.get(&key) == Some(&id) {
            self.by_inode.remove(&key);
        }
    }

    /// Whether what its path leads to is what the guest knows. After a restore it is when it may be: a directory in
    /// its place, a file with the content that the guest may hold.
    ///
    /// # Errors
    /// ESTALE: the guest has to look again.
    pub fn confirm(&mut self, id: u64, stat: &Stat) -> Result<(), Errno> {
        let node = self.get(id)?;
        if node.is(stat) && !node.unsure {
            return Ok(());
        }
        let follows = Node::is_folder(id);
        let fits = node.kind == kind(stat)
            && (follows
                || node.unsure
                    && (node.ino == stat.st_ino
                        || node.version.is_none_or(|known| known.looks_like(&Version::of(stat)))));
        if !fits {
            return Err(Errno::STALE);
        }
        let old = (node.folder, node.dev, node.ino);
        let new = (node.folder, stat.st_dev, stat.st_ino);
        if self.by_inode.get(&old) == Some(&id) {
            self.by_inode.remove(&old);
        }
        self.by_inode.entry(new).or_insert(id);
        if let Some(node) = self.by_id.get_mut(&id) {
            if (old.1, old.2) != (new.1, new.2) {
                node.version = None;
            }
            (node.dev, node.ino, node.unsure) = (stat.st_dev, stat.st_ino, false);
        }
        Ok(())
    }

    /// The guest dropped `n` of the times it was told.
    pub fn forget(&mut self, id: u64, n: u64) {
        let Some(node) = self.by_id.get_mut(&id).filter(|_| id >= FIRST) else { return };
        node.lookups = node.lookups.saturating_sub(n);
        if node.lookups == 0 {
            self.lose(id);
            if let Some(node) = self.by_id.remove(&id) {
                self.cost -= node.cost();
            }
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.by_id.iter().map(|(id, node)| (*id, node))
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    /// Numbers up to here were given out.
    pub fn skip_to(&mut self, next: u64) {
        self.next = self.next.max(next.min(crate::state::LAST));
    }
}
