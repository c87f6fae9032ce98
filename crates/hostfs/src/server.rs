//! [`Server`]: which request is whose.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::folder::{Folder, MAX_FOLDERS, Placed, reopen};
use crate::handles::{Handle, Handles, Was};
use crate::ids::Ids;
use crate::nodes::{Node, Nodes, ROOT, folder_node, kind};
use crate::wire::{Args, Header, Reply, op};

/// A folder's place in what is served; it stays when the folder itself is not there after a restore.
pub(crate) struct Slot {
    pub guest: String,
    pub file: bool,
    pub folder: Option<Folder>,
}

/// Serves folders to one guest. Requests are answered one at a time, at once.
pub struct Server {
    pub(crate) ids: Ids,
    pub(crate) slots: BTreeMap<u32, Slot>,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    /// Devices of the host that files are on, in the order in which they were met.
    pub(crate) devices: Vec<u64>,
    /// Between INIT and DESTROY.
    pub(crate) live: bool,
    /// For directory entries.
    pub(crate) scratch: Vec<u8>,
}

impl Server {
    /// Serves `folders`, on each request with the rights of `ids`; more than [`MAX_FOLDERS`] are left out.
    pub fn new(folders: Vec<Folder>, ids: Ids) -> Self {
        let mut server = Self {
            ids,
            slots: BTreeMap::new(),
            nodes: Nodes::default(),
            handles: Handles::default(),
            devices: Vec::new(),
            live: false,
            scratch: Vec::new(),
        };
        for (id, folder) in (0..MAX_FOLDERS as u32).zip(folders) {
            server.slots.insert(id, Slot::of(folder));
        }
        server
    }

    /// The folders that are there.
    pub fn placed(&self) -> Vec<Placed> {
        let there = self.slots.iter().filter_map(|(id, slot)| Some((*id, slot, slot.folder.as_ref()?)));
        there
            .map(|(id, slot, folder)| Placed {
                id,
                guest: slot.guest.clone(),
                read_only: folder.read_only(),
                file: slot.file,
            })
            .collect()
    }

    /// Where the guest had folders before it was frozen that are not there now: what is below answers ESTALE.
    pub fn missing(&self) -> Vec<&str> {
        self.slots.values().filter(|slot| slot.folder.is_none()).map(|slot| slot.guest.as_str()).collect()
    }

    /// Forgets the guest's session: the driver was reset. Slots without a folder go with it.
    pub fn reset(&mut self) {
        self.slots.retain(|_, slot| slot.folder.is_some());
        self.end_session();
        self.scratch = Vec::new();
    }

    /// Answers one request; `room`: bytes that the guest has for the reply. An empty reply means that there is none
    /// to give.
    pub fn answer(&mut self, request: &[u8], room: usize, reply: &mut Reply) {
        reply.begin(room);
        let Some((head, args)) = Header::parse(request) else { return reply.none() };
        let result = args.and_then(|args| self.serve(&head, args, reply));
        match head.opcode {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => reply.none(),
            _ => reply.end(head.unique, result),
        }
    }

    fn serve(&mut self, head: &Header, args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        if !self.live && head.opcode != op::INIT {
            return Err(Errno::NOTCONN);
        }
        match head.opcode {
            op::INIT => self.init(args, reply),
            op::DESTROY => {
                self.end_session();
                Ok(())
            }
            op::FORGET => self.forget(head, args),
            op::BATCH_FORGET => self.batch_forget(args),
            op::INTERRUPT => Ok(()),
            op::LOOKUP => self.lookup(head, args, reply),
            op::GETATTR => self.get_attributes(head, args, reply),
            op::SETATTR => self.set_attributes(head, args, reply),
            op::READLINK => self.read_link(head, reply),
            op::STATFS => self.statfs(head, reply),
            op::OPEN => self.open(head, args, reply),
            op::CREATE => self.create(head, args, reply),
            op::READ => self.read(args, reply),
            op::WRITE => self.write(args, reply),
            op::FSYNC => self.sync(args),
            op::LSEEK => self.seek(args, reply),
            op::FALLOCATE => self.allocate(args),
            op::COPY_FILE_RANGE => self.copy_range(args, reply),
            op::RELEASE | op::RELEASEDIR => self.release(args),
            op::OPENDIR => self.open_directory(head, reply),
            op::READDIR => self.read_directory(args, reply, false),
            op::READDIRPLUS => self.read_directory(args, reply, true),
            op::FSYNCDIR => self.sync(args),
            op::MKDIR => self.make_directory(head, args, reply),
            op::MKNOD => self.make_node(head, args, reply),
            op::SYMLINK => self.make_link(head, args, reply),
            op::LINK => self.link(head, args, reply),
            op::UNLINK => self.remove(head, args, false),
            op::RMDIR => self.remove(head, args, true),
            op::RENAME => self.rename(head, args, false),
            op::RENAME2 => self.rename(head, args, true),
            _ => Err(Errno::NOSYS),
        }
    }

