//! A guest in miniature: speaks the protocol to a server, as Linux would.
#![allow(dead_code)]

use std::path::Path;

use hostfs::{Folder, Ids, Reply, Server, SessionState};

/// Node of the first folder.
pub const TOP: u64 = 2;

/// An error number, positive.
pub type Errno = i32;
pub const EPERM: Errno = 1;
pub const ENOENT: Errno = 2;
pub const ENXIO: Errno = 6;
pub const EBADF: Errno = 9;
pub const EXDEV: Errno = 18;
pub const ENOTDIR: Errno = 20;
pub const EINVAL: Errno = 22;
pub const ENFILE: Errno = 23;
pub const EROFS: Errno = 30;
pub const ENAMETOOLONG: Errno = 36;
pub const ENOSYS: Errno = 38;
pub const ESTALE: Errno = 116;

/// Flags of open(2).
pub const RDONLY: u32 = 0;
pub const WRONLY: u32 = 1;
pub const RDWR: u32 = 2;
pub const TRUNC: u32 = 0o1000;
pub const APPEND: u32 = 0o2000;

pub struct Guest {
    pub server: Server,
    pub reply: Reply,
    pub uid: u32,
    /// Room for replies.
    pub room: usize,
}

pub struct Entry {
    pub node: u64,
    pub mode: u32,
    pub size: u64,
    pub ino: u64,
    pub uid: u32,
}

pub fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn names(names: &[&str]) -> Vec<u8> {
    names.iter().flat_map(|n| n.bytes().chain([0])).collect()
}

pub fn at_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn at_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn attributes(bytes: &[u8]) -> (u64, u64, u32, u32) {
    (at_u64(bytes, 0), at_u64(bytes, 8), at_u32(bytes, 60), at_u32(bytes, 68))
}

fn entry(bytes: &[u8]) -> Entry {
    let (ino, size, mode, uid) = attributes(&bytes[40..]);
    Entry { node: at_u64(bytes, 0), mode, size, ino, uid }
}

impl Guest {
    /// Folders as (host, guest, read-only), with a session.
    pub fn new(folders: &[(&Path, &str, bool)]) -> Self {
        let mut guest = Self::raw(folders);
        guest.init();
        guest
    }

    pub fn raw(folders: &[(&Path, &str, bool)]) -> Self {
        let open =
            |(host, guest, ro): &(&Path, &str, bool)| Folder::open(host, guest, *ro).expect("a folder");
        let server = Server::new(folders.iter().map(open).collect(), Ids::own());
        Self { server, reply: Reply::default(), uid: 0, room: 2 << 20 }
    }

    /// One writable folder at /srv.
    pub fn on(dir: &Path) -> Self {
        Self::new(&[(dir, "/srv", false)])
    }

    /// The same guest after a freeze, on these folders.
    pub fn restored(state: &SessionState, folders: &[(&Path, &str, bool)]) -> Self {
        let mut guest = Self::raw(folders);
        guest.server.restore(state).expect("a state");
        guest
    }

    pub fn init(&mut self) -> Vec<u8> {
        let mut args = u32s(&[7, 41, 131_072, u32::MAX, 0]);
        args.resize(64, 0);
        self.ask(26, 0, &args).expect("INIT")
    }

    /// Sends a request; the reply's body, or its error.
    pub fn ask(&mut self, op: u32, node: u64, args: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut request = u32s(&[40 + args.len() as u32, op]);
        request.extend(u64s(&[77, node]));
        request.extend(u32s(&[self.uid, self.uid, 1, 0]));
        request.extend_from_slice(args);
        self.server.answer(&request, self.room, &mut self.reply);
        let bytes = self.reply.bytes();
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        assert_eq!((at_u32(bytes, 0) as usize, at_u64(bytes, 8)), (bytes.len(), 77));
        match at_u32(bytes, 4) as i32 {
            0 => Ok(bytes[16..].to_vec()),
            error => Err(-error),
        }
    }

    pub fn lookup(&mut self, node: u64, name: &str) -> Result<Entry, Errno> {
        self.ask(1, node, &names(&[name])).map(|b| entry(&b))
    }

