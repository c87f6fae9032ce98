//! What a vCPU knows of the code in its machine's memory, to be handed to others.
//!
//! Problem: each copy of a machine would decode the same code again, which is most of what its waking costs, and keep
//! its own decoded form, which is most of its memory.
//!
//! Strategy: one vCPU runs the machine for a while and gives up what it decoded ([`Cpu::take_learnt`]); that is made to
//! fit the memory of a machine that was brought back from the same files ([`Learnt::fit`]), and its vCPU goes on with it
//! ([`Cpu::learn`]). Where processes are split off in between, they share it until they add to it.
//!
//! Invariants: only blocks of pages that were never written count, so the bytes that they were decoded from are those in
//! the files; the pages are watched in the new memory before anything can write there; links that depend on paging
//! belong to map epochs that the new vCPU never has. Translations are not handed on: they are host code at an address.

use guestmem::GuestMemory;

use crate::block::CodeCache;
use crate::cpu::Cpu;
use crate::fpu::FpInsn;

/// Instructions for which a vCPU that goes on with what others learnt leaves it as it is: more than a guest's waking.
const WAKING: u64 = 1_500_000;
/// Instructions of a short wake-up.
const SHORT: u64 = 50_000;
/// One rest in so many counts as none, so that what is done again and again is found out all the same.
const RESTS: u32 = 8;

/// See the module.
pub struct Learnt {
    code: Box<CodeCache>,
    fp_ops: Vec<FpInsn>,
    /// Above every map epoch that a link may name.
    epoch: u32,
}

impl Learnt {
    /// Makes it valid for `memory`, which holds what the other one held when it was brought back. Nothing may use the
    /// memory yet.
    pub fn fit(&mut self, memory: &GuestMemory) {
        self.code.fit(memory);
    }
}

impl Cpu {
    /// Takes what this vCPU has learnt; it begins anew. Its memory is one that was brought back from files: a page that
    /// is not dirty is theirs.
    pub fn take_learnt(&mut self) -> Learnt {
        let mut code = std::mem::take(&mut self.code).unwrap_or_default();
        let fp_ops = std::mem::take(&mut self.fp_ops);
        let mut fresh = Box::<CodeCache>::default();
        std::mem::swap(&mut fresh.jit, &mut code.jit);
        fresh.clear(self);
        self.code = Some(fresh);
        code.keep_unwritten(&self.memory);
        Learnt { code, fp_ops, epoch: self.mmu.newest_epoch().wrapping_add(1) }
    }

    /// Goes on with what another vCPU learnt, in memory that it was made to fit. After [`Cpu::restore`], before the
    /// first instruction.
    pub fn learn(&mut self, learnt: Learnt) {
        let Learnt { mut code, fp_ops, epoch } = learnt;
        if let Some(own) = &mut self.code {
            std::mem::swap(&mut own.jit, &mut code.jit);
        }
        code.quiet_until = self.insn_count.saturating_add(WAKING);
        (self.code, self.fp_ops) = (Some(code), fp_ops);
        self.mmu.begin_epochs(epoch);
    }

    /// The vCPU sleeps, and has for a while: gives back what it finds again when it goes on (translations of addresses,
    /// where jumps led), which is a third of what an idle machine takes of the host's memory.
    pub fn give_back(&mut self) {
        self.mmu.give_back();
        if let Some(code) = &mut self.code {
            code.give_back();
        }
    }

    /// The vCPU slept for so long that it may be idle. What an idle guest does now and then is not worth a translation,
    /// nor a note at each of its blocks, which copies of the machine share as long as nobody writes there: for a short
    /// while blocks run as they are.
    pub fn rested(&mut self) {
        self.rests = self.rests.wrapping_add(1);
        if let Some(code) = &mut self.code
            && !self.rests.is_multiple_of(RESTS)
        {
            code.quiet_until = code.quiet_until.max(self.insn_count.saturating_add(SHORT));
        }
    }
}
