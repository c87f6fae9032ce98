//! Going over a tree in its one order: each directory before its entries, entries bytewise.

use std::collections::btree_map;

use super::{Kind, NodeId, ROOT, Tree};

type Entries<'a> = btree_map::Iter<'a, Box<[u8]>, NodeId>;

/// Iterator over `(path, node)`, the root first with an empty path. Paths have no leading `/`.
pub struct Walk<'a> {
    tree: &'a Tree,
    started: bool,
    /// Directories that are being gone through, with the length of their path.
    open: Vec<(usize, Entries<'a>)>,
    path: Vec<u8>,
}

impl Tree {
    /// Every name in the tree, hard links at each of their names.
    pub fn walk(&self) -> Walk<'_> {
        Walk { tree: self, started: false, open: Vec::new(), path: Vec::new() }
    }

    /// The entries of directory `id`, sorted bytewise; none where it is not a directory.
    pub fn children(&self, id: NodeId) -> impl DoubleEndedIterator<Item = (&[u8], NodeId)> {
        self.dir_entries(id).into_iter().flatten().map(|(name, id)| (&name[..], *id))
    }

    fn dir_entries(&self, id: NodeId) -> Option<Entries<'_>> {
        match self.get(id).map(|node| &node.kind) {
            Some(Kind::Dir(entries)) => Some(entries.iter()),
            _ => None,
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (Vec<u8>, NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        if !self.started {
            self.started = true;
            self.open.extend(self.tree.dir_entries(ROOT).map(|d| (0, d)));
            return Some((Vec::new(), ROOT));
        }
        loop {
            let (len, entries) = self.open.last_mut()?;
            self.path.truncate(*len);
            let Some((name, id)) = entries.next() else {
                self.open.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            if let Some(below) = self.tree.dir_entries(*id) {
                self.open.push((self.path.len(), below));
            }
            return Some((self.path.clone(), *id));
        }
    }
}
