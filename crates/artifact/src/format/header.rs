//! The header: page 0 of the file, written last.

use super::{FORMAT_VERSION, Fields, MAGIC, PAGE_SIZE, page_up};
use crate::error::Problem;
use crate::hash::Digest;

/// The part's name in messages.
const PLACE: &str = "the header";

/// Page 0. Fields at byte offsets 0 magic, 8 version, 12 zero, 16 index offset, 24 index length,
/// 32 index digest, 64 signature offset and length (zero in format 1), zero to the end of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the index starts: a multiple of [`PAGE_SIZE`], at least one page.
    pub index_offset: u64,
    /// The index's length in bytes, without the zeros that fill its last page.
    pub index_len: u64,
    /// BLAKE3 of the index: the file's identity.
    pub id: Digest,
}

impl Header {
    /// The header's page.
    pub fn encode(&self) -> [u8; PAGE_SIZE as usize] {
        let mut page = [0; PAGE_SIZE as usize];
        page[0..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[16..24].copy_from_slice(&self.index_offset.to_le_bytes());
        page[24..32].copy_from_slice(&self.index_len.to_le_bytes());
        page[32..64].copy_from_slice(self.id.as_bytes());
        page
    }

    /// Reads a page that starts with [`MAGIC`].
    pub fn parse(page: &[u8; PAGE_SIZE as usize]) -> Result<Header, Problem> {
        let mut fields = Fields::new(page, PLACE, 0);
        if fields.bytes::<8>()? != MAGIC {
            return Err(Problem::damaged(PLACE, 0, "the first 8 bytes are not the magic"));
        }
        check_version(fields.u32()?)?;
        if fields.u32()? != 0 {
            return Err(Problem::damaged(PLACE, 12, "bytes that must be zero are not"));
        }
        let index_offset = fields.u64()?;
        let index_len = fields.u64()?;
        let id = Digest::from_bytes(fields.bytes()?);
        if fields.bytes::<16>()? != [0; 16] {
            let what = "a place for its signature that this format version has not".to_owned();
            return Err(Problem::Unsupported { what });
        }
        fields.rest_is_zero()?;
        if index_offset < PAGE_SIZE || !index_offset.is_multiple_of(PAGE_SIZE) {
            return Err(Problem::damaged(PLACE, 16, "the index does not start at a page"));
        }
        let header = Header { index_offset, index_len, id };
        match header.file_len() {
            Some(_) => Ok(header),
            None => Err(Problem::damaged(PLACE, 24, "the index ends beyond any file")),
        }
    }

    /// The length of the whole file, which the index's page ends; `None` out of range of 63 bits.
    pub fn file_len(&self) -> Option<u64> {
        let end = page_up(self.index_offset.checked_add(self.index_len)?)?;
        i64::try_from(end).is_ok().then_some(end)
    }
}

/// Which versions are read: this one.
pub(super) fn check_version(found: u32) -> Result<(), Problem> {
    match found {
        0 => Err(Problem::damaged(PLACE, 8, "format version 0 does not exist")),
        FORMAT_VERSION => Ok(()),
        _ => Err(Problem::Newer { found, reads: FORMAT_VERSION }),
    }
}
