//! What a run leaves behind that no other run should see.

use crate::content::Content;
use crate::tree::{Kind, Node, NodeId, Tree};

/// What to do with a path.
enum Rule {
    /// Everything in the directory goes; the directory stays.
    Clear,
    /// Files in it, at any depth, become empty; directories and owners stay, since services
    /// expect their log directory.
    EmptyFiles,
    /// The file becomes empty where it is there.
    Empty,
    Remove,
    /// Everything in the directory but directories goes, at any depth: packages and images bring /run/mysqld and the
    /// like with their owners, and the machine's agent makes them again (docs/adr/0042).
    RemoveFiles,
    /// Names in the directory that end so go.
    RemoveSuffix(&'static [u8]),
}

const RULES: &[(&str, Rule)] = &[
    ("etc/machine-id", Rule::Empty),
    ("run", Rule::RemoveFiles),
    ("tmp", Rule::Clear),
    ("var/cache/apt", Rule::Clear),
    ("var/cache/debconf", Rule::RemoveSuffix(b"-old")),
    ("var/cache/ldconfig/aux-cache", Rule::Remove),
    ("var/lib/apt/lists", Rule::Clear),
    ("var/lib/dbus/machine-id", Rule::Remove),
    ("var/lib/dpkg", Rule::RemoveSuffix(b"-old")),
    ("var/lib/dpkg/lock", Rule::Remove),
    ("var/lib/dpkg/lock-frontend", Rule::Remove),
    ("var/lib/dpkg/triggers/Lock", Rule::Remove),
    ("var/lib/systemd/random-seed", Rule::Remove),
    ("var/lib/urandom/random-seed", Rule::Remove),
    ("var/log", Rule::EmptyFiles),
    ("var/tmp", Rule::Clear),
];

/// Applies the rules.
pub fn settle(tree: &mut Tree) {
    for (path, rule) in RULES {
        let Some(id) = tree.lookup(path) else { continue };
        match rule {
            Rule::Clear => {
                tree.clear(id);
            }
            Rule::Empty => empty(tree, id),
            Rule::EmptyFiles => empty_below(tree, id),
            Rule::RemoveFiles => remove_below(tree, path.as_bytes(), id),
            Rule::Remove if tree.get(id).is_some_and(|node| !node.is_dir()) => {
                tree.remove(path);
            }
            Rule::Remove => {}
            Rule::RemoveSuffix(suffix) => {
                let names: Vec<Vec<u8>> = tree
                    .children(id)
                    .filter(|(name, _)| name.ends_with(suffix))
                    .map(|(name, _)| [path.as_bytes(), b"/", name].concat())
                    .collect();
                for name in names {
                    tree.remove(name);
                }
            }
        }
    }
}

fn empty(tree: &mut Tree, id: NodeId) {
    if matches!(tree.get(id).map(Node::kind), Some(Kind::File(_))) {
        // Fewer bytes never exceed a limit.
        let _ = tree.set_content(id, Content::empty());
    }
}

fn empty_below(tree: &mut Tree, top: NodeId) {
    let mut todo = vec![top];
    while let Some(id) = todo.pop() {
        todo.extend(tree.children(id).map(|(_, child)| child));
        empty(tree, id);
    }
}

fn remove_below(tree: &mut Tree, path: &[u8], top: NodeId) {
    let mut todo = vec![(path.to_vec(), top)];
    while let Some((path, id)) = todo.pop() {
        let children: Vec<_> =
            tree.children(id).map(|(name, child)| ([&path, &b"/"[..], name].concat(), child)).collect();
        for (path, child) in children {
            if tree.get(child).is_some_and(Node::is_dir) {
                todo.push((path, child));
            } else {
                tree.remove(path);
            }
        }
    }
}
