//! No translation on this host.

use std::io::{self, Read, Write};

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

    pub(crate) fn adopt(&mut self, _: &mut Cpu, _: KeptCode) -> bool {
        false
    }

    pub(crate) fn at(&mut self, _: u64) -> Option<u32> {
        None
    }
}

/// Nothing: there are no tables for code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CodePlaces(());

/// Nothing: there are no translations.
#[derive(Debug)]
pub struct KeptCode(());

impl KeptCode {
    /// None.
    ///
    /// # Errors
    /// Never.
    pub fn read(_: &mut dyn Read, _: CodePlaces) -> io::Result<Option<Self>> {
        Ok(None)
    }
}

impl Cpu {
    /// Nothing.
    pub fn code_places(&mut self) -> CodePlaces {
        CodePlaces(())
    }

    /// Writes nothing.
    ///
    /// # Errors
    /// Never.
    pub fn keep_code(&mut self, _: &mut dyn Write) -> io::Result<bool> {
        Ok(false)
    }

    /// Does nothing.
    pub fn adopt(&mut self, _: KeptCode) -> bool {
        false
    }

    pub(crate) fn jit_turn(&mut self, _: &mut CodeCache, _: u32, _: u64) -> Option<Turn> {
        None
    }
}
