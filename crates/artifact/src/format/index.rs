//! The index: what the file consists of. It is the manifest; its digest is the file's identity.
//!
//! Only the canonical layout is accepted: sections in the order of their offsets, each at the first page
//! after the one before, then the index. So no byte of a file can lie outside of what the digests cover.

use std::collections::HashSet;

use super::{FORMAT_VERSION, Fields, INDEX_MAGIC, PAGE_SIZE, page_up};
use crate::error::Problem;
use crate::hash::Digest;
use crate::kind::SectionKind;

/// The part's name in messages.
const PLACE: &str = "the index";

/// Bytes of the index before the first entry.
const HEAD_LEN: usize = 128;

/// Bytes of an entry.
const ENTRY_LEN: usize = 128;

/// Bytes that an entry has for the section's name.
const NAME_LEN: usize = 32;

/// No file has more sections.
pub const MAX_SECTIONS: usize = 1024;

/// What a reader may do with a section: an entry's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectionFlags(u32);

impl SectionFlags {
    /// A reader that does not know the section's kind may pass over it. Without this flag it refuses the file.
    pub const IGNORABLE: SectionFlags = SectionFlags(1);

    /// No flag.
    pub const NONE: SectionFlags = SectionFlags(0);

    /// The flags as stored.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are set.
    pub fn contains(self, other: SectionFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One section: an entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The number of the kind.
    pub kind_number: u32,
    /// Which of several sections of its kind: 0 for the first.
    pub instance: u32,
    /// What a reader may do with it.
    pub flags: SectionFlags,
    /// The version of its content's encoding, counted by the crate that owns the kind.
    pub version: u32,
    /// For people: 1 to 32 of `a-z 0-9 . _ -`.
    pub name: String,
    /// Where it starts in the file: a multiple of [`PAGE_SIZE`].
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// BLAKE3 of its bytes.
    pub digest: Digest,
}

impl Section {
    /// The kind, if this version knows it.
    pub fn kind(&self) -> Option<SectionKind> {
        SectionKind::from_number(self.kind_number)
    }

    /// The first byte after it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut entry = [0; ENTRY_LEN];
        entry[0..4].copy_from_slice(&self.kind_number.to_le_bytes());
        entry[4..8].copy_from_slice(&self.instance.to_le_bytes());
        entry[8..12].copy_from_slice(&self.flags.bits().to_le_bytes());
        entry[16..24].copy_from_slice(&self.offset.to_le_bytes());
        entry[24..32].copy_from_slice(&self.len.to_le_bytes());
        entry[32..40].copy_from_slice(&self.len.to_le_bytes());
        entry[40..72].copy_from_slice(self.digest.as_bytes());
        entry[72..76].copy_from_slice(&self.version.to_le_bytes());
        for (into, from) in entry[80..80 + NAME_LEN].iter_mut().zip(self.name.bytes()) {
            *into = from;
        }
        entry
    }

    /// Reads one entry, which lies at `at` of the file. Whether it fits its neighbours is [`Index::parse`]'s.
    fn parse(entry: &[u8], at: u64) -> Result<Section, Problem> {
        let mut fields = Fields::new(entry, PLACE, at);
        let kind_number = fields.u32()?;
        let instance = fields.u32()?;
        let flags = fields.u32()?;
        let codec = fields.u32()?;
        let offset = fields.u64()?;
        let len = fields.u64()?;
        let stored_len = fields.u64()?;
        let digest = Digest::from_bytes(fields.bytes()?);
        let version = fields.u32()?;
        let reserved = fields.u32()?;
        let name = parse_name(&fields.bytes::<NAME_LEN>()?).ok_or_else(|| {
            fields.damaged("a section's name is not 1 to 32 of a-z 0-9 . _ - and then zeros")
        })?;
        let unsupported = |what: String| Err(Problem::Unsupported { what });
        if codec != 0 {
            return unsupported(format!("section {name} decoded with codec {codec}"));
        }
        if flags & !SectionFlags::IGNORABLE.bits() != 0 || reserved != 0 {
            return unsupported(format!("flags {flags:#x} of section {name}"));
        }
        fields.rest_is_zero()?;
        if stored_len != len {
            return Err(Problem::damaged(PLACE, at, format!("section {name} has two lengths")));
        }
        let flags = SectionFlags(flags);
        if SectionKind::from_number(kind_number).is_none() && !flags.contains(SectionFlags::IGNORABLE) {
            return unsupported(format!("section {name} (kind {kind_number})"));
        }
        Ok(Section { kind_number, instance, flags, version, name, offset, len, digest })
    }
}

/// The name in its fixed place, with zeros after it.
fn parse_name(stored: &[u8; NAME_LEN]) -> Option<String> {
    let len = stored.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
    let (name, zeros) = stored.split_at_checked(len)?;
    let name = std::str::from_utf8(name).ok()?;
    let fits = check_name(name) && zeros.iter().all(|&byte| byte == 0);
    fits.then(|| name.to_owned())
}

