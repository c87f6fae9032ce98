//! Where everything in an image goes, before a byte is written.
//!
//! Problem: inodes point at data and directories at inodes, but the image is to be written in
//! one pass, and the same tree must always give the same bytes. Strategy: sizes are known from
//! the tree alone, so all addresses are. Invariants: an inode with its inline data stays within
//! a block (the kernel refuses inline data that crosses one); every address is a function of
//! the tree.
//!
//! For the guest, whose every first read is a request to a virtual disk: a directory's inode,
//! its entries and its files' inodes lie together, so that a look-up or `ls -l` touches few
//! blocks; file data follows, each file in one run, in the same order.

use std::collections::HashMap;

use super::format::{
    BLOCK, FLAT_INLINE, FLAT_PLAIN, INODE_COMPACT, INODE_EXTENDED, NO_BLOCK, SLOT, encode_device,
};
use super::{dirs, xattr};
use crate::content::Digest;
use crate::tree::{Kind, Node, NodeId, ROOT, Time, Tree};

/// A tail that would waste more than this in a block of its own goes behind the inode.
const TAIL_MAX: u64 = BLOCK / 2;
/// How many begun blocks are kept open for things that fit into them.
const OPEN_GAPS: usize = 16;

/// Where one inode and its data are.
#[derive(Clone, Debug)]
pub struct Place {
    pub id: NodeId,
    /// Byte offset of the inode in the image.
    pub at: u64,
    pub extended: bool,
    pub layout: u16,
    pub size: u64,
    /// Bytes of data that stand behind the inode.
    pub inline: u64,
    /// i_u: first data block or device number.
    pub union: u32,
    pub xattr_len: usize,
    pub xattr_count: u16,
    pub nlink: u32,
}

/// Data blocks of one file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub id: NodeId,
    pub block: u64,
    pub blocks: u64,
}

/// The whole image.
pub struct Plan {
    /// By address, ascending: inodes in `places`, directory blocks in `dir_runs`.
    pub places: Vec<Place>,
    pub dir_runs: Vec<Run>,
    pub file_runs: Vec<Run>,
    /// First block after inodes and directories.
    pub data_start: u64,
    pub blocks: u64,
    /// Bytes not written because another file has the same content.
    pub shared: u64,
    offsets: Vec<u64>,
}

/// What cannot be laid out.
pub enum PlanError {
    /// An attribute's name or size has no form on disk.
    Xattr(NodeId, Vec<u8>),
    /// More than 2^32 blocks.
    TooLarge,
}

impl Plan {
    /// Lays out `tree`. Inodes whose time is `build_time` can take the short form.
    pub fn new(tree: &Tree, build_time: Time) -> Result<Self, PlanError> {
        let order = order(tree);
        let mut space = Space::new();
        let mut plan = Self {
            places: Vec::with_capacity(order.len()),
            dir_runs: Vec::new(),
            file_runs: Vec::new(),
            data_start: 0,
            blocks: 0,
            shared: 0,
            offsets: vec![0; tree.slots()],
        };
        for id in order {
            let Some(node) = tree.get(id) else { continue };
            let mut place = measure(tree, id, node, build_time)?;
            let head = head_len(&place);
            place.at = space.take(head + place.inline);
            if node.is_dir() && place.size > place.inline {
                let blocks = (place.size - place.inline).div_ceil(BLOCK);
                let block = space.take_blocks(blocks);
                place.union = block_number(block)?;
                plan.dir_runs.push(Run { id, block, blocks });
            }
            plan.offsets[id.index()] = place.at;
            plan.places.push(place);
        }
        plan.data_start = space.next_block;
        plan.place_files(tree)?;
        plan.places.sort_unstable_by_key(|place| place.at);
        Ok(plan)
    }

    /// The number that names a node's inode in directories.
    pub fn nid(&self, id: NodeId) -> u64 {
        self.offsets.get(id.index()).map_or(0, |at| at / SLOT)
    }

    fn place_files(&mut self, tree: &Tree) -> Result<(), PlanError> {
        let mut known: HashMap<(Bytes, u64, u64), u64> = HashMap::new();
        let mut next = self.data_start;
        for place in &mut self.places {
            let content = match tree.get(place.id).map(Node::kind) {
                Some(Kind::File(content)) => Some(content),
                Some(Kind::Symlink(_)) => None,
                _ => continue,
            };
            let blocks = (place.size - place.inline).div_ceil(BLOCK);
            if blocks == 0 {
                continue;
            }
            let bytes = content.and_then(|content| match content.known_digest() {
                Some(digest) => Some(Bytes::Digest(digest)),
                None => content.place().map(|(source, offset)| Bytes::Place(source, offset)),
            });
            let key = bytes.map(|bytes| (bytes, place.size, blocks));
            if let Some(block) = key.as_ref().and_then(|key| known.get(key)) {
                place.union = block_number(*block)?;
                self.shared += blocks * BLOCK;
                continue;
            }
            place.union = block_number(next)?;
            self.file_runs.push(Run { id: place.id, block: next, blocks });
            if let Some(key) = key {
                known.insert(key, next);
            }
            next = next.checked_add(blocks).ok_or(PlanError::TooLarge)?;
        }
        block_number(next)?;
        self.blocks = next;
        Ok(())
    }
}

