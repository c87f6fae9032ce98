//! Save and restore.

use crate::cpu::Cpu;

/// A saved state that no CPU could be in.
#[derive(Debug)]
pub struct BadState(pub String);

impl Cpu {
    pub(crate) fn reset(&mut self) {}
}
