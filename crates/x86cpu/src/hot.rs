//! What ran often before a machine was frozen, so that it need not be found out again.
//!
//! Problem: after a resume each block is interpreted dozens of times again before it is translated, and decoded for
//! that, although it is known that it will be worth it.
//!
//! Strategy: where translations begin is noted with the machine ([`Cpu::hot_blocks`]). How hot one is, is known for
//! nothing: whoever looks for a translation by its address (the dispatcher, an indirect branch, an exit that is not linked)
//! counts there, and translated code comes back to the dispatcher every [`crate::jit::JIT_TICK`] instructions: what is next
//! then is where time is spent. A vCPU that is given such a list ([`Cpu::foresee`]) translates what was hot when it runs for
//! the first time, from within the code that leads there where that is translated (`jit/helpers.rs`), or, while it has
//! nothing to do, before ([`Cpu::translate_ahead`]).
//!
//! Invariants: the list is a hint from a file and decides about nothing but when a block is translated; it is asked
//! once for each block, where the block's runs begin to be counted, and once where it is decoded.

use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use arch::x86_64::hot::{CodeMode, HotBlock};
use guestmem::GuestMemory;

use crate::block::{KeyHasher, hot_place, place_parts};
use crate::cpu::{Cpu, Mode};

/// A place that was looked for less often was translated ahead and never run. (What other translations are linked to is
/// looked for once, however often it runs.)
const LEAST: u32 = 1;
/// One with less than this part (2 to the power of -24) of all that was counted is translated when it has run often again:
/// in a list of hours it says nothing about the next second.
const LEAST_SHARE: u32 = 24;
/// A machine of which less was counted has booted and not worked: what it did says nothing about what it will do. (A boot
/// comes to 80,000, four runs of half a second of CPython to a million.)
const WORKED: u64 = 1 << 18;

/// Hot places of one machine's memory.
#[derive(Debug, Default)]
pub struct HotSet {
    /// By [`crate::block::place`], ascending.
    places: Vec<u64>,
    /// A bit for each of them, by [`bit_of`], so that most of what is asked for is known not to be there at once.
    bits: Vec<u64>,
    /// The same, hottest first; none of a machine that has not worked.
    hottest: Vec<u64>,
}

/// A hot set that may come later.
pub type Foresight = Arc<OnceLock<HotSet>>;

/// Bits of the filter: 32 KiB.
const BITS: usize = 1 << 18;

/// Word and bit of a place in [`HotSet::bits`].
fn bit_of(place: u64) -> (usize, u64) {
    let mut hasher = KeyHasher::default();
    hasher.write_u64(place);
    let hash = hasher.finish() >> (64 - BITS.trailing_zeros());
    ((hash >> 6) as usize, 1 << (hash & 63))
}

impl HotSet {
    /// Those of `blocks`, hottest first, that are in this memory.
    pub fn new(blocks: &[HotBlock], memory: &GuestMemory) -> Self {
        let counted: u64 = blocks.iter().map(|block| u64::from(block.heat)).sum();
        let is_hot = |b: &&HotBlock| b.heat >= LEAST && u64::from(b.heat) << LEAST_SHARE >= counted;
        let place = |block: &HotBlock| {
            let page = u32::try_from(memory.page_index(block.address)?).ok()?;
            Some(hot_place(page, block.address, block.mode == CodeMode::User64))
        };
        let hottest: Vec<u64> = blocks.iter().filter(is_hot).filter_map(place).collect();
        let mut places = hottest.clone();
        places.sort_unstable();
        let mut bits = vec![0; if places.is_empty() { 0 } else { BITS / 64 }];
        for (word, bit) in places.iter().map(|place| bit_of(*place)) {
            bits[word] |= bit;
        }
        Self { places, bits, hottest: if counted < WORKED { Vec::new() } else { hottest } }
    }

    fn has(&self, place: u64) -> bool {
        let (word, bit) = bit_of(place);
        self.bits.get(word).is_some_and(|word| word & bit != 0) && self.places.binary_search(&place).is_ok()
    }
}

impl Cpu {
    /// Goes by this from when it is there; before the first instruction.
    pub fn foresee(&mut self, hot: Foresight) {
        self.foresight = Some(hot);
    }

    /// Whether the code at a place is known to be hot.
    #[inline]
    pub(crate) fn is_foreseen(&self, place: u64) -> bool {
        let hot = self.foresight.as_ref().and_then(|hot| hot.get());
        hot.is_some_and(|hot| hot.has(place))
    }

    /// Whether others share what it decoded, as long as it adds little.
    pub fn shares_code(&self) -> bool {
        self.code.as_ref().is_some_and(|code| code.is_shared())
    }

    /// Translates one more of the hottest places, of which there are `most`; `false` when there is nothing to do. For a
    /// vCPU that sleeps.
    pub fn translate_ahead(&mut self, most: usize) -> bool {
        let hot = self.foresight.as_ref().and_then(|hot| hot.get());
        let next = hot.and_then(|hot| hot.hottest.get(self.ahead).copied()).filter(|_| self.ahead < most);
        let Some(place) = next else { return false };
        self.ahead += 1;
        self.with_code(|cpu, code| code.jit.is_on() && code.jit.make_ahead(cpu, place))
    }

    /// Where its translations begin, which are what ran often.
    pub fn hot_blocks(&self) -> Vec<HotBlock> {
        let Some(code) = &self.code else { return Vec::new() };
        let block = |(place, heat)| {
            let (page, offset, mode, user) = place_parts(place);
            (mode == Mode::Long64 as u64).then(|| HotBlock {
                address: self.memory.page_gpa(page as usize) | offset,
                mode: if user { CodeMode::User64 } else { CodeMode::Supervisor64 },
                heat,
            })
        };
        code.jit.heats().filter_map(block).collect()
    }
}
