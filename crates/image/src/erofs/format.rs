//! EROFS on disk: numbers and records, from Linux 6.12 `fs/erofs/erofs_fs.h`. All fields are
//! little-endian.

use crate::tree::{Device, Kind};

/// Block size; the only one written or read.
pub const BLOCK: u64 = 4096;
pub const BLOCK_BITS: u8 = 12;
/// Where the superblock is.
pub const SUPER_OFFSET: usize = 1024;
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// feature_compat: the superblock's checksum field is valid.
pub const COMPAT_SB_CHKSUM: u32 = 1;
/// feature_compat: extended inodes record the modification time.
pub const COMPAT_MTIME: u32 = 2;
/// Inodes are named by their offset in units of this.
pub const SLOT: u64 = 32;
pub const INODE_COMPACT: usize = 32;
pub const INODE_EXTENDED: usize = 64;
/// Data in blocks only.
pub const FLAT_PLAIN: u16 = 0;
/// Full blocks, then the rest right behind the inode.
pub const FLAT_INLINE: u16 = 2;
pub const DIRENT: usize = 12;
/// raw_blkaddr of something without blocks.
pub const NO_BLOCK: u32 = u32::MAX;

/// Type bits of i_mode (POSIX, as Linux numbers them).
pub const S_IFMT: u16 = 0o170000;
const S_IFSOCK: u16 = 0o140000;
const S_IFLNK: u16 = 0o120000;
const S_IFREG: u16 = 0o100000;
const S_IFBLK: u16 = 0o060000;
const S_IFDIR: u16 = 0o040000;
const S_IFCHR: u16 = 0o020000;
const S_IFIFO: u16 = 0o010000;

/// The type bits and the directory entry type byte (FT_*) of a node.
pub fn type_of(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) => (S_IFREG, 1),
        Kind::Dir(_) => (S_IFDIR, 2),
        Kind::CharDevice(_) => (S_IFCHR, 3),
        Kind::BlockDevice(_) => (S_IFBLK, 4),
        Kind::Fifo => (S_IFIFO, 5),
        Kind::Socket => (S_IFSOCK, 6),
        Kind::Symlink(_) => (S_IFLNK, 7),
    }
}

/// What an inode's type bits say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    File,
    Dir,
    Char,
    Block,
    Fifo,
    Socket,
    Symlink,
}

/// The type in i_mode, if it is one.
pub fn type_in(mode: u16) -> Option<Type> {
    Some(match mode & S_IFMT {
        S_IFREG => Type::File,
        S_IFDIR => Type::Dir,
        S_IFCHR => Type::Char,
        S_IFBLK => Type::Block,
        S_IFIFO => Type::Fifo,
        S_IFSOCK => Type::Socket,
        S_IFLNK => Type::Symlink,
        _ => return None,
    })
}

/// Linux's 32-bit device number: the minor's low byte, the major, the minor's rest.
pub fn encode_device(device: Device) -> u32 {
    let Device { major, minor } = device;
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The other way round.
pub fn decode_device(rdev: u32) -> Device {
    Device { major: (rdev >> 8) & 0xfff, minor: (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00) }
}

/// The superblock's fields that vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub build_time: i64,
    pub build_nanos: u32,
    pub blocks: u32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
}

impl Superblock {
    /// The image's first block, with the checksum: CRC-32C (initial value all ones, not
    /// inverted at the end) from the superblock to the block's end, its own field zero.
    pub fn block(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let mut put = Put::new(&mut block, SUPER_OFFSET);
        put.u32(MAGIC);
        put.u32(0); // checksum
        put.u32(COMPAT_SB_CHKSUM | COMPAT_MTIME);
        put.bytes(&[BLOCK_BITS, 0]); // no extension slots
        put.u16(self.root_nid);
        put.u64(self.inodes);
        put.u64(self.build_time as u64);
        put.u32(self.build_nanos);
        put.u32(self.blocks);
        put.u32(0); // meta_blkaddr: inodes are counted from the image's start
        put.u32(0); // xattr_blkaddr: no shared attributes
        put.bytes(&self.uuid);
        put.bytes(&self.volume_name);
        // feature_incompat and all that follows stay zero: nothing compressed, one device.
        let sum = !crc32c::crc32c(&block[SUPER_OFFSET..]);
        Put::new(&mut block, SUPER_OFFSET + 4).u32(sum);
        block
    }
}

/// An inode's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    pub layout: u16,
    /// 32-bit words of attributes plus one, or 0.
    pub xattr_count: u16,
    pub mode: u16,
    pub size: u64,
    /// Block address or device number.
    pub union: u32,
    pub ino: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nanos: u32,
    pub nlink: u32,
}

impl Inode {
    /// The 64-byte form, or the 32-byte form, which has no time of its own.
    pub fn encode(&self, extended: bool) -> Vec<u8> {
        let format = (self.layout << 1) | u16::from(extended);
        if extended {
            let mut out = vec![0; INODE_EXTENDED];
            let mut put = Put::new(&mut out, 0);
            put.u16(format);
            put.u16(self.xattr_count);
            put.u16(self.mode);
            put.u16(0);
            put.u64(self.size);
            put.u32(self.union);
            put.u32(self.ino);
            put.u32(self.uid);
            put.u32(self.gid);
            put.u64(self.mtime as u64);
            put.u32(self.mtime_nanos);
            put.u32(self.nlink);
            out
        } else {
            let mut out = vec![0; INODE_COMPACT];
            let mut put = Put::new(&mut out, 0);
            put.u16(format);
            put.u16(self.xattr_count);
            put.u16(self.mode);
            put.u16(self.nlink as u16);
            put.u32(self.size as u32);
            put.u32(0);
            put.u32(self.union);
            put.u32(self.ino);
            put.u16(self.uid as u16);
            put.u16(self.gid as u16);
            out
        }
    }
}

/// Writes fields one after the other into a buffer that is large enough.
pub struct Put<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    pub fn new(out: &'a mut [u8], at: usize) -> Self {
        Self { out, at }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}

/// Reads a field at an offset; None past the end.
pub fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}

pub fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

pub fn get_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}
