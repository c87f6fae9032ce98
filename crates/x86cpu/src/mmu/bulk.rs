//! Whole runs of bytes for REP MOVS and REP STOS: page by page, only where nothing can fault.

use super::{Intent, PAGE_MASK};
use crate::cpu::Cpu;

/// Bytes up to the end of the page, at most `len`.
fn room(lin: u64, len: usize) -> usize {
    len.min(4096 - (lin & !PAGE_MASK) as usize)
}

impl Cpu {
    /// Copies forward at most `len` bytes within one page on either side, as byte-by-byte copying
    /// in ascending order would; gives the bytes copied. 0: go element by element (a fault, a
    /// device, or an overlap that repeats).
    pub(crate) fn copy_chunk(&mut self, dst: u64, src: u64, len: usize) -> usize {
        let len = room(dst, room(src, len));
        if self.mmu.hit_copy(dst, src, len) {
            return len;
        }
        if !self.try_open(src, Intent::Read) || !self.try_open(dst, Intent::Write) {
            return 0;
        }
        if self.mmu.hit_copy(dst, src, len) || self.copy_apart(dst, src, len) { len } else { 0 }
    }

    /// The copy of two pages that share a TLB slot and so push each other out.
    #[cold]
    fn copy_apart(&mut self, dst: u64, src: u64, len: usize) -> bool {
        let user = self.cpl == 3;
        let Ok(from) = self.mmu.translate(src, Intent::Read, user) else { return false };
        let Ok(to) = self.mmu.translate(dst, Intent::Write, user) else { return false };
        let ahead = to.wrapping_sub(from);
        let mut buffer = [0; 4096];
        let ram = self.memory.is_ram(to, len as u64);
        if !ram || (ahead != 0 && ahead < len as u64) || self.memory.read(from, &mut buffer[..len]).is_err() {
            return false;
        }
        self.store_phys(to, &buffer[..len]).is_ok()
    }

    /// Stores the low `elem` bytes of `pattern` over at most `len` bytes within one page; gives the
    /// bytes stored, a multiple of `elem`. 0: go element by element.
    pub(crate) fn fill_chunk(&mut self, dst: u64, pattern: u64, elem: usize, len: usize) -> usize {
        let len = room(dst, len) / elem * elem;
        if len == 0 {
            return 0;
        }
        if self.mmu.hit_fill(dst, pattern, elem, len) {
            return len;
        }
        if self.try_open(dst, Intent::Write) && self.mmu.hit_fill(dst, pattern, elem, len) { len } else { 0 }
    }
}
