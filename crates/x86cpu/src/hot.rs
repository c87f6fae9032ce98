//! What ran often before a machine was frozen, so that it need not be found out again.
//!
//! Problem: after a resume each block is interpreted dozens of times again before it is translated, and decoded for
//! that, although it is known that it will be worth it.
//!
//! Strategy: where a translation begins is noted with the machine ([`Cpu::hot_blocks`]). How hot it is, is sampled for
//! nothing: the dispatcher enters translated code every [`crate::jit::JIT_TICK`] instructions, at whatever translation
//! was next, and counts there. A vCPU that is given such a list ([`Cpu::foresee`]) translates what is in it when it runs
//! for the first time.
//!
//! Invariants: the list is a hint from a file and decides about nothing but when a block is translated; it is asked
//! once for each block, where the block's runs begin to be counted, and once where it is decoded.

use std::sync::{Arc, OnceLock};

use arch::x86_64::hot::{CodeMode, HotBlock};
use guestmem::GuestMemory;

use crate::block::{hot_place, place_parts};
use crate::cpu::{Cpu, Mode};

/// Hot places of one machine's memory.
#[derive(Debug, Default)]
pub struct HotSet {
    /// By [`crate::block::place`], ascending.
    places: Vec<u64>,
}

/// A hot set that may come later.
pub type Foresight = Arc<OnceLock<HotSet>>;

impl HotSet {
    /// Those of `blocks` that are in this memory.
    pub fn new(blocks: &[HotBlock], memory: &GuestMemory) -> Self {
        let place = |block: &HotBlock| {
            let page = u32::try_from(memory.page_index(block.address)?).ok()?;
            Some(hot_place(page, block.address, block.mode == CodeMode::User64))
        };
        let mut places: Vec<u64> = blocks.iter().filter_map(place).collect();
        places.sort_unstable();
        places.dedup();
        Self { places }
    }

    /// Whether the [`crate::block::place`] is one of them.
    pub(crate) fn contains(&self, place: u64) -> bool {
        self.places.binary_search(&place).is_ok()
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
        self.foresight.as_ref().and_then(|hot| hot.get()).is_some_and(|hot| hot.contains(place))
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
