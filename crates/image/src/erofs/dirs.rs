//! Directory data: blocks of entries, each block's entries first and their names behind. The
//! kernel searches by bisection, so names are in byte order over all blocks, `.` and `..` among
//! them.

use super::format::{BLOCK, DIRENT, Put, type_of};
use crate::tree::{NodeId, Tree};

/// One name in a directory.
pub type Entry<'a> = (&'a [u8], NodeId);

/// The entries of directory `id` by block.
pub fn pack(tree: &Tree, id: NodeId) -> Vec<Vec<Entry<'_>>> {
    let mut names: Vec<Entry<'_>> = tree.children(id).collect();
    for dot in [(&b"."[..], id), (&b".."[..], tree.parent(id))] {
        let at = names.partition_point(|entry| entry.0 < dot.0);
        names.insert(at, dot);
    }
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for entry in names {
        let len = DIRENT + entry.0.len();
        if used + len > BLOCK as usize {
            blocks.push(Vec::new());
            used = 0;
        }
        used += len;
        if let Some(block) = blocks.last_mut() {
            block.push(entry);
        }
    }
    blocks
}

/// Bytes that a block's entries take.
pub fn used(block: &[Entry<'_>]) -> u64 {
    block.iter().map(|(name, _)| (DIRENT + name.len()) as u64).sum()
}

/// i_size of a directory: full blocks, and what the last one uses.
pub fn size(blocks: &[Vec<Entry<'_>>]) -> u64 {
    let full = blocks.len().saturating_sub(1) as u64;
    full * BLOCK + blocks.last().map_or(0, |block| used(block))
}

/// A block's bytes, as long as they are used. `nid` says where a node's inode is.
pub fn encode(tree: &Tree, block: &[Entry<'_>], nid: impl Fn(NodeId) -> u64) -> Vec<u8> {
    let mut out = vec![0; used(block) as usize];
    let mut name_at = block.len() * DIRENT;
    for (i, (name, id)) in block.iter().enumerate() {
        let kind = tree.get(*id).map_or(0, |node| type_of(node.kind()).1);
        let mut put = Put::new(&mut out, i * DIRENT);
        put.u64(nid(*id));
        put.u16(name_at as u16); // within a block
        put.bytes(&[kind, 0]);
        Put::new(&mut out, name_at).bytes(name);
        name_at += name.len();
    }
    out
}
