//! Where a file's blocks are (filesystems/ext4/ifork.rst).

use std::io;
use std::sync::Arc;

use super::{BLOCK, COST, Ext4, Ext4Error, damaged};
use crate::content::{Content, ReadAt};
use crate::erofs::format::{get_u16, get_u32};

/// Bytes of the field in the inode that holds the top of the tree.
pub const LEN: usize = 60;

const MAGIC: u16 = 0xf30a;
/// Bytes of a node's head and of each of its entries.
const ENTRY: usize = 12;
/// Levels below the top: what the kernel makes at most.
const DEPTH: u16 = 5;
/// A longer extent is one that was allocated and never written: it reads as zeros.
const WRITTEN: u16 = 32768;

/// Bytes that are together in the file and on the disk.
struct Run {
    /// Where they are in the file, and how many; in bytes.
    at: u64,
    len: u64,
    /// Where they are on the disk, in bytes.
    start: u64,
}

/// A file as one that can be read anywhere. Between the runs it is zeros.
struct Mapped {
    disk: Arc<dyn ReadAt>,
    /// In order; none overlaps another, none reaches behind the end.
    runs: Vec<Run>,
    size: u64,
    inode: u32,
}

impl Ext4 {
    /// The first `size` bytes of what the tree in `top` says.
    pub fn extents(&mut self, top: &[u8], size: u64, inode: u32) -> Result<Content, Ext4Error> {
        let mut file = Mapped { disk: Arc::clone(&self.disk), runs: Vec::new(), size, inode };
        let depth = get_u16(top, 6).unwrap_or(0);
        if depth > DEPTH {
            return Err(damaged("a tree of extents is too deep", inode));
        }
        self.node(top, depth, &mut file)?;
        Ok(Content::range(Arc::new(file), 0, size, None))
    }

    fn node(&mut self, node: &[u8], depth: u16, file: &mut Mapped) -> Result<(), Ext4Error> {
        let wrong = || damaged("a tree of extents does not hold together", file.inode);
        if get_u16(node, 0) != Some(MAGIC) || get_u16(node, 6) != Some(depth) {
            return Err(wrong());
        }
        let count = usize::from(get_u16(node, 2).unwrap_or(0));
        let entries = node.get(ENTRY..ENTRY * (count + 1)).ok_or_else(wrong)?;
        for entry in entries.chunks_exact(ENTRY) {
            let word = |at| u64::from(get_u32(entry, at).unwrap_or(0));
            let half = |at| get_u16(entry, at).unwrap_or(0);
            if depth == 0 {
                let start = word(8) | u64::from(half(6)) << 32;
                self.extent(word(0) * BLOCK, half(4), start * BLOCK, file)?;
            } else {
                let below = self.block(word(4) | u64::from(half(8)) << 32, file.inode)?;
                self.node(&below, depth - 1, file)?;
            }
        }
        Ok(())
    }

    /// `at`: place in the file; `start`: on the disk; both in bytes.
    fn extent(&mut self, at: u64, blocks: u16, start: u64, file: &mut Mapped) -> Result<(), Ext4Error> {
        // What is not written, or allocated behind the file's end, is as if it were not there.
        if blocks > WRITTEN || at >= file.size {
            return Ok(());
        }
        self.spend(COST, file.inode)?;
        let len = (u64::from(blocks) * BLOCK).min(file.size - at);
        self.range(start, len, file.inode)?;
        if file.runs.last().is_some_and(|last| at < last.at + last.len) {
            return Err(damaged("extents overlap", file.inode));
        }
        file.runs.push(Run { at, len, start });
        Ok(())
    }
}

impl ReadAt for Mapped {
    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        to.fill(0);
        let first = self.runs.partition_point(|run| run.at + run.len <= offset);
        for run in self.runs[first..].iter().take_while(|run| run.at < end) {
            let (from, until) = (run.at.max(offset), (run.at + run.len).min(end));
            let part = &mut to[(from - offset) as usize..(until - offset) as usize];
            self.disk.read_exact_at(part, run.start + (from - run.at))?;
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}
