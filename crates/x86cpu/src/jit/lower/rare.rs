//! Double shifts, rotations by CL, CRC32, bit strings in memory, CMPXCHG8B and CMPXCHG16B.

use super::super::cc::{Desc, Loc, op, over};
use super::super::emit::{Emit, Mem, Rm, cc};
use super::super::plan::{bit, double_count, operand_size};
use super::super::regs::{self, RCX, T0, T1, TMP2, field, home};
use super::super::scan::Item;
use super::Gen;
use super::alu::{gpr, is_reg};
use super::flags::log2;
use crate::ops::{bits, shifts};

/// Mask of a shift's count.
fn count_mask(size: u8) -> u8 {
    if size == 8 { 63 } else { 31 }
}

impl<E: Emit> Gen<E> {
    /// SHLD, SHRD of registers.
    pub(super) fn double_shift(&mut self, item: &Item, left: bool) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let (d, s) = (gpr(insn, 0), gpr(insn, 1));
        let kind = if left { op::SHLD } else { op::SHRD } | log2(size);
        let count = double_count(insn);
        if item.need {
            if count.is_none() {
                self.settle();
            }
            let unless_zero = count.is_none().then(|| self.if_count(size));
            let r = self.value(d, T0);
            self.a.store(8, r, field(regs::CC_A));
            let r = self.value(s, T1);
            self.a.store(8, r, field(regs::CC_C));
            if let Some(zero) = unless_zero {
                self.a.load(4, T1, Rm::Reg(RCX));
                self.a.alu_imm(4, 4, Rm::Reg(T1), i32::from(count_mask(size)));
                self.a.store(8, T1, field(regs::CC_B));
                self.a.store_imm(2, field(regs::CC_OP), i32::from(kind));
                self.a.bind(zero);
                self.desc = Desc::UNKNOWN;
            }
        }
        let (r, s) = (self.value(d, T0), self.value(s, T1));
        self.a.double_shift(size, left, r, s, count);
        if r == T0 {
            self.a.store(8, T0, home(d));
        }
        self.host = item.plan.gives(insn);
        if let (true, Some(n)) = (item.need, count) {
            self.desc = Desc::of(kind, Loc::Slot, Loc::Imm(i32::from(n)));
        }
    }

    /// A jump that is taken when the count in CL is zero.
    fn if_count(&mut self, size: u8) -> super::Jump {
        self.a.test_imm(1, Rm::Reg(RCX), i32::from(count_mask(size)));
        self.a.jcc(cc::E)
    }

    /// ROL, ROR of a register other than RCX: a count of zero changes no flag.
    pub(super) fn rotate_by_cl(&mut self, item: &Item, operation: u8) {
        let size = operand_size(&item.insn, 0);
        let g = gpr(&item.insn, 0);
        if item.need {
            self.exact_flags(self.place.thunks.collapse);
        }
        let r = self.value(g, T0);
        self.a.shift_by_cl(size, operation, r);
        if r == T0 {
            self.a.store(8, T0, home(g));
        }
        if item.need {
            let later = if operation == shifts::ROL { over::ROL } else { over::ROR };
            let zero = self.if_count(size);
            self.a.store(8, r, field(regs::CC_R));
            self.a.store_imm(1, field(regs::CC_OVER), i32::from(later | log2(size)));
            self.a.bind(zero);
            self.desc = Desc::UNKNOWN;
        }
        self.host = bit::NONE;
    }

    /// Calls a thunk that brings the flags together in `Cpu::flags`. T0 and T1 are lost.
    pub(super) fn exact_flags(&mut self, thunk: usize) {
        let desc = self.desc;
        self.store_desc(desc);
        let call = self.a.call();
        self.lead_to(call, thunk);
        self.desc = Desc::IN_MEMORY;
    }

    pub(super) fn crc32(&mut self, item: &Item) {
        let insn = &item.insn;
        let from = operand_size(insn, 1);
        let d = gpr(insn, 0);
        let source = self.factor(item, 1, from);
        let r = self.value(d, T1);
        self.a.crc32(from, operand_size(insn, 0) == 8, r, source);
        if r == T1 {
            self.a.store(8, T1, home(d));
        }
    }

    /// BT BTS BTR BTC of memory with the offset in a register of 4 or 8 bytes.
    pub(super) fn bit_test_far(&mut self, item: &Item, kind: u8) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let s = gpr(insn, 1);
        if item.need {
            self.begin_over(over::CF);
        }
        self.address(insn);
        let r = self.value(s, T1);
        if size == 4 {
            self.a.extend(8, 4, true, T1, Rm::Reg(r));
        } else if r != T1 {
            self.a.mov(T1, r);
        }
        // The word that the bit is in: bits to bytes, rounded down.
        self.a.shift(8, shifts::SAR, Rm::Reg(T1), 3);
        self.a.alu_imm(8, 4, Rm::Reg(T1), -i32::from(size));
        self.a.alu(8, 0, T0, Rm::Reg(T1));
        let m = Rm::Mem(self.lookup(size, kind != bits::BT, insn.has_lock_prefix()));
        let r = self.value(s, T1);
        if r != T1 {
            self.a.mov(T1, r);
        }
        self.a.alu_imm(4, 4, Rm::Reg(T1), i32::from(8 * size - 1));
        if kind == bits::BT {
            self.a.load(size, T0, m);
            self.a.bit_test(size, kind, Rm::Reg(T0), T1);
        } else {
            if insn.has_lock_prefix() {
                self.a.lock();
            }
            self.a.bit_test(size, kind, m, T1);
        }
        self.host = bit::CF;
        if item.need {
            self.a.set(cc::B, field(regs::CC_R));
            self.desc = Desc { over: over::CF, r: Loc::Slot, ..self.desc };
        }
    }

    /// CMPXCHG8B and CMPXCHG16B, always locked, which is allowed: only ZF changes.
    pub(super) fn compare_pair(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = insn.memory_size().size() as u8;
        self.address(insn);
        let m = Rm::Mem(self.lookup(size, true, true));
        if item.need {
            self.a.store(8, T0, field(TMP2));
            self.exact_flags(self.place.thunks.flags);
            self.a.load(8, T0, field(TMP2));
        }
        self.a.compare_exchange_pair(size, m);
        self.host = bit::ZF;
        if item.need {
            self.host = bit::ALL;
            self.save_image();
        }
        debug_assert!(!is_reg(insn, 0) && matches!(m, Rm::Mem(Mem { base: T0, .. })));
    }
}
