//! Which code of a frozen machine ran often: the section `hot-blocks`, docs/formats/machine-file.md, 5.4.
//!
//! A hint, so nothing in it is wrong: what cannot be meant is passed over, and a machine without it is the same machine.
//! Next: `machine/save.rs`, `machine/restore.rs`.

use artifact::{MachineFile, MachineFileWriter, SectionFlags, SectionHead, SectionKind};
use guestmem::GuestMemory;
use hv::{CodeMode, HotBlock};

use crate::Error;

/// Version of the section.
const HOT_VERSION: u32 = 1;
/// The most places that are written or read.
pub const MOST_HOT: usize = 1 << 16;
/// Bytes of a place.
const WORD: usize = 8;
/// Addresses have so many bits.
const ADDRESS_BITS: u32 = 52;
/// The hottest class: a count has at most so many binary digits.
const HOTTEST: u64 = u32::BITS as u64;

/// How hot a place is, as it is written: the binary digits of its count.
fn class(heat: u32) -> u64 {
    u64::from(u32::BITS - heat.leading_zeros())
}

/// The least heat of a class.
fn heat(class: u64) -> u32 {
    class.checked_sub(1).map_or(0, |digits| 1 << digits.min(HOTTEST - 1))
}

fn place(block: &HotBlock) -> (u64, CodeMode) {
    (block.address, block.mode)
}

/// A list of hot blocks as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotBlocks(Vec<HotBlock>);

impl HotBlocks {
    /// Puts together what ran since the machine was brought back, on any vCPU, and half of what was said of it `before`,
    /// so that what does not run any more is forgotten.
    pub fn join(ran: impl IntoIterator<Item = HotBlock>, before: &[HotBlock]) -> Self {
        let older = before.iter().filter(|block| block.heat > 0);
        let older = older.map(|block| HotBlock { heat: block.heat / 2, ..*block });
        let mut blocks: Vec<HotBlock> = ran.into_iter().chain(older).collect();
        blocks.sort_unstable_by_key(place);
        blocks.dedup_by(|next, block| {
            let same = place(next) == place(block);
            block.heat = block.heat.saturating_add(if same { next.heat } else { 0 });
            same
        });
        blocks.retain(|block| block.address >> ADDRESS_BITS == 0);
        blocks.sort_unstable_by_key(|b| (HOTTEST - class(b.heat), b.address, b.mode));
        blocks.truncate(MOST_HOT);
        Self(blocks)
    }

    /// Hottest first.
    pub fn blocks(&self) -> &[HotBlock] {
        &self.0
    }

    /// Hottest first.
    pub fn into_blocks(self) -> Vec<HotBlock> {
        self.0
    }

    /// The section's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let word = |b: &HotBlock| b.address << 12 | (b.mode as u64) << 6 | class(b.heat);
        self.0.iter().flat_map(|block| word(block).to_le_bytes()).collect()
    }

    /// Reads the section's bytes: the first that is said of each place in this memory, hottest first.
    ///
    /// # Errors
    /// [`Error::Version`]; [`Error::Malformed`] for more places than there may be, or part of one.
    pub fn decode(version: u32, bytes: &[u8], memory: &GuestMemory) -> Result<Self, Error> {
        if version != HOT_VERSION {
            return Err(Error::Version { what: "list of hot blocks", found: version, reads: HOT_VERSION });
        }
        let (words, rest) = bytes.as_chunks::<WORD>();
        if !rest.is_empty() || words.len() > MOST_HOT {
            let why = format!("{} bytes; up to {MOST_HOT} times {WORD} are possible", bytes.len());
            return Err(Error::Malformed { what: "list of hot blocks", why });
        }
        let block = |word: &[u8; WORD]| {
            let word = u64::from_le_bytes(*word);
            let (address, mode, class) = (word >> 12, (word >> 6 & 0x3f) as u8, word & 0x3f);
            let known = memory.is_ram(address, 1) && class <= HOTTEST;
            let mode = CodeMode::from_number(mode).filter(|_| known)?;
            Some(HotBlock { address, mode, heat: heat(class) })
        };
        let mut blocks: Vec<_> = words.iter().filter_map(block).collect();
        // Stable: of two that say something of one place the first one stays.
        blocks.sort_by_key(place);
        blocks.dedup_by_key(|block| place(block));
        blocks.sort_by_key(|b| HOTTEST - class(b.heat));
        Ok(Self(blocks))
    }

    /// Writes it as what ran often in the machine that the file holds; nothing where nothing did.
    ///
    /// # Errors
    /// The file's.
    pub fn write(&self, writer: &mut MachineFileWriter) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let head = SectionHead::new(SectionKind::HotBlocks, HOT_VERSION);
        Ok(writer.add_bytes(SectionHead { flags: SectionFlags::IGNORABLE, ..head }, &self.encode())?)
    }

    /// What the file says ran often in the machine that it holds; nothing where that cannot be read.
    pub fn read(file: &MachineFile, memory: &GuestMemory) -> Self {
        let Some(section) = file.section(SectionKind::HotBlocks) else { return Self::default() };
        let bytes = file.read_section(section, (MOST_HOT * WORD) as u64);
        bytes.ok().and_then(|bytes| Self::decode(section.version, &bytes, memory).ok()).unwrap_or_default()
    }
}
