//! Open files.

use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::folder::reopen;
use crate::handles::Handle;
use crate::nodes::Version;
use crate::server::Server;
use crate::wire::{Args, Header, MAX_DATA, Reply};

/// Flags of an open file that are true as long as it is open. (They have the same numbers on every Linux that runs
/// this.)
pub(crate) const LASTING: u32 =
    OFlags::ACCMODE.bits() | OFlags::APPEND.bits() | OFlags::SYNC.bits() | OFlags::DSYNC.bits();
/// FOPEN_KEEP_CACHE: the pages that the guest has of the file are right.
const KEEP_CACHE: u32 = 1 << 1;
/// How old a change must be to be told from one that follows: file systems stamp by the tick.
const SETTLED_SECONDS: i64 = 2;
/// Most bytes that one COPY_FILE_RANGE moves.
const MAX_COPY: u64 = 16 << 20;

/// Whether a change from now on can be told by its time; a directory's is no matter.
pub(super) fn is_settled(stat: &Stat) -> bool {
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        || now - SETTLED_SECONDS > stat.st_ctime.max(stat.st_mtime)
}

impl Server {
    pub(crate) fn open(&mut self, head: &Header, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let flags = args.u32()?;
        self.handles.room()?;
        let (fd, stat) = self.open_node(head.node, flags)?;
        self.put_open(reply, head.node, flags, fd, &stat)
    }

