//! Directories and what is below them (filesystems/ext4/directory.rst).

use std::collections::{HashMap, HashSet};

use super::inode::Inode;
use super::{BLOCK, COST, Ext4, Ext4Error, damaged};
use crate::archive::{Entry, EntryKind};
use crate::content::Content;
use crate::erofs::format::{Type, get_u16, get_u32};
use crate::tree::MAX_PATH;

/// The root directory's inode.
const ROOT: u32 = 2;
/// Bytes of a directory entry before its name.
const ENTRY: usize = 8;

type Names = Vec<(Vec<u8>, u32)>;

/// What [`Ext4::walk`] gives. Ends at the first error.
pub struct Ext4Walk {
    ext4: Ext4,
    /// Directories that are being read: their path, and the names that are left, the last first.
    open: Vec<(Vec<u8>, Names)>,
    dirs: HashSet<u32>,
    /// Files with several names by the one that came first.
    links: HashMap<u32, Vec<u8>>,
    /// The directory itself, given first.
    top: Option<(Entry, Content)>,
}

impl Ext4Walk {
    pub(super) fn new(mut ext4: Ext4, name: &[u8]) -> Result<Self, Ext4Error> {
        let root = ext4.inode(ROOT)?;
        let names = ext4.names(&root)?;
        let found = names.into_iter().find(|(own, _)| own == name);
        let (open, dirs) = (Vec::new(), HashSet::from([ROOT]));
        let mut walk = Self { ext4, open, dirs, links: HashMap::new(), top: None };
        if let Some((_, number)) = found {
            walk.top = walk.member(b".".to_vec(), number)?;
        }
        Ok(walk)
    }

    fn step(&mut self) -> Result<Option<(Entry, Content)>, Ext4Error> {
        while let Some((dir, names)) = self.open.last_mut() {
            let Some((name, number)) = names.pop() else {
                self.open.pop();
                continue;
            };
            let path = if dir == b"." { name } else { [&dir[..], b"/", &name].concat() };
            if path.len() > MAX_PATH {
                return Err(damaged("directories are nested too deep", number));
            }
            if let Some(member) = self.member(path, number)? {
                return Ok(Some(member));
            }
        }
        Ok(None)
    }

    fn member(&mut self, path: Vec<u8>, number: u32) -> Result<Option<(Entry, Content)>, Ext4Error> {
        self.ext4.spend(path.len() as u64 + COST, number)?;
        let link = |path, to: &Vec<u8>| Entry {
            path,
            kind: EntryKind::HardLink(to.clone()),
            meta: Default::default(),
            size: 0,
        };
        if let Some(first) = self.links.get(&number) {
            return Ok(Some((link(path, first), Content::empty())));
        }
        let inode = self.ext4.inode(number)?;
        let Some((kind, content)) = self.ext4.kind(&inode)? else { return Ok(None) };
        if inode.kind == Type::Dir {
            if !self.dirs.insert(number) {
                return Err(damaged("a directory is its own descendant or has two names", number));
            }
            let mut names = self.ext4.names(&inode)?;
            names.sort_unstable_by(|a, b| b.cmp(a));
            self.open.push((path.clone(), names));
        } else if inode.links > 1 && inode.kind != Type::Char {
            // (The kernel makes all whiteouts one file; each is given in full.)
            self.links.insert(number, path.clone());
        }
        Ok(Some((Entry { path, kind, meta: inode.meta, size: content.len() }, content)))
    }
}

impl Iterator for Ext4Walk {
    type Item = Result<(Entry, Content), Ext4Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(top) = self.top.take() {
            return Some(Ok(top));
        }
        let step = self.step();
        if step.is_err() {
            self.open.clear();
        }
        step.transpose()
    }
}

impl Ext4 {
    /// The names in a directory, without `.` and `..`. An index over them looks like entries that are free.
    fn names(&mut self, dir: &Inode) -> Result<Names, Ext4Error> {
        let wrong = || damaged("a directory does not hold together", dir.number);
        if dir.kind != Type::Dir || !dir.size.is_multiple_of(BLOCK) {
            return Err(wrong());
        }
        let data = self.data(dir)?;
        let mut names = Vec::new();
        let mut block = vec![0; BLOCK as usize];
        for at in (0..dir.size).step_by(BLOCK as usize) {
            self.spend(BLOCK, dir.number)?;
            let len = block.len();
            data.read_exact_at(&mut block, at).map_err(|source| Ext4Error::Io { at, len, source })?;
            let before = names.len();
            entries(&block, &mut names).ok_or_else(wrong)?;
            self.spend((names.len() - before) as u64 * COST, dir.number)?;
        }
        Ok(names)
    }
}

/// The entries of one block.
fn entries(mut block: &[u8], names: &mut Names) -> Option<()> {
    while !block.is_empty() {
        let inode = get_u32(block, 0)?;
        let len = usize::from(get_u16(block, 4)?);
        let entry = block.get(..len).filter(|entry| entry.len() >= ENTRY && len.is_multiple_of(4))?;
        if inode != 0 {
            let name = entry.get(ENTRY..ENTRY + usize::from(entry[6]))?;
            if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                return None;
            }
            if !matches!(name, b"." | b"..") {
                names.push((name.to_vec(), inode));
            }
        }
        block = &block[len..];
    }
    Some(())
}
