//! What differs between two sides, and how it is told.

use std::collections::BTreeMap;

use agent_protocol::Stats;
use anyhow::Result;
use image::Tree;
use image::tree::{Kind, Node};
use serde::Serialize;
use serde_json::Value;

use super::side::{Memory, Side};
use crate::ui;
use crate::ui::say::{say, tell};

/// Bytes of a page of guest memory.
const PAGE: u64 = 4096;
/// What a copy gets of its own: another identity is no drift.
const IDENTITY: &[u8] = b"etc/machine-id";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Changed,
    Removed,
}

impl Change {
    fn sign(self) -> char {
        match self {
            Change::Added => '+',
            Change::Changed => '~',
            Change::Removed => '-',
        }
    }
}

#[derive(Debug, Serialize)]
pub struct FileChange {
    pub change: Change,
    pub path: String,
    /// What of a changed file is another: content, mode, owner, kind, attributes.
    pub what: Vec<&'static str>,
    pub bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct ListChange {
    pub change: Change,
    pub what: String,
}

#[derive(Debug, Serialize)]
pub struct KeyChange {
    pub key: String,
    pub old: Value,
    pub new: Value,
}

#[derive(Debug, Serialize)]
pub struct MemoryChange {
    pub changed_bytes: u64,
    pub bytes: u64,
}

/// Everything that differs.
#[derive(Debug, Serialize)]
pub struct Report {
    pub old: String,
    pub new: String,
    pub files: Vec<FileChange>,
    /// Nothing where one side has no processes.
    pub processes: Option<Vec<ListChange>>,
    pub ports: Option<Vec<ListChange>>,
    /// Never drift by itself: a machine that runs writes memory.
    pub memory: Option<MemoryChange>,
    pub definition: Vec<KeyChange>,
}

impl Report {
    pub fn of(old: &Side, new: &Side) -> Result<Self> {
        let both = old.stats.as_ref().zip(new.stats.as_ref());
        Ok(Self {
            old: old.label.clone(),
            new: new.label.clone(),
            files: files(&old.tree, &new.tree, old.root == new.root)?,
            processes: both.map(|(old, new)| list(&processes(old), &processes(new))),
            ports: both.map(|(old, new)| list(&ports(old), &ports(new))),
            memory: memory(&old.memory, &new.memory)?,
            definition: definition(old, new)?,
        })
    }

    pub fn has_drifted(&self) -> bool {
        let some = |list: &Option<Vec<ListChange>>| list.as_ref().is_some_and(|l| !l.is_empty());
        !self.files.is_empty() || some(&self.processes) || some(&self.ports) || !self.definition.is_empty()
    }

