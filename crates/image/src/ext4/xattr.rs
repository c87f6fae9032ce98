//! Extended attributes (filesystems/ext4/attributes.rst): in the inode behind its fields, and in a block of their own.

use super::{COST, Ext4, Ext4Error, damaged};
use crate::erofs::format::{get_u16, get_u32};
use crate::tree::Xattrs;

const MAGIC: u32 = 0xea02_0000;
/// Bytes of the head of a block of attributes.
const HEAD: usize = 32;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;

/// What the number in an entry stands for. The others never were in a kernel's hands.
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        _ => return None,
    })
}

impl Ext4 {
    /// The attributes of an inode whose own ones begin at `own`.
    pub fn xattrs(&mut self, number: u32, inode: &[u8], own: usize) -> Result<Xattrs, Ext4Error> {
        let mut xattrs = Xattrs::new();
        let wrong = || damaged("extended attributes don't hold together", number);
        let area = inode.get(own..).unwrap_or_default();
        if get_u32(area, 0) == Some(MAGIC) {
            let area = &area[4..];
            decode(area, area, &mut xattrs).ok_or_else(wrong)?;
        }
        let block =
            u64::from(get_u32(inode, 0x68).unwrap_or(0)) | u64::from(get_u16(inode, 0x76).unwrap_or(0)) << 32;
        if block != 0 {
            let bytes = match self.attributes.take() {
                Some((last, bytes)) if last == block => bytes,
                _ => self.block(block, number)?,
            };
            let entries = bytes.get(HEAD..).filter(|_| get_u32(&bytes, 0) == Some(MAGIC));
            entries.and_then(|entries| decode(entries, &bytes, &mut xattrs)).ok_or_else(wrong)?;
            self.attributes = Some((block, bytes));
        }
        for (name, value) in &xattrs {
            self.spend((name.len() + value.len()) as u64 + COST, number)?;
        }
        Ok(xattrs)
    }
}

/// Adds those whose entries are in `entries`; where values are is told from the beginning of `values`.
fn decode(mut entries: &[u8], values: &[u8], to: &mut Xattrs) -> Option<()> {
    // Four zero bytes, or the end, are behind the last.
    while get_u32(entries, 0).unwrap_or(0) != 0 {
        let name_len = usize::from(*entries.first()?);
        let index = *entries.get(1)?;
        let at = usize::from(get_u16(entries, 2)?);
        let size = get_u32(entries, 8)? as usize;
        if get_u32(entries, 4)? != 0 {
            return None; // its value is an inode: a feature that we do not read
        }
        let name = [prefix(index)?, entries.get(ENTRY..ENTRY + name_len)?].concat();
        let value = match size {
            0 => &[],
            size => values.get(at..at.checked_add(size)?)?,
        };
        let value = if matches!(index, 2 | 3) { access_list(value)? } else { value.to_vec() };
        to.insert(name.into(), value.into());
        entries = entries.get((ENTRY + name_len).next_multiple_of(4)..)?;
    }
    Some(())
}

/// An access control list as user space has it (version 2, eight bytes an entry, `posix_acl_xattr.h`) from ext4's own
/// form (version 1; only entries of a named user or group have an id).
fn access_list(stored: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    const NOBODY: u32 = u32::MAX;
    if get_u32(stored, 0)? != 1 {
        return None;
    }
    let mut list = 2u32.to_le_bytes().to_vec();
    let mut rest = &stored[4..];
    while !rest.is_empty() {
        let tag = get_u16(rest, 0)?;
        let named = matches!(tag, USER | GROUP);
        let id = if named { get_u32(rest, 4)? } else { NOBODY };
        list.extend_from_slice(rest.get(..4)?);
        list.extend_from_slice(&id.to_le_bytes());
        rest = &rest[if named { 8 } else { 4 }..];
    }
    Some(list)
}