/// What tells that two files have the same bytes in their blocks.
#[derive(PartialEq, Eq, Hash)]
enum Bytes {
    Digest(Digest),
    /// Of a file that comes out of another image, in which it shared them.
    Place(usize, u64),
}

fn block_number(block: u64) -> Result<u32, PlanError> {
    match u32::try_from(block) {
        Ok(block) if block != NO_BLOCK => Ok(block),
        _ => Err(PlanError::TooLarge),
    }
}

/// Bytes of the inode and its attributes.
pub fn head_len(place: &Place) -> u64 {
    let inode = if place.extended { INODE_EXTENDED } else { INODE_COMPACT };
    (inode + place.xattr_len) as u64
}

/// Every inode once: a directory, then what is in it apart from directories, then each
/// directory in it the same way.
fn order(tree: &Tree) -> Vec<NodeId> {
    let mut seen = vec![false; tree.slots()];
    let mut order = Vec::new();
    let mut stack = vec![ROOT];
    while let Some(dir) = stack.pop() {
        order.push(dir);
        for (_, id) in tree.children(dir) {
            let is_dir = tree.get(id).is_some_and(Node::is_dir);
            if !is_dir && !std::mem::replace(&mut seen[id.index()], true) {
                order.push(id);
            }
        }
        let below = stack.len();
        stack.extend(
            tree.children(dir).filter_map(|(_, id)| tree.get(id).filter(|node| node.is_dir()).map(|_| id)),
        );
        stack[below..].reverse();
    }
    order
}

fn measure(tree: &Tree, id: NodeId, node: &Node, build_time: Time) -> Result<Place, PlanError> {
    let xattrs = xattr::encode(&node.meta.xattrs).map_err(|e| PlanError::Xattr(id, e.name))?;
    let xattr_count =
        xattr::count(&xattrs).ok_or_else(|| PlanError::Xattr(id, b"(all together)".to_vec()))?;
    let (size, nlink) = match node.kind() {
        Kind::Dir(_) => {
            let dirs = tree.children(id).filter(|(_, id)| tree.get(*id).is_some_and(Node::is_dir));
            (dirs::size(&dirs::pack(tree, id)), 2 + dirs.count() as u32)
        }
        Kind::File(content) => (content.len(), node.names()),
        Kind::Symlink(target) => (target.len() as u64, node.names()),
        _ => (0, node.names()),
    };
    let meta = &node.meta;
    let extended = meta.mtime != build_time
        || meta.uid > u16::MAX.into()
        || meta.gid > u16::MAX.into()
        || size > u32::MAX.into()
        || nlink > u16::MAX.into();
    let mut place = Place {
        id,
        at: 0,
        extended,
        layout: FLAT_PLAIN,
        size,
        inline: 0,
        union: NO_BLOCK,
        xattr_len: xattrs.len(),
        xattr_count,
        nlink,
    };
    place.inline = inline_len(head_len(&place), size);
    if place.inline > 0 {
        place.layout = FLAT_INLINE;
    }
    if let Kind::CharDevice(device) | Kind::BlockDevice(device) = node.kind() {
        place.union = encode_device(*device);
    } else if matches!(node.kind(), Kind::Fifo | Kind::Socket) {
        place.union = 0;
    }
    Ok(place)
}

/// How much of `size` bytes goes behind an inode of `head` bytes: all of what is smaller than a
/// block and fits, else a last piece that would leave most of its block empty.
fn inline_len(head: u64, size: u64) -> u64 {
    let tail = size % BLOCK;
    let fits = head % BLOCK + tail <= BLOCK && head <= BLOCK;
    if fits && (size < BLOCK || tail <= TAIL_MAX) { tail } else { 0 }
}

/// Hands out addresses for inodes and directory blocks.
struct Space {
    next_block: u64,
    /// Unused ends of begun blocks, oldest first: (from, to) in bytes.
    gaps: Vec<(u64, u64)>,
}

impl Space {
    /// Block 0 is the superblock's.
    fn new() -> Self {
        Self { next_block: 1, gaps: Vec::new() }
    }

    fn take_blocks(&mut self, blocks: u64) -> u64 {
        let first = self.next_block;
        self.next_block += blocks;
        first
    }

    /// `len` bytes within one block (or from the start of a run of new ones when longer).
    fn take(&mut self, len: u64) -> u64 {
        let len = len.next_multiple_of(SLOT);
        if let Some(i) = self.gaps.iter().position(|(from, to)| to - from >= len) {
            let at = self.gaps[i].0;
            self.gaps[i].0 += len;
            if self.gaps[i].0 == self.gaps[i].1 {
                self.gaps.remove(i);
            }
            return at;
        }
        let blocks = len.div_ceil(BLOCK);
        let at = self.take_blocks(blocks) * BLOCK;
        let end = at + blocks * BLOCK;
        if at + len < end {
            self.gaps.push((at + len, end));
            if self.gaps.len() > OPEN_GAPS {
                self.gaps.remove(0);
            }
        }
        at
    }
}
