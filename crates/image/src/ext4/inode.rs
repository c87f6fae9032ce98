//! Inodes (filesystems/ext4/inodes.rst).

use super::extents::LEN as FIELD;
use super::{Ext4, Ext4Error, damaged};
use crate::archive::EntryKind;
use crate::content::Content;
use crate::erofs::format::{Type, decode_device, get_u16, get_u32, type_in};
use crate::tree::{Device, MAX_PATH, Meta, Time};

/// Where `i_block` is in an inode: extents, a short link's target, a device number.
const I_BLOCK: usize = 0x28;

mod flag {
    pub const ENCRYPTED: u32 = 0x800;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const LARGE_VALUES: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
}

pub struct Inode {
    pub number: u32,
    pub kind: Type,
    pub links: u16,
    pub size: u64,
    pub meta: Meta,
    extents: bool,
    block: Vec<u8>,
}

impl Ext4 {
    pub fn inode(&mut self, number: u32) -> Result<Inode, Ext4Error> {
        let raw = self.raw_inode(number)?;
        let half = |at| get_u16(&raw, at).unwrap_or(0);
        let word = |at| get_u32(&raw, at).unwrap_or(0);
        let flags = word(0x20);
        if flags & (flag::ENCRYPTED | flag::LARGE_VALUES | flag::INLINE_DATA) != 0 {
            return Err(Ext4Error::Unknown("encrypted files or such with their data in the inode"));
        }
        let mode = half(0);
        let kind = type_in(mode).ok_or_else(|| damaged("an inode has no known type", number))?;
        // What of the inode is behind the first 128 bytes.
        let extra = if raw.len() > 128 { usize::from(half(0x80)) } else { 0 };
        let mut mtime = Time::from_secs(i64::from(word(0x10).cast_signed()));
        if extra >= 0x8c - 0x80 {
            let more = word(0x88);
            mtime.secs += i64::from(more & 3) << 32;
            mtime.nanos = (more >> 2).min(999_999_999);
        }
        let meta = Meta {
            mode: mode & 0o7777,
            uid: u32::from(half(0x2)) | u32::from(half(0x78)) << 16,
            gid: u32::from(half(0x18)) | u32::from(half(0x7a)) << 16,
            mtime,
            xattrs: self.xattrs(number, &raw, 128 + extra)?,
        };
        Ok(Inode {
            number,
            kind,
            links: half(0x1a),
            size: u64::from(word(0x4)) | u64::from(word(0x6c)) << 32,
            meta,
            extents: flags & flag::EXTENTS != 0,
            block: raw[I_BLOCK..I_BLOCK + FIELD].to_vec(),
        })
    }

    /// What an archive says of an inode; nothing where it cannot hold it.
    pub fn kind(&mut self, inode: &Inode) -> Result<Option<(EntryKind, Content)>, Ext4Error> {
        let kind = match inode.kind {
            Type::Dir => EntryKind::Dir,
            Type::File => return Ok(Some((EntryKind::File, self.data(inode)?))),
            Type::Symlink => EntryKind::Symlink(self.target(inode)?),
            Type::Char => EntryKind::CharDevice(device(&inode.block)),
            Type::Block => EntryKind::BlockDevice(device(&inode.block)),
            Type::Fifo => EntryKind::Fifo,
            Type::Socket => return Ok(None),
        };
        Ok(Some((kind, Content::empty())))
    }

    /// The data of an inode as a reference, checked to lie on the disk.
    pub fn data(&mut self, inode: &Inode) -> Result<Content, Ext4Error> {
        if !inode.extents {
            return Err(Ext4Error::Unknown("files that are not in extents"));
        }
        self.extents(&inode.block, inode.size, inode.number)
    }

    fn target(&mut self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        let wrong = || damaged("a symbolic link cannot be read", inode.number);
        self.spend(inode.size, inode.number)?;
        if inode.extents {
            return self.data(inode)?.to_vec(MAX_PATH as u64).map_err(|_| wrong());
        }
        let len = usize::try_from(inode.size).map_err(|_| wrong())?;
        Ok(inode.block.get(..len).ok_or_else(wrong)?.to_vec())
    }
}

/// A device's number: in the first word the form of 16 bits, or in the second that of 32.
fn device(block: &[u8]) -> Device {
    match get_u32(block, 0).unwrap_or(0) {
        0 => decode_device(get_u32(block, 4).unwrap_or(0)),
        old => Device { major: (old >> 8) & 0xff, minor: old & 0xff },
    }
}
