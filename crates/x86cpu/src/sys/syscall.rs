//! SYSCALL, SYSRET, SWAPGS (SDM vol. 3, 5.8.8). SYSENTER is not offered by any CPU template: #UD.

use arch::x86_64::regs::{Rflags, gpr, seg};
use arch::x86_64::state::Segment;

use crate::cpu::{Cpu, Trap};
use crate::mmu::is_canonical;

/// Flat code for 64-bit mode, accessed, readable; DPL is added.
const CODE_64: u32 = 0xa09b;
/// Flat code for compatibility mode.
const CODE_32: u32 = 0xc09b;
const DATA: u32 = 0xc093;

fn flat(selector: u16, attr: u32, dpl: u16) -> Segment {
    Segment { selector: (selector & !3) | dpl, base: 0, limit: u32::MAX, attr: attr | u32::from(dpl) << 5 }
}

impl Cpu {
    /// SYSCALL; in 64-bit mode only, as on the processors that the template is modelled on.
    pub(crate) fn syscall(&mut self) -> Result<(), Trap> {
        if !self.is_long() || !self.syscall_enabled() {
            return Err(Trap::UD);
        }
        let selector = (self.msrs.star >> 32) as u16;
        self.gpr[gpr::RCX] = self.rip;
        let flags = self.rflags() & !Rflags::RF.bits();
        self.gpr[gpr::R11] = flags;
        self.rip = self.msrs.lstar;
        self.set_rflags(flags & !self.msrs.fmask);
        self.seg[seg::CS] = flat(selector, CODE_64, 0);
        self.seg[seg::SS] = flat(selector.wrapping_add(8), DATA, 0);
        self.update_mode();
        Ok(())
    }

    /// SYSRET to 64-bit mode (`size` 8) or compatibility mode.
    pub(crate) fn sysret(&mut self, size: u8) -> Result<(), Trap> {
        if !self.is_long() || !self.syscall_enabled() {
            return Err(Trap::UD);
        }
        let target = self.gpr[gpr::RCX];
        if self.cpl != 0 || (size == 8 && !is_canonical(target)) {
            return Err(Trap::gp(0));
        }
        let selector = (self.msrs.star >> 48) as u16;
        const KEPT: u64 = 0x3c_7fd7;
        self.set_rflags(self.gpr[gpr::R11] & KEPT & !Rflags::RF.bits());
        if size == 8 {
            self.rip = target;
            self.seg[seg::CS] = flat(selector.wrapping_add(16), CODE_64, 3);
        } else {
            self.rip = target & 0xffff_ffff;
            self.seg[seg::CS] = flat(selector, CODE_32, 3);
        }
        self.seg[seg::SS] = flat(selector.wrapping_add(8), DATA, 3);
        self.update_mode();
        Ok(())
    }

    pub(crate) fn sysenter(&mut self) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    pub(crate) fn sysexit(&mut self, _size: u8) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    pub(crate) fn swapgs(&mut self) -> Result<(), Trap> {
        if !self.is_long() {
            return Err(Trap::UD);
        }
        if self.cpl != 0 {
            return Err(Trap::gp(0));
        }
        std::mem::swap(&mut self.seg[seg::GS].base, &mut self.msrs.kernel_gs_base);
        Ok(())
    }
}
