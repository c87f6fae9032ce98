//! Reads an EROFS image into a tree whose contents are ranges of the image.
//!
//! The image may come from anywhere: every address is checked against its size, every directory
//! is entered once, and nothing is allocated that the image does not hold. Only what
//! [`super::write_erofs`] writes is understood: uncompressed, one device, 4 KiB blocks.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::format::{
    BLOCK, BLOCK_BITS, DIRENT, FLAT_INLINE, FLAT_PLAIN, INODE_COMPACT, INODE_EXTENDED, Inode, MAGIC, SLOT,
    SUPER_OFFSET, Type, decode_device, get_u16, get_u32, get_u64, type_in,
};
use super::xattr;
use crate::content::{Content, ReadAt};
use crate::tree::{Item, Limits, MAX_PATH, Meta, NodeId, ROOT, Time, Tree, TreeError};

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading {len} bytes at {at} of the root image failed: {source}")]
    Io { at: u64, len: usize, source: io::Error },
    #[error("this is not an EROFS image: no magic number at byte 1024")]
    NotErofs,
    #[error("the EROFS image uses {0}, which this reader does not know")]
    Unknown(&'static str),
    #[error("the EROFS image is damaged: {what} (inode {nid})")]
    Damaged { what: &'static str, nid: u64 },
    #[error("the EROFS image's tree cannot be held: {0}")]
    Tree(#[from] TreeError),
}

/// Reads the whole directory tree of `image`. Contents stay in the image.
///
/// # Errors
/// [`ReadError`]: not an image, damaged, or of a kind that we don't write.
pub fn read_erofs(image: Arc<dyn ReadAt>, limits: Limits) -> Result<Tree, ReadError> {
    let mut reader = Reader::open(image)?;
    let mut tree = Tree::new(limits);
    let root = reader.inode(reader.root_nid)?;
    if type_in(root.inode.mode) != Some(Type::Dir) {
        return Err(damaged("the root is not a directory", reader.root_nid));
    }
    if let Some(meta) = tree.meta_mut(ROOT) {
        *meta = reader.meta(&root)?;
    }
    reader.dirs.insert(reader.root_nid);
    let mut todo = vec![(ROOT, root)];
    while let Some((dir, found)) = todo.pop() {
        reader.read_dir(&mut tree, dir, &found, &mut todo)?;
    }
    Ok(tree)
}

/// An inode and where it was.
struct Found {
    nid: u64,
    at: u64,
    head: usize,
    inode: Inode,
}

struct Reader {
    image: Arc<dyn ReadAt>,
    size: u64,
    meta_start: u64,
    root_nid: u64,
    build_time: Time,
    /// Bytes of directories and attributes that may still be read. An honest image has each
    /// once, so they add up to less than its size; one that lies cannot make us read for ever.
    budget: u64,
    dirs: HashSet<u64>,
    files: HashMap<u64, NodeId>,
}

impl Reader {
    fn open(image: Arc<dyn ReadAt>) -> Result<Self, ReadError> {
        let size = image.size().map_err(|source| ReadError::Io { at: 0, len: 0, source })?;
        let mut reader = Self {
            image,
            size,
            meta_start: 0,
            root_nid: 0,
            build_time: Time::default(),
            budget: size,
            dirs: HashSet::new(),
            files: HashMap::new(),
        };
        if size < BLOCK {
            return Err(ReadError::NotErofs);
        }
        let head = reader.bytes(0, BLOCK as usize, 0)?;
        let sb = &head[SUPER_OFFSET..];
        let short = || damaged("the superblock is cut short", 0);
        if get_u32(sb, 0) != Some(MAGIC) {
            return Err(ReadError::NotErofs);
        }
        if sb.get(12) != Some(&BLOCK_BITS) || sb.get(90) != Some(&0) {
            return Err(ReadError::Unknown("a block size other than 4096"));
        }
        if get_u32(sb, 80) != Some(0) {
            return Err(ReadError::Unknown("compression or another late feature"));
        }
        reader.root_nid = get_u16(sb, 14).ok_or_else(short)?.into();
        reader.build_time = Time {
            secs: get_u64(sb, 24).ok_or_else(short)? as i64,
            nanos: get_u32(sb, 32).ok_or_else(short)?,
        };
        reader.meta_start = u64::from(get_u32(sb, 40).ok_or_else(short)?) * BLOCK;
        Ok(reader)
    }

    fn bytes(&self, at: u64, len: usize, nid: u64) -> Result<Vec<u8>, ReadError> {
        self.range(at, len as u64, nid)?;
        let mut buf = vec![0; len];
        self.image.read_exact_at(&mut buf, at).map_err(|source| ReadError::Io { at, len, source })?;
        Ok(buf)
    }

    /// Whether the image has these bytes; asked before anything is allocated for them.
    fn range(&self, at: u64, len: u64, nid: u64) -> Result<(), ReadError> {
        match at.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(damaged("an address points behind its end", nid)),
        }
    }

    fn inode(&self, nid: u64) -> Result<Found, ReadError> {
        let at = nid
            .checked_mul(SLOT)
            .and_then(|at| at.checked_add(self.meta_start))
            .ok_or_else(|| damaged("an inode number is too large", nid))?;
        let short = self.bytes(at, INODE_COMPACT, nid)?;
        let format = get_u16(&short, 0).unwrap_or(0);
        let extended = format & 1 == 1;
        let head = if extended { INODE_EXTENDED } else { INODE_COMPACT };
        let raw = self.bytes(at, head, nid)?;
        let inode = parse_inode(&raw, extended, self.build_time)
            .ok_or_else(|| damaged("an inode is cut short", nid))?;
        if format >> 4 != 0 || !matches!(inode.layout, FLAT_PLAIN | FLAT_INLINE) {
            return Err(ReadError::Unknown("a compressed or chunked file"));
        }
        Ok(Found { nid, at, head: head + xattr::size(inode.xattr_count), inode })
    }

    fn spend(&mut self, bytes: u64, nid: u64) -> Result<(), ReadError> {
        self.budget = self
            .budget
            .checked_sub(bytes)
            .ok_or_else(|| damaged("its directories are larger than itself", nid))?;
        Ok(())
    }

    fn meta(&mut self, found: &Found) -> Result<Meta, ReadError> {
        let inode = &found.inode;
        let len = xattr::size(inode.xattr_count);
        let at = found.at + (found.head - len) as u64;
        self.spend(len as u64, found.nid)?;
        let xattrs = xattr::decode(&self.bytes(at, len, found.nid)?)
            .ok_or_else(|| damaged("extended attributes don't hold together", found.nid))?;
        Ok(Meta {
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: Time { secs: inode.mtime, nanos: inode.mtime_nanos },
            xattrs,
        })
    }

    /// The data of an inode as a reference, checked to lie in the image.
    fn data(&self, found: &Found) -> Result<Content, ReadError> {
        let inode = &found.inode;
        let tail = match inode.layout {
            FLAT_INLINE => inode.size % BLOCK,
            _ => 0,
        };
        let full = inode.size - tail;
        let mut parts = Vec::new();
        if full > 0 {
            let at = u64::from(inode.union) * BLOCK;
            self.range(at, full, found.nid)?;
            parts.push(Content::range(self.image.clone(), at, full, None));
        }
        if tail > 0 {
            let at = found.at + found.head as u64;
            self.range(at, tail, found.nid)?;
            parts.push(Content::range(self.image.clone(), at, tail, None));
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Content::joined(parts).ok_or_else(|| damaged("a file is too large", found.nid)),
        }
    }

    fn read_dir(
        &mut self,
        tree: &mut Tree,
        dir: NodeId,
        found: &Found,
        todo: &mut Vec<(NodeId, Found)>,
    ) -> Result<(), ReadError> {
        let data = self.data(found)?;
        self.spend(data.len(), found.nid)?;
        let mut at = 0;
        while at < data.len() {
            let mut block = vec![0; (data.len() - at).min(BLOCK) as usize];
            data.read_exact_at(&mut block, at).map_err(|source| ReadError::Io {
                at,
                len: block.len(),
                source,
            })?;
            let names = parse_dirents(&block)
                .ok_or_else(|| damaged("a directory does not hold together", found.nid))?;
            for (name, nid) in names {
                if name != b"." && name != b".." {
                    self.read_entry(tree, dir, name, nid, todo)?;
                }
            }
            at += BLOCK;
        }
        Ok(())
    }

    fn read_entry(
        &mut self,
        tree: &mut Tree,
        dir: NodeId,
        name: &[u8],
        nid: u64,
        todo: &mut Vec<(NodeId, Found)>,
    ) -> Result<(), ReadError> {
        if let Some(known) = self.files.get(&nid) {
            tree.add_link(dir, name, *known)?;
            return Ok(());
        }
        let found = self.inode(nid)?;
        let item = self.item(&found)?;
        let is_dir = matches!(item, Item::Dir);
        if is_dir && !self.dirs.insert(nid) {
            return Err(damaged("a directory is its own descendant or has two names", nid));
        }
        let id = tree.add_child(dir, name, item, self.meta(&found)?)?;
        if is_dir {
            todo.push((id, found));
        } else {
            self.files.insert(nid, id);
        }
        Ok(())
    }

    fn item(&self, found: &Found) -> Result<Item, ReadError> {
        let inode = &found.inode;
        Ok(match type_in(inode.mode) {
            Some(Type::Dir) => Item::Dir,
            Some(Type::File) => Item::File(self.data(found)?),
            Some(Type::Symlink) => {
                let target = self
                    .data(found)?
                    .to_vec(MAX_PATH as u64)
                    .map_err(|_| damaged("a symbolic link cannot be read", found.nid))?;
                Item::Symlink(target.into())
            }
            Some(Type::Char) => Item::CharDevice(decode_device(inode.union)),
            Some(Type::Block) => Item::BlockDevice(decode_device(inode.union)),
            Some(Type::Fifo) => Item::Fifo,
            Some(Type::Socket) => Item::Socket,
            None => return Err(damaged("an inode has no known type", found.nid)),
        })
    }
}

fn parse_inode(raw: &[u8], extended: bool, build_time: Time) -> Option<Inode> {
    let mut inode = Inode {
        layout: (get_u16(raw, 0)? >> 1) & 7,
        xattr_count: get_u16(raw, 2)?,
        mode: get_u16(raw, 4)?,
        size: get_u32(raw, 8)?.into(),
        union: get_u32(raw, 16)?,
        ino: get_u32(raw, 20)?,
        uid: get_u16(raw, 24)?.into(),
        gid: get_u16(raw, 26)?.into(),
        mtime: build_time.secs,
        mtime_nanos: build_time.nanos,
        nlink: get_u16(raw, 6)?.into(),
    };
    if extended {
        inode.size = get_u64(raw, 8)?;
        inode.uid = get_u32(raw, 24)?;
        inode.gid = get_u32(raw, 28)?;
        inode.mtime = get_u64(raw, 32)? as i64;
        inode.mtime_nanos = get_u32(raw, 40)?;
        inode.nlink = get_u32(raw, 44)?;
    }
    Some(inode)
}

/// The names of one directory block with the inodes they name.
fn parse_dirents(block: &[u8]) -> Option<Vec<(&[u8], u64)>> {
    let first = usize::from(get_u16(block, 8)?);
    if first < DIRENT || !first.is_multiple_of(DIRENT) || first > block.len() {
        return None;
    }
    let count = first / DIRENT;
    let mut names = Vec::with_capacity(count);
    for i in 0..count {
        let from = usize::from(get_u16(block, i * DIRENT + 8)?);
        let to = match i + 1 < count {
            true => usize::from(get_u16(block, (i + 1) * DIRENT + 8)?),
            false => block.len(),
        };
        let mut name = block.get(from..to)?;
        if i + 1 == count {
            // The last name ends at a NUL or with the block.
            name = name.split(|b| *b == 0).next()?;
        }
        names.push((name, get_u64(block, i * DIRENT)?));
    }
    Some(names)
}

fn damaged(what: &'static str, nid: u64) -> ReadError {
    ReadError::Damaged { what, nid }
}
