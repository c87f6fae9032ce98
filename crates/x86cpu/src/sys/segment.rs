//! Loading and asking about segments: MOV/POP Sreg, LDTR and TR, LAR and its family, FS/GS bases.

use arch::x86_64::regs::{Cr4, Efer, seg};
use arch::x86_64::state::TableReg;

use super::descriptor::{Descriptor, attr, index, is_null, np, null_segment, rpl, system};
use crate::cpu::{Cpu, Mode, Trap};
use crate::mmu::is_canonical;

impl Cpu {
    /// MOV to a segment register other than CS, and its relatives (SDM vol. 2, MOV).
    pub(crate) fn load_segment(&mut self, number: usize, selector: u16) -> Result<(), Trap> {
        if number == seg::CS || number > seg::GS {
            return Err(Trap::UD);
        }
        if self.mode == Mode::Real16 {
            self.seg[number].selector = selector;
            self.seg[number].base = u64::from(selector) << 4;
            return Ok(());
        }
        if number == seg::SS {
            self.seg[seg::SS] = self.stack_segment(selector, self.cpl, Trap::gp)?;
            return Ok(());
        }
        if is_null(selector) {
            self.seg[number] = null_segment(selector, 0);
            return Ok(());
        }
        let mut descriptor = self.read_descriptor(selector)?;
        let bad = !descriptor.is_readable()
            || (!descriptor.is_conforming() && rpl(selector).max(self.cpl) > descriptor.dpl());
        if bad {
            return Err(Trap::gp(index(selector)));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(np(index(selector)));
        }
        self.touch_descriptor(&mut descriptor)?;
        self.seg[number] = descriptor.segment(selector);
        Ok(())
    }