    /// For a person. Nothing that a guest says reaches the terminal unescaped.
    pub fn print(&self) {
        for file in &self.files {
            let what =
                if file.what.is_empty() { String::new() } else { format!("  ({})", file.what.join(", ")) };
            let size = file.bytes.map(|n| format!("  {}", ui::bytes(n))).unwrap_or_default();
            say!("file {} {}{size}{what}", file.change.sign(), file.path.escape_debug());
        }
        for (name, list) in [("process", &self.processes), ("port", &self.ports)] {
            for item in list.iter().flatten() {
                say!("{name} {} {}", item.change.sign(), item.what.escape_debug());
            }
        }
        for key in &self.definition {
            say!("definition ~ {}: {} -> {}", key.key.escape_debug(), key.old, key.new);
        }
        if let Some(memory) = &self.memory {
            say!("memory {} of {} changed", ui::bytes(memory.changed_bytes), ui::bytes(memory.bytes));
        }
        if !self.has_drifted() {
            tell!("smolvm: {}: files, processes, ports and definition are as in {}", self.new, self.old);
        }
    }
}

/// `same_root`: both trees come from the same root image, so that what both have of it is equal.
fn files(old: &Tree, new: &Tree, same_root: bool) -> Result<Vec<FileChange>> {
    let nodes = |tree: &Tree| -> BTreeMap<Vec<u8>, _> {
        tree.walk().filter(|(path, _)| !path.is_empty() && path != IDENTITY).collect()
    };
    let (before, after) = (nodes(old), nodes(new));
    let mut changes = Vec::new();
    let shown = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    for (path, id) in &after {
        let Some(node) = new.get(*id) else { continue };
        let Some(earlier) = before.get(path).and_then(|id| old.get(*id)) else {
            let (path, bytes) = (shown(path), size(node));
            changes.push(FileChange { change: Change::Added, path, what: Vec::new(), bytes });
            continue;
        };
        let what = difference(earlier, node, same_root)?;
        if !what.is_empty() {
            let (path, bytes) = (shown(path), size(node));
            changes.push(FileChange { change: Change::Changed, path, what, bytes });
        }
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        changes.push(FileChange {
            change: Change::Removed,
            path: shown(path),
            what: Vec::new(),
            bytes: None,
        });
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn size(node: &Node) -> Option<u64> {
    match node.kind() {
        Kind::File(content) => Some(content.len()),
        _ => None,
    }
}

/// What of two nodes differs. Times don't count: a file that was only touched is the same.
fn difference(old: &Node, new: &Node, same_root: bool) -> Result<Vec<&'static str>> {
    let mut what = Vec::new();
    let (a, b) = (&old.meta, &new.meta);
    if a.mode != b.mode {
        what.push("mode");
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        what.push("owner");
    }
    if a.xattrs != b.xattrs {
        what.push("attributes");
    }
    match (old.kind(), new.kind()) {
        (Kind::Dir(_), Kind::Dir(_)) | (Kind::Fifo, Kind::Fifo) | (Kind::Socket, Kind::Socket) => {}
        (Kind::File(x), Kind::File(y)) => {
            // Neither came from an overlay: both are the root image's own.
            let untouched = same_root && x.known_digest().is_none() && y.known_digest().is_none();
            let same = x.len() == y.len() && (untouched || x.digest()? == y.digest()?);
            if !same {
                what.push("content");
            }
        }
        (Kind::Symlink(x), Kind::Symlink(y)) => {
            if x != y {
                what.push("content");
            }
        }
        (Kind::CharDevice(x), Kind::CharDevice(y)) | (Kind::BlockDevice(x), Kind::BlockDevice(y)) => {
            if x != y {
                what.push("content");
            }
        }
        _ => what.push("kind"),
    }
    Ok(what)
}

fn processes(stats: &Stats) -> Vec<String> {
    stats.processes.iter().map(|p| format!("{} {}", p.pid, p.name)).collect()
}

fn ports(stats: &Stats) -> Vec<String> {
    stats.listening.iter().map(|l| format!("{} {} {}", l.transport, l.address, l.port)).collect()
}

fn list(old: &[String], new: &[String]) -> Vec<ListChange> {
    let only = |of: &[String], not: &[String], change| -> Vec<ListChange> {
        of.iter().filter(|i| !not.contains(i)).map(|i| ListChange { change, what: i.clone() }).collect()
    };
    let mut changes = only(new, old, Change::Added);
    changes.extend(only(old, new, Change::Removed));
    changes
}

fn memory(old: &Memory, new: &Memory) -> Result<Option<MemoryChange>> {
    let (pages, all) = match (old, new) {
        (Memory::Saved(a), Memory::Saved(b)) => instance::differing_pages((&a.0, &a.1), (&b.0, &b.1))?,
        (_, Memory::Live { dirty, pages }) => (*dirty, *pages),
        _ => return Ok(None),
    };
    Ok(Some(MemoryChange { changed_bytes: pages * PAGE, bytes: all * PAGE }))
}

/// Keys of the definition with another value, and the root image.
fn definition(old: &Side, new: &Side) -> Result<Vec<KeyChange>> {
    let (mut a, mut b) = (BTreeMap::new(), BTreeMap::new());
    flatten("", serde_json::to_value(&old.spec)?, &mut a);
    flatten("", serde_json::to_value(&new.spec)?, &mut b);
    a.insert("root image".into(), Value::String(old.root.short()));
    b.insert("root image".into(), Value::String(new.root.short()));
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let value = |of: &BTreeMap<String, Value>, key: &String| of.get(key).cloned().unwrap_or(Value::Null);
    let changes =
        keys.into_iter().map(|key| KeyChange { key: key.clone(), old: value(&a, key), new: value(&b, key) });
    Ok(changes.filter(|change| change.old != change.new).collect())
}

/// Objects key by key; everything else is a value.
fn flatten(prefix: &str, value: Value, to: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                flatten(&key, value, to);
            }
        }
        Value::Null => {}
        value => drop(to.insert(prefix.to_owned(), value)),
    }
}
