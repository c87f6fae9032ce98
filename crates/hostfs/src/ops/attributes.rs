//! GETATTR, SETATTR, READLINK, STATFS.

use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::{ATTRIBUTE_NANOSECONDS, is_settled};
use crate::folder::{proc_path, reopen};
use crate::nodes::ROOT;
use crate::server::Server;
use crate::wire::{Args, Header, Reply, set};

/// Permission bits that a guest may set. Set-user-id and set-group-id would be ours here.
const PERMISSIONS: u32 = 0o1777;

/// `struct fuse_setattr_in`.
struct Wish {
    valid: u32,
    fh: u64,
    size: u64,
    atime: (u64, u32),
    mtime: (u64, u32),
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Wish {
    fn parse(mut args: Args<'_>) -> Result<Self, Errno> {
        let valid = args.u32()?;
        args.skip(4)?;
        let (fh, size) = (args.u64()?, args.u64()?);
        args.skip(8)?;
        let (atime, mtime) = (args.u64()?, args.u64()?);
        args.skip(8)?;
        let (atime_ns, mtime_ns) = (args.u32()?, args.u32()?);
        args.skip(4)?;
        let mode = args.u32()?;
        args.skip(4)?;
        let (uid, gid) = (args.u32()?, args.u32()?);
        args.skip(4)?;
        let (atime, mtime) = ((atime, atime_ns), (mtime, mtime_ns));
        Ok(Self { valid, fh, size, atime, mtime, mode, uid, gid })
    }

    fn has(&self, bit: u32) -> bool {
        self.valid & bit != 0
    }

    fn times(&self) -> Option<Timestamps> {
        let one = |given, now, (seconds, nanoseconds): (u64, u32)| match (self.has(given), self.has(now)) {
            (false, false) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            (_, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            (true, false) => {
                Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.min(999_999_999).into() }
            }
        };
        self.has(set::ATIME | set::MTIME | set::ATIME_NOW | set::MTIME_NOW).then(|| Timestamps {
            last_access: one(set::ATIME, set::ATIME_NOW, self.atime),
            last_modification: one(set::MTIME, set::MTIME_NOW, self.mtime),
        })
    }
}

impl Server {
    pub(crate) fn get_attributes(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        /// FUSE_GETATTR_FH.
        const BY_HANDLE: u32 = 1;
        let flags = args.u32()?;
        args.skip(4)?;
        let fh = args.u64()?;
        if head.node == ROOT {
            put_validity(reply, true);
            self.put_root(reply);
            return Ok(());
        }
        let stat = match flags & BY_HANDLE != 0 {
            true => rustix::fs::fstat(&*self.descriptor(fh)?)?,
            false => self.reach_any(head.node)?.1,
        };
        put_validity(reply, is_settled(&stat));
        self.put_stat(reply, &stat);
        Ok(())
    }

    pub(crate) fn set_attributes(
        &mut self,
        head: &Header,
        args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let wish = Wish::parse(args)?;
        self.writable(head.node)?;
        let (fd, _) = self.reach_any(head.node)?;
        if wish.has(set::UID | set::GID) {
            let (uid, gid) = (wish.has(set::UID).then_some(wish.uid), wish.has(set::GID).then_some(wish.gid));
            let (uid, gid) = self.ids.to_host(uid, gid)?;
            give(&fd, uid, gid)?;
        }
        if wish.has(set::MODE) {
            change_mode(&fd, wish.mode)?;
        }
        if wish.has(set::SIZE) {
            self.resize(head.node, &fd, &wish)?;
        }
        if let Some(times) = wish.times() {
            rustix::fs::utimensat(&*fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        let stat = rustix::fs::fstat(&*fd)?;
        put_validity(reply, is_settled(&stat));
        self.put_stat(reply, &stat);
        Ok(())
    }

    fn resize(&mut self, node: u64, fd: &Arc<OwnedFd>, wish: &Wish) -> Result<(), Errno> {
        if let Some(node) = self.nodes.get_mut(node) {
            node.version = None;
        }
        if wish.has(set::FH) && self.handles.get(wish.fh)?.node == node {
            return rustix::fs::ftruncate(&*self.descriptor(wish.fh)?, wish.size);
        }
        rustix::fs::ftruncate(reopen(fd, &rustix::fs::fstat(fd)?, OFlags::WRONLY)?, wish.size)
    }

    pub(crate) fn read_link(&mut self, head: &Header, reply: &mut Reply) -> Result<(), Errno> {
        let (fd, _) = self.reach(head.node)?;
        reply.push(rustix::fs::readlinkat(&fd, "", Vec::new())?.as_bytes());
        Ok(())
    }

    pub(crate) fn statfs(&mut self, head: &Header, reply: &mut Reply) -> Result<(), Errno> {
        let known = match head.node {
            ROOT => None,
            node => Some(rustix::fs::fstatvfs(self.folder_of(node)?.dir())?),
        };
        let of = |field: fn(&rustix::fs::StatVfs) -> u64| known.as_ref().map_or(0, field);
        for value in
            [of(|s| s.f_blocks), of(|s| s.f_bfree), of(|s| s.f_bavail), of(|s| s.f_files), of(|s| s.f_ffree)]
        {
            reply.u64(value);
        }
        let block = known.as_ref().map_or(4096, |s| s.f_bsize as u32);
        for value in [block, 255, known.as_ref().map_or(4096, |s| s.f_frsize as u32)] {
            reply.u32(value);
        }
        (0..7).for_each(|_| reply.u32(0));
        Ok(())
    }

    /// Makes what a guest just made what it asked for: the permission bits, whatever this process's umask is, and the
    /// owner, where this user can give files away. `parent`: the directory, whose group may be inherited.
    pub(crate) fn born(
        &self,
        fd: &OwnedFd,
        head: &Header,
        mode: Option<u32>,
        parent: &Stat,
    ) -> Result<Stat, Errno> {
        const INHERITS_GROUP: u32 = 0o2000;
        let stat = rustix::fs::fstat(fd)?;
        if let Some((uid, gid)) = self.ids.maker(head.uid, head.gid) {
            let gid = (parent.st_mode & INHERITS_GROUP == 0).then_some(gid);
            give(fd, Some(uid), gid)?;
        }
        if let Some(mode) = mode
            && stat.st_mode & PERMISSIONS != mode & PERMISSIONS
        {
            change_mode(fd, mode)?;
        }
        rustix::fs::fstat(fd)
    }
}

/// `struct fuse_attr_out` before the attributes.
fn put_validity(reply: &mut Reply, settled: bool) {
    reply.u64(0);
    reply.u32(if settled { ATTRIBUTE_NANOSECONDS } else { 0 });
    reply.u32(0);
}

fn give(fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    // All bits set mean "as it is" to the kernel, and no guest may say that in an owner's place.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    rustix::fs::chownat(fd, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

/// A link has no permissions of its own; a directory keeps the bit that hands its group on.
fn change_mode(fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
    use rustix::fs::FileType;
    let now = rustix::fs::fstat(fd)?.st_mode;
    let kept = match FileType::from_raw_mode(now) {
        FileType::Symlink => return Err(Errno::OPNOTSUPP),
        FileType::Directory => now & 0o2000,
        _ => 0,
    };
    let mode = Mode::from_raw_mode(mode & PERMISSIONS | kept);
    rustix::fs::chmodat(CWD, proc_path(fd), mode, AtFlags::empty())
}
