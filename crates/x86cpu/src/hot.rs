//! What ran often before a machine was frozen, so that it need not be found out again.
//!
//! Problem: after a resume each block is interpreted dozens of times again before it is translated, and decoded for
//! that, although it is known that it will be worth it.
//!
//! Strategy: where translations begin is noted with the machine ([`Cpu::hot_blocks`]). How hot one is, is sampled for
//! nothing: translated code comes back to the dispatcher every [`crate::jit::JIT_TICK`] instructions, and what is next
//! then gets a sample. A vCPU that is given such a list ([`Cpu::foresee`]) translates what has samples when it runs for
//! the first time, what has none after a few runs, and, while it has nothing to do ([`Cpu::translate_ahead`]), the
//! hottest before they run.
//!
//! Invariants: the list is a hint from a file and decides about nothing but when a block is translated; it is asked
//! once for each block, where the block's runs begin to be counted, and once where it is decoded.

use std::sync::{Arc, OnceLock};

use arch::x86_64::hot::{CodeMode, HotBlock};
use guestmem::GuestMemory;

use crate::block::{hot_place, place_parts};
use crate::cpu::{Cpu, Mode};

/// Runs after which a warm block is translated.
pub(crate) const WARM_RUNS: u32 = 6;
/// A place with less than this part of all samples does not run often in a second: 2 to the power of -21 are some
/// hundred instructions.
const LEAST_SHARE: u32 = 21;
/// The most that are translated before they run: 20 to 30 ms of a core, 2 MiB.
const AHEAD: usize = 2048;

/// How much is known of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warmth {
    /// It was worth a translation.
    Warm,
    /// It was a part of the time.
    Hot,
}

/// Hot places of one machine's memory.
#[derive(Debug, Default)]
pub struct HotSet {
    /// [`crate::block::place`] and whether it is hot, ascending.
    places: Vec<u64>,
    /// The hottest, hottest first.
    ahead: Vec<u64>,
}

/// A hot set that may come later.
pub type Foresight = Arc<OnceLock<HotSet>>;

impl HotSet {
    /// Those of `blocks`, hottest first, that are in this memory.
    pub fn new(blocks: &[HotBlock], memory: &GuestMemory) -> Self {
        let samples: u64 = blocks.iter().map(|block| u64::from(block.heat)).sum();
        let hot = |block: &HotBlock| block.heat > 0 && u64::from(block.heat) << LEAST_SHARE >= samples;
        let place = |block: &HotBlock| {
            let page = u32::try_from(memory.page_index(block.address)?).ok()?;
            Some((hot_place(page, block.address, block.mode == CodeMode::User64), hot(block)))
        };
        let known: Vec<(u64, bool)> = blocks.iter().filter_map(place).collect();
        let ahead = known.iter().filter(|(_, hot)| *hot).map(|(place, _)| *place).take(AHEAD).collect();
        let mut places: Vec<u64> = known.iter().map(|(place, hot)| place << 1 | u64::from(*hot)).collect();
        places.sort_unstable();
        Self { places, ahead }
    }

    fn get(&self, place: u64) -> Option<Warmth> {
        let at = self.places.partition_point(|known| *known < place << 1);
        let known = self.places.get(at).filter(|known| **known >> 1 == place)?;
        Some(if known & 1 == 0 { Warmth::Warm } else { Warmth::Hot })
    }
}

impl Cpu {
    /// Goes by this from when it is there; before the first instruction.
    pub fn foresee(&mut self, hot: Foresight) {
        self.foresight = Some(hot);
    }

    /// What is known of a place.
    #[inline]
    pub(crate) fn foreseen(&self, place: u64) -> Option<Warmth> {
        self.foresight.as_ref()?.get()?.get(place)
    }

    /// Whether others share what it decoded, as long as it adds little.
    pub fn shares_code(&self) -> bool {
        self.code.as_ref().is_some_and(|code| code.is_shared())
    }

    /// Translates one more of the hottest places, of which there are `most`; `false` when there is nothing to do. For a
    /// vCPU that sleeps.
    pub fn translate_ahead(&mut self, most: usize) -> bool {
        let hot = self.foresight.as_ref().and_then(|hot| hot.get());
        let next = hot.and_then(|hot| hot.ahead[..hot.ahead.len().min(most)].get(self.ahead).copied());
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
