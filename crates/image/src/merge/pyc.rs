//! Compiled Python modules whose source's time is about to be clamped.
//!
//! A .pyc begins with a magic number, a word of flags, and, where the flags are 0, the source's
//! modification time and size (PEP 552). Python takes the file only when time and size are the
//! source's.

use std::io;

use crate::content::Content;
use crate::tree::{Kind, Node, NodeId, Time, Tree};

const HEADER: usize = 16;
/// Larger than any compiled module that was seen; others are left alone.
const LARGEST: u64 = 64 << 20;
const CACHE: &[u8] = b"__pycache__";

/// The compiled modules below `tree` that were true for a source newer than `epoch`, with the
/// content that makes them true again once the source is as old as `epoch`.
pub fn of_newer_sources(tree: &Tree, epoch: Time) -> io::Result<Vec<(NodeId, Content)>> {
    let mut changed = Vec::new();
    let clamped = (epoch.secs as u32).to_le_bytes();
    for (path, dir) in tree.walk() {
        if !path.ends_with(CACHE) {
            continue;
        }
        let sources = tree.parent(dir);
        for (name, id) in tree.children(dir) {
            let Some(source) = source_of(tree, sources, name) else { continue };
            let mtime = source.meta.mtime;
            let Some(Kind::File(content)) = tree.get(id).map(Node::kind) else { continue };
            if mtime <= epoch || content.len() < HEADER as u64 || content.len() > LARGEST {
                continue;
            }
            let mut header = [0; HEADER];
            content.read_exact_at(&mut header, 0)?;
            let was = (mtime.secs as u32).to_le_bytes();
            if header[4..8] != [0; 4] || header[8..12] != was {
                continue;
            }
            let mut bytes = content.to_vec(LARGEST)?;
            bytes[8..12].copy_from_slice(&clamped);
            changed.push((id, Content::bytes(bytes)));
        }
    }
    Ok(changed)
}

/// `NAME.py` for `NAME.cpython-311.opt-1.pyc`.
fn source_of<'a>(tree: &'a Tree, dir: NodeId, name: &[u8]) -> Option<&'a Node> {
    let stem = name.strip_suffix(b".pyc")?;
    let module = stem.split(|b| *b == b'.').next()?;
    let wanted = [module, b".py"].concat();
    let (_, id) = tree.children(dir).find(|(name, _)| **name == *wanted)?;
    tree.get(id)
}
