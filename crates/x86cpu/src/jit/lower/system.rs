//! CLI, STI, SWAPGS, PUSHF: what a kernel does at every entry and around every lock. Only for privilege level 0;
//! elsewhere the interpreter finds out what they are.

use arch::x86_64::regs::Rflags;

use super::super::emit::{Emit, Mem, Rm, cc};
use super::super::plan::bit;
use super::super::regs::{self, T0, T1, TMP, TMP2, field};
use super::Gen;
use crate::ops::alu::{AND, CMP, OR};
use crate::ops::bits::BTR;

const IF: i32 = Rflags::IF.bits() as i32;
/// Number of RF, which PUSHF does not show.
const RF: u8 = Rflags::RF.bits().trailing_zeros() as u8;

impl<E: Emit> Gen<E> {
    fn only_at_level_0(&mut self) {
        self.a.alu_imm(1, CMP, field(regs::CPL), 0);
        self.step_if(cc::NE);
        self.host = bit::NONE;
    }

    pub(super) fn cli(&mut self) {
        self.only_at_level_0();
        self.a.alu_imm(4, AND, field(regs::SYSTEM_FLAGS), !IF);
    }

    /// What comes next is done at once: nothing looks for interrupts before it, so that it needs no shadow. Where one
    /// is due already, the interpreter does it.
    pub(super) fn sti(&mut self) {
        self.only_at_level_0();
        self.a.test_imm(4, field(regs::SYSTEM_FLAGS), IF);
        let already = self.a.jcc(cc::NE);
        let site = self.new_site(0, false);
        self.a.mov_imm(T1, u64::from(self.place.first_site + site));
        let call = self.a.call();
        self.lead_to(call, self.place.thunks.enable);
        self.a.bind(already);
    }

    pub(super) fn swapgs(&mut self) {
        let (gs, other) =
            (field(regs::segment_base(arch::x86_64::regs::seg::GS as u8)), field(regs::KERNEL_GS));
        self.only_at_level_0();
        self.a.load(8, T0, gs);
        self.a.load(8, T1, other);
        self.a.store(8, T1, gs);
        self.a.store(8, T0, other);
    }

    pub(super) fn pushf(&mut self) {
        self.below_stack();
        self.a.store(8, T0, field(TMP2));
        self.exact_flags(self.place.thunks.collapse);
        self.a.load(8, T1, field(TMP));
        self.a.alu(8, OR, T1, field(regs::SYSTEM_FLAGS));
        self.a.bit_test_imm(8, BTR, Rm::Reg(T1), RF);
        self.a.load(8, T0, field(TMP2));
        self.a.store(8, T1, Rm::Mem(Mem::at(T0, 0)));
        self.move_sp(-8);
        self.host = bit::NONE;
    }
}
