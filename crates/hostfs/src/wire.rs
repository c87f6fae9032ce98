//! The protocol's bytes (linux/fuse.h): little endian, packed as the kernel's structures are.

use rustix::io::Errno;

/// Most bytes of file data in one request or reply: what `max_write` announces.
pub const MAX_DATA: usize = 1 << 20;
/// Most bytes of one request.
pub const MAX_REQUEST: usize = MAX_DATA + 4096;
/// Bytes of `struct fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Longest name of one directory entry (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// What a request asks for.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// Bits of INIT's `flags`.
pub mod init {
    pub const ASYNC_READ: u32 = 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
}

/// Bits of SETATTR's `valid`.
pub mod set {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// `struct fuse_in_header`.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Header {
    /// Takes a request apart; nothing when it has no whole header. The length that it names must be its own.
    pub fn parse(request: &[u8]) -> Option<(Self, Result<Args<'_>, Errno>)> {
        let mut args = Args(request);
        let len = args.u32().ok()?;
        let opcode = args.u32().ok()?;
        let (unique, node) = (args.u64().ok()?, args.u64().ok()?);
        let (uid, gid) = (args.u32().ok()?, args.u32().ok()?);
        args.skip(8).ok()?;
        let whole = len as usize == request.len() && request.len() <= MAX_REQUEST;
        Some((Self { opcode, unique, node, uid, gid }, if whole { Ok(args) } else { Err(Errno::INVAL) }))
    }
}

/// What follows a header, taken from its beginning.
#[derive(Clone, Copy)]
pub struct Args<'a>(&'a [u8]);

impl<'a> Args<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Errno> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(front)
    }

    pub fn skip(&mut self, n: usize) -> Result<(), Errno> {
        self.take(n).map(drop)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        let bytes = self.take(4)?.try_into().map_err(|_| Errno::INVAL)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        let bytes = self.take(8)?.try_into().map_err(|_| Errno::INVAL)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A string up to its NUL.
    pub fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Errno::INVAL)?;
        let text = self.take(end)?;
        self.skip(1)?;
        Ok(text)
    }

    /// The name of a directory entry.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.text()?;
        check_name(name).map(|()| name)
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// One component of a path, and none that leads anywhere else.
pub fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// A reply while it is put together: header first, in a buffer that is kept for the next one.
#[derive(Default)]
pub struct Reply {
    bytes: Vec<u8>,
    len: usize,
    room: usize,
}

impl Reply {
    /// A new one of at most `room` bytes, its header still to be written.
    pub(crate) fn begin(&mut self, room: usize) {
        self.room = room.min(MAX_REQUEST);
        self.len = 0;
        self.push(&[0; OUT_HEADER]);
    }

    /// Bytes that still fit.
    pub(crate) fn left(&self) -> usize {
        self.room.saturating_sub(self.len)
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.push(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.push(&value.to_le_bytes());
    }

    /// Room for `n` bytes to be filled from a file; [`Reply::filled`] says how many were.
    pub(crate) fn spare(&mut self, n: usize) -> &mut [u8] {
        let end = self.len + n;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.len..end]
    }

    pub(crate) fn filled(&mut self, n: usize) {
        self.len += n;
    }

    /// Writes the header: success with what was pushed, or an error alone.
    pub(crate) fn end(&mut self, unique: u64, result: Result<(), Errno>) {
        let fits = result.and(if self.len <= self.room { Ok(()) } else { Err(Errno::INVAL) });
        let error = fits.err().map_or(0, |e| -e.raw_os_error());
        if error != 0 {
            self.len = OUT_HEADER;
        }
        let len = (self.len as u32).to_le_bytes();
        for (at, field) in [(0, &len[..]), (4, &error.to_le_bytes()), (8, &unique.to_le_bytes())] {
            self.bytes[at..at + field.len()].copy_from_slice(field);
        }
    }

    /// Nothing is answered.
    pub(crate) fn none(&mut self) {
        self.len = 0;
    }

    /// The whole reply; empty when there is none.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