    /// Looks every component up, from the first folder on.
    pub fn find(&mut self, path: &str) -> Result<Entry, Errno> {
        let mut found = self.lookup(1, "0")?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            found = self.lookup(found.node, name)?;
        }
        Ok(found)
    }

    /// Size, mode, owner.
    pub fn stat(&mut self, node: u64) -> Result<(u64, u32, u32), Errno> {
        let body = self.ask(3, node, &u64s(&[0, 0]))?;
        let (_, size, mode, uid) = attributes(&body[16..]);
        Ok((size, mode, uid))
    }

    /// `fuse_setattr_in` with these fields.
    pub fn set(&mut self, node: u64, valid: u32, size: u64, mode: u32, uid: u32) -> Result<(), Errno> {
        let mut args = u32s(&[valid, 0]);
        args.extend(u64s(&[0, size, 0, 5, 6, 0]));
        args.extend(u32s(&[7, 8, 0, mode, 0, uid, 0, 0]));
        self.ask(4, node, &args).map(drop)
    }

    /// Handle, and whether the page cache may be kept.
    pub fn open(&mut self, node: u64, flags: u32) -> Result<(u64, bool), Errno> {
        let body = self.ask(14, node, &u32s(&[flags, 0]))?;
        Ok((at_u64(&body, 0), at_u32(&body, 8) & 2 != 0))
    }

    pub fn create(&mut self, node: u64, name: &str, flags: u32, mode: u32) -> Result<(Entry, u64), Errno> {
        let mut args = u32s(&[flags | 0o100, mode, 0, 0]);
        args.extend(names(&[name]));
        let body = self.ask(35, node, &args)?;
        Ok((entry(&body), at_u64(&body, 128)))
    }

    pub fn read(&mut self, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let mut args = u64s(&[fh, offset]);
        args.extend(u32s(&[size, 0, 0, 0, 0, 0]));
        self.ask(15, TOP, &args)
    }

    pub fn write(&mut self, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let mut args = u64s(&[fh, offset]);
        args.extend(u32s(&[data.len() as u32, 0, 0, 0, 0, 0]));
        args.extend_from_slice(data);
        self.ask(16, TOP, &args).map(|b| at_u32(&b, 0))
    }

    pub fn release(&mut self, fh: u64) {
        let args = u64s(&[fh, 0, 0]);
        self.ask(18, TOP, &args).expect("RELEASE");
    }

    pub fn mkdir(&mut self, node: u64, name: &str, mode: u32) -> Result<Entry, Errno> {
        let mut args = u32s(&[mode, 0]);
        args.extend(names(&[name]));
        self.ask(9, node, &args).map(|b| entry(&b))
    }

    pub fn mknod(&mut self, node: u64, name: &str, mode: u32) -> Result<Entry, Errno> {
        let mut args = u32s(&[mode, 0x103, 0, 0]);
        args.extend(names(&[name]));
        self.ask(8, node, &args).map(|b| entry(&b))
    }

    pub fn symlink(&mut self, node: u64, name: &str, target: &str) -> Result<Entry, Errno> {
        self.ask(6, node, &names(&[name, target])).map(|b| entry(&b))
    }

    pub fn link(&mut self, old: u64, node: u64, name: &str) -> Result<Entry, Errno> {
        let mut args = u64s(&[old]);
        args.extend(names(&[name]));
        self.ask(13, node, &args).map(|b| entry(&b))
    }

    pub fn unlink(&mut self, node: u64, name: &str) -> Result<(), Errno> {
        self.ask(10, node, &names(&[name])).map(drop)
    }

    pub fn rename(&mut self, from: u64, old: &str, to: u64, new: &str, flags: u32) -> Result<(), Errno> {
        let mut args = u64s(&[to]);
        args.extend(u32s(&[flags, 0]));
        args.extend(names(&[old, new]));
        self.ask(45, from, &args).map(drop)
    }

    pub fn opendir(&mut self, node: u64) -> Result<u64, Errno> {
        self.ask(27, node, &u32s(&[0, 0])).map(|b| at_u64(&b, 0))
    }

    /// One READDIR or READDIRPLUS: names, nodes, and the offset to go on from.
    pub fn readdir(&mut self, fh: u64, offset: u64, size: u32, plus: bool) -> Result<Listed, Errno> {
        let mut args = u64s(&[fh, offset]);
        args.extend(u32s(&[size, 0, 0, 0, 0, 0]));
        let body = self.ask(if plus { 44 } else { 28 }, TOP, &args)?;
        assert!(body.len() <= size as usize);
        let (mut rest, mut listed) = (&body[..], Listed::default());
        while !rest.is_empty() {
            if plus {
                listed.nodes.push(at_u64(rest, 0));
                rest = &rest[128..];
            }
            listed.next = at_u64(rest, 8);
            let len = at_u32(rest, 16) as usize;
            listed.names.push(String::from_utf8_lossy(&rest[24..24 + len]).into_owned());
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
        Ok(listed)
    }

    /// All names of a directory, sorted, without the dots.
    pub fn list(&mut self, node: u64, size: u32, plus: bool) -> Vec<String> {
        let fh = self.opendir(node).expect("OPENDIR");
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let listed = self.readdir(fh, offset, size, plus).expect("READDIR");
            if listed.names.is_empty() {
                break;
            }
            offset = listed.next;
            all.extend(listed.names);
        }
        self.ask(29, node, &u64s(&[fh, 0, 0])).expect("RELEASEDIR");
        all.retain(|name| name != "." && name != "..");
        all.sort();
        all
    }
}

#[derive(Default)]
pub struct Listed {
    pub names: Vec<String>,
    pub nodes: Vec<u64>,
    pub next: u64,
}
