//! Extended attributes behind an inode: a 12-byte header and entries of
//! `name length, prefix index, value size, name without prefix, value`, each padded to 4 bytes.
//! No attributes are shared between inodes: roots have few.

use super::format::{Put, get_u16};
use crate::tree::Xattrs;

const HEADER: usize = 12;
const ENTRY: usize = 4;

/// Name prefixes by their index; a name with an empty rest is the prefix itself.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Why attributes cannot be stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsupported {
    pub name: Vec<u8>,
}

/// The attributes as they stand behind the inode, empty when there are none.
pub fn encode(xattrs: &Xattrs) -> Result<Vec<u8>, Unsupported> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; HEADER];
    for (name, value) in xattrs {
        let unsupported = || Unsupported { name: name.to_vec() };
        let (index, rest) = split(name).ok_or_else(unsupported)?;
        let len = u8::try_from(rest.len()).map_err(|_| unsupported())?;
        let size = u16::try_from(value.len()).map_err(|_| unsupported())?;
        let start = out.len();
        out.resize(start + ENTRY, 0);
        let mut put = Put::new(&mut out, start);
        put.bytes(&[len, index]);
        put.u16(size);
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(out)
}

/// i_xattr_icount of encoded attributes: 0, or 1 + the words after the header.
pub fn count(encoded: &[u8]) -> Option<u16> {
    if encoded.is_empty() {
        return Some(0);
    }
    u16::try_from(1 + (encoded.len() - HEADER) / 4).ok()
}

/// Bytes that an i_xattr_icount means.
pub fn size(count: u16) -> usize {
    match count {
        0 => 0,
        n => HEADER + 4 * (usize::from(n) - 1),
    }
}

/// Reads attributes back. None when they don't hold together or use shared ones.
pub fn decode(bytes: &[u8]) -> Option<Xattrs> {
    let mut xattrs = Xattrs::new();
    if bytes.is_empty() {
        return Some(xattrs);
    }
    if *bytes.get(4)? != 0 {
        return None; // h_shared_count
    }
    let mut at = HEADER;
    while at < bytes.len() {
        let (len, index) = (usize::from(*bytes.get(at)?), *bytes.get(at + 1)?);
        let value_len = usize::from(get_u16(bytes, at + 2)?);
        if index == 0 {
            return None;
        }
        let (_, prefix) = PREFIXES.iter().find(|(i, _)| *i == index)?;
        let name = bytes.get(at + ENTRY..at + ENTRY + len)?;
        let value = bytes.get(at + ENTRY + len..at + ENTRY + len + value_len)?;
        xattrs.insert([prefix, name].concat().into(), value.into());
        at = (at + ENTRY + len + value_len).next_multiple_of(4);
    }
    Some(xattrs)
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // "user." alone names nothing; an ACL's name is the prefix alone.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}
