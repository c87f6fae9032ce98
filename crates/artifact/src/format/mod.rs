//! The bytes of header and index, without any file: docs/formats/machine-file.md, sections 2 to 4.
//!
//! All numbers are little-endian. Parsing is total: any bytes give a value or a [`Problem`], nothing is
//! allocated that the bytes present do not account for.

mod header;
mod index;

pub use header::Header;
pub(crate) use index::check_name;
pub use index::{Index, MAX_SECTIONS, Section, SectionFlags};

use crate::error::Problem;

/// The format version that is written.
pub const FORMAT_VERSION: u32 = 1;

/// Sections start at multiples of this many bytes; also the size of a stored guest page.
pub const PAGE_SIZE: u64 = 4096;

/// The first bytes of every machine file: not text (0x89), the name, and a line feed, so that a transfer in
/// text mode shows.
pub const MAGIC: [u8; 8] = *b"\x89SMOLVM\n";

/// The first bytes of the index.
pub const INDEX_MAGIC: [u8; 8] = *b"SMOLVMIX";

/// `offset` rounded up to a page, unless that is out of range.
pub fn page_up(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(PAGE_SIZE)
}

/// Reads fields one after the other; a read past the end is damage at that place.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    place: &'static str,
    offset: u64,
}

impl<'a> Fields<'a> {
    /// Over `bytes`, which lie at `offset` of the file and belong to the part called `place`.
    pub(crate) fn new(bytes: &'a [u8], place: &'static str, offset: u64) -> Fields<'a> {
        Fields { rest: bytes, place, offset }
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let Some((field, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.damaged("it ends in the middle of a field"));
        };
        self.rest = rest;
        self.offset = self.offset.saturating_add(N as u64);
        Ok(*field)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// Everything that is left must be zero.
    pub(crate) fn rest_is_zero(&self) -> Result<(), Problem> {
        match self.rest.iter().position(|&byte| byte != 0) {
            None => Ok(()),
            Some(at) => {
                let why = "bytes that must be zero are not";
                Err(Problem::damaged(self.place, self.offset.saturating_add(at as u64), why))
            }
        }
    }

    /// Damage at the next field.
    pub(crate) fn damaged(&self, why: &str) -> Problem {
        Problem::damaged(self.place, self.offset, why)
    }
}
