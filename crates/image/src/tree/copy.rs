//! Copying part of one tree into another.

use std::collections::HashMap;

use super::{Item, Kind, NodeId, Tree, TreeError};

impl Tree {
    /// Copies everything below directory `dir` of `from` into the empty directory `into` of this
    /// tree. Files that are hard links of each other there are so here.
    ///
    /// # Errors
    /// [`TreeError`]: limits, paths that become too long.
    pub(crate) fn copy_below(&mut self, into: NodeId, from: &Tree, dir: NodeId) -> Result<(), TreeError> {
        let mut copied: HashMap<NodeId, NodeId> = HashMap::new();
        let mut todo = vec![(dir, into)];
        while let Some((source, target)) = todo.pop() {
            for (name, id) in from.children(source) {
                if let Some(known) = copied.get(&id) {
                    self.add_link(target, name, *known)?;
                    continue;
                }
                let Some(node) = from.get(id) else { continue };
                let new = self.add_child(target, name, item(&node.kind), node.meta.clone())?;
                match node.is_dir() {
                    true => todo.push((id, new)),
                    false => drop(copied.insert(id, new)),
                }
            }
        }
        Ok(())
    }
}

/// What makes such a node again; a directory without its entries.
fn item(kind: &Kind) -> Item {
    match kind {
        Kind::Dir(_) => Item::Dir,
        Kind::File(content) => Item::File(content.clone()),
        Kind::Symlink(target) => Item::Symlink(target.clone()),
        Kind::CharDevice(device) => Item::CharDevice(*device),
        Kind::BlockDevice(device) => Item::BlockDevice(*device),
        Kind::Fifo => Item::Fifo,
        Kind::Socket => Item::Socket,
    }
}