    /// Checks a stack selector for privilege `cpl` and gives the register. `fault` makes the fault for
    /// a bad selector: #GP for loads, #TS for stacks from a TSS.
    pub(super) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        fault: fn(u16) -> Trap,
    ) -> Result<arch::x86_64::state::Segment, Trap> {
        if is_null(selector) {
            let allowed = self.is_long() && cpl < 3 && rpl(selector) == cpl;
            return if allowed { Ok(null_segment(selector, cpl)) } else { Err(fault(0)) };
        }
        let Some(mut descriptor) = self.find_descriptor(selector)? else {
            return Err(fault(index(selector)));
        };
        if rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return Err(fault(index(selector)));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(Trap::ss(index(selector)));
        }
        self.touch_descriptor(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    fn supervisor(&self) -> Result<(), Trap> {
        if self.cpl == 0 { Ok(()) } else { Err(Trap::gp(0)) }
    }

    /// Instructions that exist in protected mode only.
    fn protected(&self) -> Result<(), Trap> {
        if self.mode == Mode::Real16 { Err(Trap::UD) } else { Ok(()) }
    }

    /// SGDT and its relatives fault outside of the supervisor when CR4.UMIP is set.
    fn visible_to_user(&self) -> Result<(), Trap> {
        if self.cpl != 0 && self.cr4 & Cr4::UMIP.bits() != 0 { Err(Trap::gp(0)) } else { Ok(()) }
    }

    pub(crate) fn lldt(&mut self, selector: u16) -> Result<(), Trap> {
        self.protected()?;
        self.supervisor()?;
        if is_null(selector) {
            self.ldtr = null_segment(selector, 0);
            return Ok(());
        }
        let (descriptor, high) = self.system_descriptor(selector)?;
        if descriptor.system() != Some(system::LDT) {
            return Err(Trap::gp(index(selector)));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(np(index(selector)));
        }
        self.ldtr = descriptor.segment(selector);
        self.ldtr.base |= high;
        Ok(())
    }

    pub(crate) fn ltr(&mut self, selector: u16) -> Result<(), Trap> {
        self.protected()?;
        self.supervisor()?;
        if is_null(selector) {
            return Err(Trap::gp(0));
        }
        let (mut descriptor, high) = self.system_descriptor(selector)?;
        if descriptor.system() != Some(system::TSS_AVAILABLE) {
            return Err(Trap::gp(index(selector)));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(np(index(selector)));
        }
        descriptor.attr = (descriptor.attr & !0xf) | system::TSS_BUSY;
        self.write_sys_u8(descriptor.at.wrapping_add(5), descriptor.attr as u8)?;
        self.tr = descriptor.segment(selector);
        self.tr.base |= high;
        Ok(())
    }

    /// An LDT or TSS descriptor of the GDT with the upper half of its base.
    fn system_descriptor(&mut self, selector: u16) -> Result<(Descriptor, u64), Trap> {
        let bad = Trap::gp(index(selector));
        if selector & 4 != 0 {
            return Err(bad);
        }
        let descriptor = self.read_descriptor(selector)?;
        if !self.in_long_mode() {
            return Ok((descriptor, 0));
        }
        if u32::from(selector & 0xfff8) + 15 > u32::from(self.gdtr.limit) {
            return Err(bad);
        }
        let high =
            self.read_high_base(&descriptor).map_err(|trap| if trap == Trap::gp(0) { bad } else { trap })?;
        if !is_canonical(high | descriptor.base()) {
            return Err(bad);
        }
        Ok((descriptor, high))
    }

    pub(crate) fn sldt(&mut self) -> Result<u16, Trap> {
        self.protected()?;
        self.visible_to_user()?;
        Ok(self.ldtr.selector)
    }

    pub(crate) fn str_insn(&mut self) -> Result<u16, Trap> {
        self.protected()?;
        self.visible_to_user()?;
        Ok(self.tr.selector)
    }

    /// LGDT of the pseudo-descriptor at `lin`; `size` is the operand size: 2 keeps 24 bits of the
    /// base, 4 all 32, 8 reads 64.
    pub(crate) fn lgdt(&mut self, lin: u64, size: u8) -> Result<(), Trap> {
        self.gdtr = self.load_table(lin, size)?;
        Ok(())
    }

    pub(crate) fn lidt(&mut self, lin: u64, size: u8) -> Result<(), Trap> {
        self.idtr = self.load_table(lin, size)?;
        Ok(())
    }

    fn load_table(&mut self, lin: u64, size: u8) -> Result<TableReg, Trap> {
        self.supervisor()?;
        let limit = self.read_u16(lin)?;
        let at = lin.wrapping_add(2);
        let base = if self.is_long() {
            self.read_u64(at)?
        } else {
            let base = u64::from(self.read_u32(at)?);
            if size == 2 { base & 0xff_ffff } else { base }
        };
        if !is_canonical(base) {
            return Err(Trap::gp(0));
        }
        Ok(TableReg { base, limit })
    }

    pub(crate) fn sgdt(&mut self, lin: u64) -> Result<(), Trap> {
        self.store_table(lin, self.gdtr)
    }

    pub(crate) fn sidt(&mut self, lin: u64) -> Result<(), Trap> {
        self.store_table(lin, self.idtr)
    }

    fn store_table(&mut self, lin: u64, table: TableReg) -> Result<(), Trap> {
        self.visible_to_user()?;
        let mut raw = [0; 10];
        raw[..2].copy_from_slice(&table.limit.to_le_bytes());
        raw[2..].copy_from_slice(&table.base.to_le_bytes());
        let len = if self.is_long() { 10 } else { 6 };
        self.store_bytes(lin, &raw[..len], self.cpl == 3)
    }

    /// The descriptor that LAR, LSL, VERR and VERW look at, when they may see it.
    fn visible_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Trap> {
        self.protected()?;
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.find_descriptor(selector)? else { return Ok(None) };
        let hidden = !descriptor.is_conforming() && rpl(selector).max(self.cpl) > descriptor.dpl();
        Ok((!hidden).then_some(descriptor))
    }

    /// Access rights; `None` clears ZF (SDM vol. 2, LAR).
    pub(crate) fn lar(&mut self, selector: u16) -> Result<Option<u32>, Trap> {
        let Some(descriptor) = self.visible_descriptor(selector)? else { return Ok(None) };
        let known: &[u32] = if self.in_long_mode() { &[2, 9, 11, 12] } else { &[1, 2, 3, 4, 5, 9, 11, 12] };
        let good = descriptor.system().is_none_or(|kind| known.contains(&kind));
        Ok(good.then_some((descriptor.raw >> 32) as u32 & 0x00ff_ff00))
    }

    /// Limit in bytes; `None` clears ZF (SDM vol. 2, LSL).
    pub(crate) fn lsl(&mut self, selector: u16) -> Result<Option<u32>, Trap> {
        let Some(descriptor) = self.visible_descriptor(selector)? else { return Ok(None) };
        let known: &[u32] = if self.in_long_mode() { &[2, 9, 11] } else { &[1, 2, 3, 9, 11] };
        let good = descriptor.system().is_none_or(|kind| known.contains(&kind));
        Ok(good.then_some(descriptor.limit()))
    }

    pub(crate) fn verr(&mut self, selector: u16) -> Result<bool, Trap> {
        Ok(self.visible_descriptor(selector)?.is_some_and(|d| d.is_readable()))
    }

    pub(crate) fn verw(&mut self, selector: u16) -> Result<bool, Trap> {
        Ok(self.visible_descriptor(selector)?.is_some_and(|d| d.is_writable_data()))
    }

    fn fs_gs_base_allowed(&self) -> Result<(), Trap> {
        if self.is_long() && self.cr4 & Cr4::FSGSBASE.bits() != 0 { Ok(()) } else { Err(Trap::UD) }
    }

    /// RDFSBASE, RDGSBASE.
    pub(crate) fn rd_fs_gs_base(&mut self, number: usize) -> Result<u64, Trap> {
        self.fs_gs_base_allowed()?;
        Ok(self.seg[number].base)
    }

    /// WRFSBASE, WRGSBASE.
    pub(crate) fn wr_fs_gs_base(&mut self, number: usize, value: u64) -> Result<(), Trap> {
        self.fs_gs_base_allowed()?;
        if !is_canonical(value) {
            return Err(Trap::gp(0));
        }
        self.seg[number].base = value;
        Ok(())
    }

    /// Whether SYSCALL and SYSRET are on.
    pub(super) fn syscall_enabled(&self) -> bool {
        self.msrs.efer & Efer::SCE.bits() != 0
    }
}
