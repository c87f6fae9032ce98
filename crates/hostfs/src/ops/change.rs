//! Making, moving and removing.

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::nodes::kind;
use crate::server::Server;
use crate::wire::{Args, Header, Reply};

impl Server {
    /// A directory to change something in.
    pub(crate) fn directory(&mut self, node: u64) -> Result<(OwnedFd, Stat), Errno> {
        self.writable(node)?;
        let (fd, stat) = self.reach(node)?;
        if kind(&stat) != FileType::Directory.as_raw_mode() {
            return Err(Errno::NOTDIR);
        }
        Ok((fd, stat))
    }

    /// Tells the guest of what it just made.
    fn made(
        &mut self,
        head: &Header,
        (parent, at): &(OwnedFd, Stat),
        name: &[u8],
        mode: Option<u32>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = self.born(&fd, head, mode, at)?;
        self.tell(reply, head.node, name, &stat).map(drop)
    }

    pub(crate) fn make_directory(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let mode = args.u32()?;
        args.skip(4)?;
        let name = args.name()?;
        let parent = self.directory(head.node)?;
        rustix::fs::mkdirat(&parent.0, name, Mode::from_raw_mode(mode & 0o777))?;
        self.made(head, &parent, name, Some(mode), reply)
    }

    /// Files, sockets and pipes; never a device.
    pub(crate) fn make_node(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let mode = args.u32()?;
        args.skip(12)?;
        let name = args.name()?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown if mode & 0o170_000 == 0 => FileType::RegularFile,
            kind @ (FileType::RegularFile | FileType::Socket | FileType::Fifo) => kind,
            _ => return Err(Errno::PERM),
        };
        let parent = self.directory(head.node)?;
        rustix::fs::mknodat(&parent.0, name, kind, Mode::from_raw_mode(mode & 0o777), 0)?;
        self.made(head, &parent, name, Some(mode), reply)
    }

    /// A symbolic link. What it says is the guest's: nothing here follows it.
    pub(crate) fn make_link(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (name, target) = (args.name()?, args.text()?);
        let parent = self.directory(head.node)?;
        rustix::fs::symlinkat(target, &parent.0, name)?;
        self.made(head, &parent, name, None, reply)
    }

    /// One more name for a file.
    pub(crate) fn link(&mut self, head: &Header, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (node, name) = (args.u64()?, args.name()?);
        let parent = self.directory(head.node)?;
        self.writable(node)?;
        if self.nodes.get(node)?.folder != self.nodes.get(head.node)?.folder {
            return Err(Errno::XDEV);
        }
        let (file, stat) = self.reach(node)?;
        // By its path in its own directory: linking a descriptor is root's alone.
        let path = self.nodes.path(node)?;
        drop(file);
        let (from, old) = self.parent_of(node, &path)?;
        rustix::fs::linkat(&from, old.as_slice(), &parent.0, name, AtFlags::empty())?;
        let fd = rustix::fs::openat(
            &parent.0,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let now = rustix::fs::fstat(&fd)?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
            // Something else took the name between look and link.
            rustix::fs::unlinkat(&parent.0, name, AtFlags::empty())?;
            return Err(Errno::STALE);
        }
        self.tell(reply, head.node, name, &now).map(drop)
    }

    /// The directory that a node is in, and its name there.
    fn parent_of(&mut self, node: u64, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
        let (front, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        if name.is_empty() {
            return Err(Errno::PERM);
        }
        Ok((self.folder_of(node)?.walk(front)?, name.to_vec()))
    }

    /// UNLINK and RMDIR.
    pub(crate) fn remove(&mut self, head: &Header, mut args: Args<'_>, directory: bool) -> Result<(), Errno> {
        let name = args.name()?;
        let (parent, _) = self.directory(head.node)?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&parent, name, flags)?;
        self.nodes.removed(&stat, head.node, name);
        Ok(())
    }

    /// RENAME and RENAME2.
    pub(crate) fn rename(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        with_flags: bool,
    ) -> Result<(), Errno> {
        let to_node = args.u64()?;
        let mut flags = RenameFlags::empty();
        if with_flags {
            flags = RenameFlags::from_bits_retain(args.u32()?);
            args.skip(4)?;
        }
        // A whiteout would be a device.
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old, new) = (args.name()?, args.name()?);
        let (from, _) = self.directory(head.node)?;
        let (to, _) = self.directory(to_node)?;
        if self.nodes.get(head.node)?.folder != self.nodes.get(to_node)?.folder {
            return Err(Errno::XDEV);
        }
        let moved = rustix::fs::statat(&from, old, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = rustix::fs::statat(&to, new, AtFlags::SYMLINK_NOFOLLOW).ok();
        rustix::fs::renameat_with(&from, old, &to, new, flags)?;
        let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        match target {
            // Two names of one file: the kernel does nothing.
            Some(target) if same(&target, &moved) => return Ok(()),
            Some(target) if flags.contains(RenameFlags::EXCHANGE) => {
                self.nodes.moved(&target, head.node, old);
            }
            Some(target) => self.nodes.removed(&target, to_node, new),
            None => {}
        }
        self.nodes.moved(&moved, to_node, new);
        Ok(())
    }
}
