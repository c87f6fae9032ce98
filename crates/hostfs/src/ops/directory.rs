//! Reading directories.

use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::{ENTRY, LISTED_NANOSECONDS};
use crate::folder::reopen;
use crate::handles::{ELSEWHERE, Handle};
use crate::nodes::ROOT;
use crate::server::Server;
use crate::wire::{Args, Header, Reply};

/// Bytes of `struct fuse_dirent` before the name.
const DIRENT: usize = 24;
/// Bytes of entries that are asked of the kernel at a time.
const SCRATCH: usize = 32 << 10;

/// An entry of a directory.
struct Entry<'a> {
    inode: u64,
    /// Where the next one is.
    next: u64,
    /// DT_*.
    kind: u32,
    name: &'a [u8],
}

impl Entry<'_> {
    fn len(&self, plus: bool) -> usize {
        (if plus { ENTRY } else { 0 }) + (DIRENT + self.name.len()).next_multiple_of(8)
    }

    fn put(&self, reply: &mut Reply) {
        reply.u64(self.inode);
        reply.u64(self.next);
        reply.u32(self.name.len() as u32);
        reply.u32(self.kind);
        reply.push(self.name);
        let padding = (DIRENT + self.name.len()).next_multiple_of(8) - DIRENT - self.name.len();
        reply.push(&[0; 8][..padding]);
    }
}

/// DT_DIR, DT_REG.
const DIRECTORY: u32 = 4;
const REGULAR: u32 = 8;

impl Server {
    pub(crate) fn open_directory(&mut self, head: &Header, reply: &mut Reply) -> Result<(), Errno> {
        self.handles.room()?;
        let fd = match head.node {
            ROOT => None,
            node => {
                let (fd, stat) = self.reach(node)?;
                Some(Arc::new(reopen(&fd, &stat, OFlags::RDONLY | OFlags::DIRECTORY)?))
            }
        };
        let flags = OFlags::DIRECTORY.bits();
        let fh =
            self.handles.add(Handle { node: head.node, flags, dir: true, fd, at: 0, size: 0, was: None });
        reply.u64(fh);
        reply.u64(0);
        Ok(())
    }

    /// READDIR, and READDIRPLUS, which looks each entry up as well.
    pub(crate) fn read_directory(
        &mut self,
        mut args: Args<'_>,
        reply: &mut Reply,
        plus: bool,
    ) -> Result<(), Errno> {
        let (fh, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let handle = self.handles.get(fh)?;
        if !handle.dir {
            return Err(Errno::NOTDIR);
        }
        let (node, at) = (handle.node, handle.at);
        let room = (size as usize).min(reply.left());
        if node == ROOT {
            self.list_folders(reply, offset, room, plus);
            return Ok(());
        }
        let fd = self.descriptor(fh)?;
        if at != offset {
            rustix::fs::seek(&*fd, SeekFrom::Start(offset))?;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.reserve(SCRATCH);
        let at = self.list(&fd, node, reply, room, plus, &mut scratch);
        self.scratch = scratch;
        let (at, result) = match at {
            Ok(at) => (at, Ok(())),
            Err(e) => (ELSEWHERE, Err(e)),
        };
        self.handles.get_mut(fh)?.at = at;
        result
    }

    /// Puts entries as far as they fit; where the stream stands then.
    fn list(
        &mut self,
        fd: &OwnedFd,
        node: u64,
        reply: &mut Reply,
        mut room: usize,
        plus: bool,
        scratch: &mut Vec<u8>,
    ) -> Result<u64, Errno> {
        let mut entries = RawDir::new(fd, scratch.spare_capacity_mut());
        let (mut at, mut any) = (ELSEWHERE, false);
        loop {
            let entry = match entries.next() {
                None => return Ok(at),
                Some(Err(Errno::INTR)) => continue,
                Some(Err(_)) if any => return Ok(ELSEWHERE),
                Some(Err(e)) => return Err(e),
                Some(Ok(entry)) => entry,
            };
            let found = Entry {
                inode: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: entry.file_type().as_raw_mode() >> 12,
                name: entry.file_name().to_bytes(),
            };
            if found.len(plus) > room {
                return Ok(ELSEWHERE);
            }
            room -= found.len(plus);
            (at, any) = (found.next, true);
            if plus {
                self.put_listed(fd, node, found.name, reply);
            }
            found.put(reply);
        }
    }

    /// The looked-up part of an entry; empty for what is not to be looked up, or gone since.
    fn put_listed(&mut self, fd: &OwnedFd, parent: u64, name: &[u8], reply: &mut Reply) {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let known = match name {
            b"." | b".." => None,
            _ => rustix::fs::statat(fd, name, flags).ok(),
        };
        let known = known.and_then(|stat| Some((self.nodes.enter(parent, name, &stat).ok()?, stat)));
        match known {
            Some((node, stat)) => self.put_entry(reply, node, &stat, LISTED_NANOSECONDS),
            None => reply.push(&[0; ENTRY]),
        }
    }

    fn list_folders(&self, reply: &mut Reply, offset: u64, mut room: usize, plus: bool) {
        let dots = [(ROOT, DIRECTORY, ".".to_owned()), (ROOT, DIRECTORY, "..".to_owned())];
        let folders = self.slots.iter().map(|(id, slot)| {
            let kind = if slot.file { REGULAR } else { DIRECTORY };
            (crate::nodes::folder_node(*id), kind, id.to_string())
        });
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (inode, kind, name)) in dots.into_iter().chain(folders).enumerate().skip(from) {
            let entry = Entry { inode, next: at as u64 + 1, kind, name: name.as_bytes() };
            if entry.len(plus) > room {
                return;
            }
            room -= entry.len(plus);
            if plus {
                reply.push(&[0; ENTRY]);
            }
            entry.put(reply);
        }
    }
}