    /// A session's end, and the beginning of the next.
    pub(crate) fn end_session(&mut self) {
        (self.nodes, self.handles) = (Nodes::default(), Handles::default());
        self.live = false;
    }

    /// The nodes that every session has.
    pub(crate) fn begin_session(&mut self) -> Result<(), Errno> {
        self.end_session();
        let ids: Vec<u32> = self.slots.keys().copied().collect();
        for id in ids {
            self.add_folder_node(id)?;
        }
        self.live = true;
        Ok(())
    }

    pub(crate) fn add_folder_node(&mut self, id: u32) -> Result<(), Errno> {
        let Some(slot) = self.slots.get(&id) else { return Ok(()) };
        let kind = if slot.file { FileType::RegularFile } else { FileType::Directory };
        let node = Node {
            folder: id,
            parent: ROOT,
            name: id.to_string().into_bytes().into(),
            dev: 0,
            ino: 0,
            kind: kind.as_raw_mode(),
            lookups: 1,
            version: None,
            unsure: false,
        };
        self.nodes.insert(folder_node(id), node)
    }

    /// The folder that a node is in.
    ///
    /// # Errors
    /// ESTALE: it is not there since a restore. EPERM: the directory of folders is nobody's to change.
    pub(crate) fn folder_of(&self, id: u64) -> Result<&Folder, Errno> {
        if id == ROOT {
            return Err(Errno::PERM);
        }
        let slot = self.slots.get(&self.nodes.get(id)?.folder);
        slot.and_then(|slot| slot.folder.as_ref()).ok_or(Errno::STALE)
    }

    /// The same, to write in it.
    ///
    /// # Errors
    /// And EROFS.
    pub(crate) fn writable(&self, id: u64) -> Result<&Folder, Errno> {
        match self.folder_of(id)? {
            folder if folder.read_only() => Err(Errno::ROFS),
            folder => Ok(folder),
        }
    }

    /// Finds a node by its path, unopened.
    ///
    /// # Errors
    /// ESTALE: something else is there now, or nothing. Upon it Linux looks the name up again.
    pub(crate) fn reach(&mut self, id: u64) -> Result<(OwnedFd, Stat), Errno> {
        let folder = self.folder_of(id)?;
        let fd = folder.walk(&self.nodes.path(id)?).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
            e => e,
        })?;
        let stat = rustix::fs::fstat(&fd)?;
        self.nodes.confirm(id, &stat)?;
        Ok((fd, stat))
    }

    /// The same for a file that may have lost its path and is open still.
    pub(crate) fn reach_any(&mut self, id: u64) -> Result<(Arc<OwnedFd>, Stat), Errno> {
        match self.reach(id) {
            Err(Errno::STALE) => {
                let fd = self.handles.of(id).ok_or(Errno::STALE)?;
                let stat = rustix::fs::fstat(&*fd)?;
                Ok((fd, stat))
            }
            other => other.map(|(fd, stat)| (Arc::new(fd), stat)),
        }
    }

    /// The descriptor of an open file; after a restore, opened again.
    ///
    /// # Errors
    /// EBADF: no such handle. ESTALE: what was open is gone, or something else is in its place.
    pub(crate) fn descriptor(&mut self, fh: u64) -> Result<Arc<OwnedFd>, Errno> {
        let handle = self.handles.get(fh)?;
        if let Some(fd) = &handle.fd {
            return Ok(fd.clone());
        }
        let Handle { node, flags, was, .. } = handle.clone();
        let fd = self.open_again(node, flags, was).map_err(|_| Errno::STALE)?;
        let fd = Arc::new(fd);
        self.handles.get_mut(fh)?.fd = Some(fd.clone());
        Ok(fd)
    }

    fn open_again(&mut self, node: u64, flags: u32, was: Option<Was>) -> Result<OwnedFd, Errno> {
        let flags = OFlags::from_bits_retain(flags);
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            self.writable(node)?;
        }
        let (fd, stat) = self.reach(node)?;
        let is_directory = kind(&stat) == FileType::Directory.as_raw_mode();
        if !is_directory && !was.is_none_or(|was| was.is(&fd, &stat)) {
            return Err(Errno::STALE);
        }
        reopen(&fd, &stat, flags)
    }

    /// An inode number for the guest, whose folders are all one file system: those of further devices are told apart
    /// by their upper bits.
    pub(crate) fn inode(&mut self, stat: &Stat) -> u64 {
        /// Devices that are told apart.
        const DEVICES: usize = 1 << 12;
        let known = self.devices.iter().position(|dev| *dev == stat.st_dev);
        let index = known.unwrap_or_else(|| {
            if self.devices.len() < DEVICES {
                self.devices.push(stat.st_dev);
            }
            self.devices.len() - 1
        });
        stat.st_ino ^ (index as u64) << 50
    }
}

impl Slot {
    pub(crate) fn of(folder: Folder) -> Self {
        Self { guest: folder.guest().to_owned(), file: folder.is_file(), folder: Some(folder) }
    }
}