    /// Opens a file that exists; with it, its attributes as they are since.
    fn open_node(&mut self, node: u64, flags: u32) -> Result<(OwnedFd, Stat), Errno> {
        let wanted = OFlags::from_bits_retain(flags & (LASTING | OFlags::TRUNC.bits()));
        match wanted.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            true => self.writable(node)?,
            false => self.folder_of(node)?,
        };
        let (fd, stat) = self.reach(node)?;
        let fd = reopen(&fd, &stat, wanted)?;
        // Nothing but a truncation by this opening changes them.
        let stat = if wanted.contains(OFlags::TRUNC) { rustix::fs::fstat(&fd)? } else { stat };
        Ok((fd, stat))
    }

    /// `struct fuse_open_out`, with a new handle.
    fn put_open(
        &mut self,
        reply: &mut Reply,
        node: u64,
        flags: u32,
        fd: OwnedFd,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let keep = self.note_version(node, stat, flags & OFlags::TRUNC.bits() != 0);
        let (flags, fd, size) = (flags & LASTING, Some(Arc::new(fd)), stat.st_size as u64);
        let fh = self.handles.add(Handle { node, flags, dir: false, fd, at: 0, size, was: None });
        reply.u64(fh);
        reply.u32(if keep { KEEP_CACHE } else { 0 });
        reply.u32(0);
        Ok(())
    }

    /// Whether the guest's pages are those of this content; from now on they will be.
    fn note_version(&mut self, node: u64, stat: &Stat, truncated: bool) -> bool {
        let Some(node) = self.nodes.get_mut(node) else { return false };
        let now = Version::of(stat);
        let keep = !truncated && node.version == Some(now);
        node.version = is_settled(stat).then_some(now);
        keep
    }

    /// The guest wrote: which of its pages are right only the next open can tell.
    fn wrote(&mut self, fh: u64) {
        if let Ok(handle) = self.handles.get(fh)
            && let Some(node) = self.nodes.get_mut(handle.node)
        {
            node.version = None;
        }
    }

    /// A descriptor to write by. Its folder may be read-only since a restore.
    fn for_writing(&mut self, fh: u64) -> Result<Arc<OwnedFd>, Errno> {
        let node = self.handles.get(fh)?.node;
        self.writable(node)?;
        self.wrote(fh);
        self.descriptor(fh)
    }

    pub(crate) fn create(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (flags, mode) = (args.u32()?, args.u32()?);
        args.skip(8)?;
        let name = args.name()?;
        self.handles.room()?;
        let (parent, at) = self.directory(head.node)?;
        let how =
            OFlags::from_bits_retain(flags & LASTING) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let made = rustix::fs::openat(
            &parent,
            name,
            how | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK,
            Mode::from_raw_mode(mode & 0o777),
        );
        match made {
            Ok(fd) => {
                let stat = self.born(&fd, head, Some(mode), &at)?;
                let node = self.tell(reply, head.node, name, &stat)?;
                self.put_open(reply, node, flags, fd, &stat)
            }
            // The host made one meanwhile: it is opened as if it had been there.
            Err(Errno::EXIST) if flags & OFlags::EXCL.bits() == 0 => {
                let stat = rustix::fs::statat(&parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                let node = self.tell(reply, head.node, name, &stat)?;
                let opened = self
                    .open_node(node, flags)
                    .and_then(|(fd, stat)| self.put_open(reply, node, flags, fd, &stat));
                if opened.is_err() {
                    self.nodes.forget(node, 1);
                }
                opened
            }
            Err(e) => Err(e),
        }
    }

    pub(crate) fn read(&mut self, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (fh, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let fd = self.descriptor(fh)?;
        let end = self.handles.get(fh)?.size;
        let size = (size as usize).min(MAX_DATA).min(reply.left());
        let mut done = 0;
        let space = reply.spare(size);
        while done < size {
            let at = offset.saturating_add(done as u64);
            match rustix::io::pread(&*fd, &mut space[done..], at) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    // Less than was asked for, up to where the file ended: it still does, and need not be asked again.
                    if done < size && at.saturating_add(n as u64) == end {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        reply.filled(done);
        Ok(())
    }

    pub(crate) fn write(&mut self, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (fh, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        args.skip(20)?;
        let data = args.rest();
        if data.len() != size as usize {
            return Err(Errno::INVAL);
        }
        let fd = self.for_writing(fh)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&*fd, &data[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        reply.u32(done as u32);
        reply.u32(0);
        Ok(())
    }

    /// FSYNC and FSYNCDIR.
    pub(crate) fn sync(&mut self, mut args: Args<'_>) -> Result<(), Errno> {
        /// FUSE_FSYNC_FDATASYNC.
        const DATA_ONLY: u32 = 1;
        let (fh, flags) = (args.u64()?, args.u32()?);
        if self.handles.get(fh)?.node == crate::nodes::ROOT {
            return Ok(());
        }
        let fd = self.descriptor(fh)?;
        if flags & DATA_ONLY != 0 { rustix::fs::fdatasync(&*fd) } else { rustix::fs::fsync(&*fd) }
    }

    /// The next data or hole; other ways to seek are the guest kernel's own.
    pub(crate) fn seek(&mut self, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (fh, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        if self.handles.get(fh)?.dir {
            return Err(Errno::INVAL);
        }
        reply.u64(rustix::fs::seek(&*self.descriptor(fh)?, to)?);
        Ok(())
    }

    pub(crate) fn allocate(&mut self, mut args: Args<'_>) -> Result<(), Errno> {
        let (fh, offset, len, mode) = (args.u64()?, args.u64()?, args.u64()?, args.u32()?);
        let allowed = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(mode);
        if !allowed.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(&*self.for_writing(fh)?, mode, offset, len)
    }

    pub(crate) fn copy_range(&mut self, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (from, mut at_from) = (args.u64()?, args.u64()?);
        args.skip(8)?;
        let (to, mut at_to, len) = (args.u64()?, args.u64()?, args.u64()?);
        let (from, to) = (self.descriptor(from)?, self.for_writing(to)?);
        let len = len.min(MAX_COPY) as usize;
        let done = rustix::fs::copy_file_range(&*from, Some(&mut at_from), &*to, Some(&mut at_to), len)?;
        reply.u32(done as u32);
        reply.u32(0);
        Ok(())
    }

    /// RELEASE and RELEASEDIR.
    pub(crate) fn release(&mut self, mut args: Args<'_>) -> Result<(), Errno> {
        self.handles.remove(args.u64()?);
        Ok(())
    }
}
