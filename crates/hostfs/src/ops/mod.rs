//! The requests, by what they work on.

mod attributes;
mod change;
mod directory;
mod file;
mod session;

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::nodes::ROOT;
use crate::server::Server;
use crate::wire::Reply;

use file::is_settled;

pub(crate) use file::LASTING;

/// How long Linux may use a name without asking, seconds. What is replaced meanwhile answers ESTALE, and Linux asks.
const NAME_SECONDS: u64 = 1;
/// How long it may use size and times: two ticks of its clock, so that looking up and then reading them is one request.
/// Not at all those of a file that just changed: somebody on the host is at work on it, and the next edit is to be seen
/// at once, too.
const ATTRIBUTE_NANOSECONDS: u32 = 20_000_000;
/// The same for what came with a directory: whoever lists it asks for each next.
const LISTED_NANOSECONDS: u32 = 100_000_000;
/// Bytes of `struct fuse_entry_out` before the attributes.
const ENTRY_HEAD: usize = 40;
/// Bytes of `struct fuse_attr`.
const ATTRIBUTES: usize = 88;
/// Bytes of `struct fuse_entry_out`.
const ENTRY: usize = ENTRY_HEAD + ATTRIBUTES;

impl Server {
    /// `struct fuse_entry_out`.
    fn put_entry(&mut self, reply: &mut Reply, node: u64, stat: &Stat, nanoseconds: u32) {
        reply.u64(node);
        reply.u64(0);
        reply.u64(NAME_SECONDS);
        reply.u64(0);
        reply.u32(0);
        reply.u32(if is_settled(stat) { nanoseconds } else { 0 });
        self.put_stat(reply, stat);
    }

    /// `struct fuse_attr`. A device's number means nothing in the guest.
    fn put_stat(&mut self, reply: &mut Reply, stat: &Stat) {
        let inode = self.inode(stat);
        for value in [
            inode,
            stat.st_size as u64,
            stat.st_blocks as u64,
            stat.st_atime as u64,
            stat.st_mtime as u64,
            stat.st_ctime as u64,
        ] {
            reply.u64(value);
        }
        let (uid, gid) = self.ids.to_guest((stat.st_uid, stat.st_gid));
        for value in [
            stat.st_atime_nsec as u32,
            stat.st_mtime_nsec as u32,
            stat.st_ctime_nsec as u32,
            stat.st_mode,
            stat.st_nlink as u32,
            uid,
            gid,
            0,
            stat.st_blksize as u32,
            0,
        ] {
            reply.u32(value);
        }
    }

    /// The attributes of the directory that holds the folders: root's, to be read.
    fn put_root(&self, reply: &mut Reply) {
        reply.u64(ROOT);
        (0..5).for_each(|_| reply.u64(0));
        for value in [0, 0, 0, 0o040_555, 2, 0, 0, 0, 4096, 0] {
            reply.u32(value);
        }
    }

    /// Tells the guest of what is now `name` in `parent`.
    fn tell(&mut self, reply: &mut Reply, parent: u64, name: &[u8], stat: &Stat) -> Result<u64, Errno> {
        let node = self.nodes.enter(parent, name, stat)?;
        self.put_entry(reply, node, stat, ATTRIBUTE_NANOSECONDS);
        Ok(node)
    }
}
