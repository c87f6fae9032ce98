//! INIT, FORGET, LOOKUP: what the guest knows at all.

use rustix::io::Errno;

use crate::nodes::{ROOT, folder_node};
use crate::server::Server;
use crate::wire::{Args, Header, MAX_DATA, Reply, init};

/// The protocol that is spoken: up to 7.38, from 7.31 (Linux 5.4) on.
const MAJOR: u32 = 7;
const MINOR: u32 = 38;
const OLDEST: u32 = 31;
/// What is made use of where the guest offers it. No locks: they are the guest's own. No cached writes: a write is in
/// the host's file when it returns.
const WANTED: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES;

impl Server {
    pub(crate) fn init(&mut self, mut args: Args<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (major, minor) = (args.u32()?, args.u32()?);
        let (readahead, flags) = (args.u32()?, args.u32()?);
        if major < MAJOR || (major == MAJOR && minor < OLDEST) {
            return Err(Errno::PROTO);
        }
        reply.u32(MAJOR);
        reply.u32(MINOR.min(if major > MAJOR { MINOR } else { minor }));
        reply.u32(readahead);
        if major > MAJOR {
            // It tries again with ours.
            (0..13).for_each(|_| reply.u32(0));
            return Ok(());
        }
        self.begin_session()?;
        reply.u32(flags & WANTED);
        reply.u32(0);
        reply.u32(MAX_DATA as u32);
        // Times are exact to the nanosecond; then max_pages, and no map alignment.
        reply.u32(1);
        reply.u32((MAX_DATA / 4096) as u32);
        (0..8).for_each(|_| reply.u32(0));
        Ok(())
    }

    pub(crate) fn forget(&mut self, head: &Header, mut args: Args<'_>) -> Result<(), Errno> {
        self.nodes.forget(head.node, args.u64()?);
        Ok(())
    }

    pub(crate) fn batch_forget(&mut self, mut args: Args<'_>) -> Result<(), Errno> {
        let count = args.u32()?;
        args.skip(4)?;
        for _ in 0..count {
            let (node, times) = (args.u64()?, args.u64()?);
            self.nodes.forget(node, times);
        }
        Ok(())
    }

    pub(crate) fn lookup(
        &mut self,
        head: &Header,
        mut args: Args<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let name = args.name()?;
        if head.node == ROOT {
            return self.lookup_folder(name, reply);
        }
        let folder = self.folder_of(head.node)?;
        let mut path = self.nodes.path(head.node)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let fd = folder.walk(&path).map_err(|e| if e == Errno::LOOP { Errno::STALE } else { e })?;
        let stat = rustix::fs::fstat(&fd)?;
        self.tell(reply, head.node, name, &stat).map(drop)
    }

    fn lookup_folder(&mut self, name: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        let id = std::str::from_utf8(name).ok().and_then(|name| name.parse::<u32>().ok());
        let id = id.filter(|id| self.slots.contains_key(id)).ok_or(Errno::NOENT)?;
        let node = folder_node(id);
        let (_, stat) = self.reach(node)?;
        self.put_entry(reply, node, &stat, super::ATTRIBUTE_NANOSECONDS);
        Ok(())
    }
}
