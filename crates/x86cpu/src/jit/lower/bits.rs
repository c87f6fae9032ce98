//! Shifts, multiplication and division, bit tests and scans, widening.

use iced_x86::{Code, OpKind};

use super::super::asm::{Mem, NONE, P66, Rm, cc};
use super::super::cc::{Desc, Loc, op, over};
use super::super::plan::{Plan, bit, operand_size, shift_count};
use super::super::regs::{self, RAX, RCX, RDX, T0, T1, field, home};
use super::super::scan::Item;
use super::Gen;
use super::alu::{gpr, is_reg};
use super::flags::log2;
use crate::ops::{bits, shifts};

impl Gen {
    pub(super) fn shift(&mut self, item: &Item, operation: u8) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let rotates = operation == shifts::ROL || operation == shifts::ROR;
        let (later, kind) = match operation {
            shifts::ROL => (over::ROL, 0),
            shifts::ROR => (over::ROR, 0),
            shifts::SHL => (0, op::SHL),
            shifts::SHR => (0, op::SHR),
            _ => (0, op::SAR),
        };
        let Some(n) = shift_count(insn) else { return self.shift_by_cl(item, operation, kind) };
        // The manual's encoding of SAL is that of SHL.
        let need = item.need && n != 0;
        if need && rotates {
            self.begin_over(later);
        }
        let scratch = self.spare();
        let (r, m) = if is_reg(insn, 0) {
            (self.value(gpr(insn, 0), scratch), None)
        } else {
            let m = self.memory(insn, size, true);
            self.a.load(size, T1, m);
            (T1, Some(m))
        };
        if need && !rotates {
            self.a.store(8, r, field(regs::CC_A));
        }
        self.a.group(size, 0xc0, operation, Rm::Reg(r));
        self.a.byte(n);
        match m {
            Some(m) => self.a.store(size, r, m),
            None if r == scratch => {
                self.a.store(if size < 4 { size } else { 8 }, scratch, home(gpr(insn, 0)));
            }
            None => {}
        }
        if n == 0 {
            return;
        }
        self.host = item.plan.gives(insn);
        if need && rotates {
            let loc = if item.keep && m.is_none() {
                Loc::Gpr(gpr(insn, 0))
            } else {
                self.a.store(8, r, field(regs::CC_R));
                Loc::Slot
            };
            self.desc = Desc { over: later | log2(size), r: loc, ..self.desc };
        } else if need {
            self.desc = Desc::of(kind | log2(size), Loc::Slot, Loc::Imm(i32::from(n)));
        }
    }

    /// SHL, SHR, SAR of a register: a count of zero changes no flag.
    fn shift_by_cl(&mut self, item: &Item, operation: u8, kind: u8) {
        let size = operand_size(&item.insn, 0);
        let g = gpr(&item.insn, 0);
        if item.need {
            self.settle();
            let mask = if size == 8 { 63 } else { 31 };
            self.a.group(1, 0xf6, 0, Rm::Reg(RCX));
            self.a.byte(mask);
            let zero = self.a.jcc(cc::E);
            let r = self.value(g, T0);
            self.a.store(8, r, field(regs::CC_A));
            self.a.load(4, T1, Rm::Reg(RCX));
            self.a.alu_imm(4, 4, Rm::Reg(T1), i32::from(mask));
            self.a.store(8, T1, field(regs::CC_B));
            self.a.store_imm(2, field(regs::CC_OP), i32::from(kind | log2(size)));
            self.a.bind(zero);
            self.desc = Desc::UNKNOWN;
        }
        let r = self.value(g, T0);
        self.a.group(size, 0xd2, operation, Rm::Reg(r));
        if r == T0 {
            self.a.store(8, T0, home(g));
        }
        self.host = bit::NONE;
    }

    /// The source of a multiplication or division: operand `i` as something to encode.
    pub(super) fn factor(&mut self, item: &Item, i: u32, size: u8) -> Rm {
        if is_reg(&item.insn, i) {
            self.operand(gpr(&item.insn, i))
        } else {
            self.memory(&item.insn, size, false)
        }
    }

    /// IMUL with two or three operands.
    pub(super) fn imul(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let d = gpr(insn, 0);
        let source = self.factor(item, 1, size);
        let constant = (insn.op_count() == 3).then(|| insn.immediate(2) as i32);
        if item.need {
            self.a.load(size, T1, source);
            self.a.store(8, T1, field(regs::CC_B));
            match constant {
                Some(v) => self.a.store_imm(8, field(regs::CC_A), v),
                None => {
                    let r = self.value(d, T1);
                    self.a.store(8, r, field(regs::CC_A));
                }
            }
        }
        let prefix = if size == 2 { P66 } else { NONE };
        let pinned = regs::pinned(d);
        let r = pinned.unwrap_or(T1);
        match constant {
            Some(v) => {
                if size == 2 && pinned.is_none() {
                    self.a.load(8, T1, home(d));
                }
                self.a.op(prefix, size == 8, false, &[0x69], r, source);
                self.a.imm(size, v);
            }
            None => {
                let r = self.value(d, T1);
                self.a.wide_op(size, 0xaf, r, source);
            }
        }
        if pinned.is_none() {
            self.a.store(8, T1, home(d));
        }
        self.host = item.plan.gives(insn);
        if item.need {
            self.desc = Desc::of(op::IMUL | log2(size), Loc::Slot, Loc::Slot);
        }
    }

    /// MUL and IMUL with one operand.
    pub(super) fn mul(&mut self, item: &Item, signed: bool) {
        let size = operand_size(&item.insn, 0);
        let source = self.factor(item, 0, size);
        if item.need {
            self.a.load(size, T1, source);
            self.a.store(8, T1, field(regs::CC_B));
            self.a.store(8, RAX, field(regs::CC_A));
        }
        self.a.group(size, 0xf6, 4 + u8::from(signed), source);
        self.host = item.plan.gives(&item.insn);
        if item.need {
            let kind = if signed { op::IMUL } else { op::MUL };
            self.desc = Desc::of(kind | log2(size), Loc::Slot, Loc::Slot);
        }
    }

    /// DIV and IDIV of 4 and 8 bytes. What could overflow is left to the interpreter: here the quotient
    /// is known to fit.
    pub(super) fn div(&mut self, item: &Item, signed: bool) {
        let size = operand_size(&item.insn, 0);
        let source = self.factor(item, 0, size);
        self.a.load(size, T0, source);
        if signed {
            self.a.load(size, T1, Rm::Reg(RAX));
            self.a.group(size, 0xc1, 7, Rm::Reg(T1));
            self.a.byte(8 * size - 1);
            self.a.alu(size, 7, T1, Rm::Reg(RDX));
            self.step_if(cc::NE);
            // 0 and -1: what is left when one is added is below 2.
            self.a.lea(T1, Mem::at(T0, 1));
            self.a.alu_imm(size, 7, Rm::Reg(T1), 2);
            self.step_if(cc::B);
        } else {
            self.a.alu(size, 7, RDX, Rm::Reg(T0));
            self.step_if(cc::AE);
        }
        self.a.group(size, 0xf6, 6 + u8::from(signed), Rm::Reg(T0));
        self.host = bit::NONE;
    }

    pub(super) fn bit_test(&mut self, item: &Item, kind: u8) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let writes = kind != bits::BT;
        if item.need {
            self.begin_over(over::CF);
        }
        if is_reg(insn, 0) {
            let r = self.value(gpr(insn, 0), T0);
            if is_reg(insn, 1) {
                let s = self.value(gpr(insn, 1), T1);
                // BT BTS BTR BTC: A3 AB B3 BB.
                self.a.wide_op(size, 0xa3 + 8 * kind, s, Rm::Reg(r));
            } else {
                self.a.wide_op(size, 0xba, 4 + kind, Rm::Reg(r));
                self.a.byte(insn.immediate(1) as u8);
            }
            if writes && r == T0 {
                self.a.store(if size < 4 { size } else { 8 }, T0, home(gpr(insn, 0)));
            }
        } else {
            let m = self.memory(insn, size, writes);
            if insn.has_lock_prefix() {
                self.a.byte(0xf0);
            }
            self.a.wide_op(size, 0xba, 4 + kind, m);
            // The offset is taken modulo the size, so that the byte is in the operand.
            self.a.byte(insn.immediate(1) as u8 & (8 * size - 1));
        }
        self.host = bit::CF;
        if item.need {
            self.a.op(NONE, false, false, &[0x0f, 0x92], 0, field(regs::CC_R));
            self.desc = Desc { over: over::CF, r: Loc::Slot, ..self.desc };
        }
    }

    pub(super) fn bit_scan(&mut self, item: &Item, reverse: bool) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let d = gpr(insn, 0);
        let source = self.factor(item, 1, size);
        if item.need {
            self.a.load(size, T1, source);
            self.a.store(8, T1, field(regs::CC_A));
        }
        // A source of zero leaves the destination alone.
        let r = self.value(d, T1);
        self.a.wide_op(size, 0xbc + u8::from(reverse), r, source);
        if r == T1 {
            self.a.store(8, T1, home(d));
        }
        self.host = item.plan.gives(insn);
        if item.need {
            self.desc = Desc::of(op::LOGIC | log2(size), Loc::Slot, Loc::Slot);
        }
    }

    pub(super) fn popcnt(&mut self, item: &Item) {
        let size = operand_size(&item.insn, 0);
        let d = gpr(&item.insn, 0);
        let source = self.factor(item, 1, size);
        let r = self.value(d, T1);
        // The mandatory prefix comes before the operand size's.
        if size == 2 {
            self.a.byte(P66);
        }
        self.a.op(0xf3, size == 8, false, &[0x0f, 0xb8], r, source);
        if r == T1 {
            self.a.store(8, T1, home(d));
        }
        self.host = bit::ALL;
        if item.need {
            self.save_image();
        }
    }

    pub(super) fn bswap(&mut self, item: &Item) {
        let wide = operand_size(&item.insn, 0) == 8;
        let g = gpr(&item.insn, 0);
        let r = self.value(g, T0);
        if wide || r > 7 {
            self.a.byte(0x40 | u8::from(wide) << 3 | r >> 3);
        }
        self.a.bytes(&[0x0f, 0xc8 | r & 7]);
        if r == T0 {
            self.a.store(8, T0, home(g));
        }
    }

    /// CBW CWDE CDQE, CWD CDQ CQO: RAX and RDX are where the host expects them.
    pub(super) fn widen(&mut self, item: &Item) {
        match item.insn.code() {
            Code::Cbw | Code::Cwd => self.a.byte(P66),
            Code::Cdqe | Code::Cqo => self.a.byte(0x48),
            _ => {}
        }
        self.a.byte(if item.plan == Plan::Widen { 0x98 } else { 0x99 });
        debug_assert!(item.insn.op_count() == 0 || item.insn.op_kind(0) == OpKind::Register);
    }
}