/// Whether a section may be called so.
pub(crate) fn check_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (1..=NAME_LEN).contains(&name.len()) && name.bytes().all(allowed)
}

/// The whole index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The sections in the order in which they lie in the file.
    pub sections: Vec<Section>,
    /// The file whose sections this one builds on (docs/formats/machine-file.md, section 7).
    pub parent: Option<Digest>,
}

impl Index {
    /// Where the index belongs: the first page after the last section. `None` where that is out of range.
    pub fn offset(&self) -> Option<u64> {
        page_up(self.sections.last().map_or(PAGE_SIZE, Section::end))
    }

    /// The index's bytes for a file in which it lies at [`Index::offset`].
    ///
    /// Head: 0 magic, 8 version, 12 count, 16 length of the file, 24 length of the index, 32 features that a
    /// reader must know, 40 features that it may ignore, 48 encryption scheme, 56 id of the parent, zero to 128.
    pub fn encode(&self, file_len: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_LEN];
        let len = (HEAD_LEN + self.sections.len() * ENTRY_LEN) as u64;
        bytes[0..8].copy_from_slice(&INDEX_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.sections.len() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&file_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        if let Some(parent) = &self.parent {
            bytes[56..88].copy_from_slice(parent.as_bytes());
        }
        for section in &self.sections {
            bytes.extend_from_slice(&section.encode());
        }
        bytes
    }

    /// The length of an index of `sections` entries.
    pub fn encoded_len(sections: usize) -> u64 {
        (HEAD_LEN + sections * ENTRY_LEN) as u64
    }

    /// The length of the longest index that is accepted.
    pub const MAX_LEN: u64 = (HEAD_LEN + MAX_SECTIONS * ENTRY_LEN) as u64;

    /// Reads the index of a file of `file_len` bytes, in which it lies at `at`. The digest has been compared
    /// already: what is unknown here was meant so by its writer.
    pub fn parse(bytes: &[u8], at: u64, file_len: u64) -> Result<Index, Problem> {
        let (count, parent) = parse_head(bytes, at, file_len)?;
        let entries = bytes.get(HEAD_LEN..).unwrap_or_default();
        if count > MAX_SECTIONS || entries.len() != count * ENTRY_LEN {
            let why = format!("{count} sections in {} bytes", entries.len());
            return Err(Problem::damaged(PLACE, at, why));
        }
        let mut sections = Vec::with_capacity(count);
        let mut seen = HashSet::with_capacity(count);
        let mut expected = PAGE_SIZE;
        let mut entry_at = at.saturating_add(HEAD_LEN as u64);
        for entry in entries.chunks_exact(ENTRY_LEN) {
            let section = Section::parse(entry, entry_at)?;
            let damaged =
                |why: &str| Problem::damaged(PLACE, entry_at, format!("section {} {why}", section.name));
            if section.offset != expected {
                return Err(damaged("does not start where the one before ends"));
            }
            expected = section
                .offset
                .checked_add(section.len)
                .and_then(page_up)
                .filter(|&end| end <= at)
                .ok_or_else(|| damaged("ends beyond the index"))?;
            if !seen.insert((section.kind_number, section.instance)) {
                return Err(damaged("is there twice"));
            }
            sections.push(section);
            entry_at = entry_at.saturating_add(ENTRY_LEN as u64);
        }
        if expected != at {
            return Err(Problem::damaged(PLACE, at, "bytes lie between the sections and the index"));
        }
        Ok(Index { sections, parent })
    }
}

/// Reads the head; the number of entries and the parent's id.
fn parse_head(bytes: &[u8], at: u64, file_len: u64) -> Result<(usize, Option<Digest>), Problem> {
    let head = bytes.get(..HEAD_LEN).unwrap_or(bytes);
    let mut fields = Fields::new(head, PLACE, at);
    if fields.bytes::<8>()? != INDEX_MAGIC {
        return Err(Problem::damaged(PLACE, at, "it does not start with its magic"));
    }
    super::header::check_version(fields.u32()?)?;
    let count = fields.u32()? as usize;
    if fields.u64()? != file_len {
        return Err(Problem::damaged(PLACE, at, "it names another length of the file"));
    }
    if fields.u64()? != bytes.len() as u64 {
        return Err(Problem::damaged(PLACE, at, "it names another length of itself"));
    }
    let required = fields.u64()?;
    if required != 0 {
        return Err(Problem::Unsupported { what: format!("features {required:#x}") });
    }
    let _ignorable = fields.u64()?;
    let scheme = fields.u64()?;
    if scheme != 0 {
        return Err(Problem::Unsupported { what: format!("encryption scheme {scheme}") });
    }
    let parent = fields.bytes::<32>()?;
    fields.rest_is_zero()?;
    Ok((count, (parent != [0; 32]).then(|| Digest::from_bytes(parent))))
}
