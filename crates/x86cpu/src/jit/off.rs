//! No translation on this host.

use super::{Engine, JitCounters, Turn};
use crate::block::CodeCache;
use crate::cpu::Cpu;

#[derive(Default)]
pub(crate) struct Jit;

impl Jit {
    pub(crate) fn set_engine(&mut self, _: Engine) {}

    pub(crate) fn counters(&self) -> JitCounters {
        JitCounters::default()
    }

    pub(crate) fn is_on(&self) -> bool {
        false
    }

    pub(crate) fn flush(&mut self, _: &mut Cpu) {}

    pub(crate) fn heats(&self) -> impl Iterator<Item = (u64, u32)> {
        std::iter::empty()
    }

    pub(crate) fn make_ahead(&mut self, _: &mut Cpu, _: u64) -> bool {
        false
    }

    pub(crate) fn at(&mut self, _: u64) -> Option<u32> {
        None
    }
}

impl Cpu {
    pub(crate) fn jit_turn(&mut self, _: &mut CodeCache, _: u32, _: u64) -> Option<Turn> {
        None
    }
}
