//! Shifts, multiplication and division, bit tests and scans, widening.

use iced_x86::{Code, OpKind};

use super::super::cc::{Desc, Loc, op, over};
use super::super::emit::{Emit, Mem, Rm, cc};
use super::super::plan::{Plan, bit, operand_size, shift_count};
use super::super::regs::{self, RAX, RCX, RDX, T0, T1, field, home};
use super::super::scan::Item;
use super::Gen;
use super::alu::{gpr, is_reg};
use super::flags::log2;
use crate::ops::{bits, shifts};

impl<E: Emit> Gen<E> {
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
        self.a.shift(size, operation, Rm::Reg(r), n);
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
            self.a.test_imm(1, Rm::Reg(RCX), mask);
            let zero = self.a.jcc(cc::E);
            let r = self.value(g, T0);
            self.a.store(8, r, field(regs::CC_A));
            self.a.load(4, T1, Rm::Reg(RCX));
            self.a.alu_imm(4, 4, Rm::Reg(T1), mask);
            self.a.store(8, T1, field(regs::CC_B));
            self.a.store_imm(2, field(regs::CC_OP), i32::from(kind | log2(size)));
            self.a.bind(zero);
            self.desc = Desc::UNKNOWN;
        }
        let r = self.value(g, T0);
        self.a.shift_by_cl(size, operation, r);
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
        let pinned = regs::pinned(d);
        let r = pinned.unwrap_or(T1);
        match constant {
            Some(v) => {
                if size == 2 && pinned.is_none() {
                    self.a.load(8, T1, home(d));
                }
                self.a.imul_imm(size, r, source, v);
            }
            None => {
                let r = self.value(d, T1);
                self.a.imul(size, r, source);
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
        self.a.mul(size, signed, source);
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
            self.a.shift(size, shifts::SAR, Rm::Reg(T1), 8 * size - 1);
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
        self.a.div(size, signed, T0);
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
                self.a.bit_test(size, kind, Rm::Reg(r), s);
            } else {
                self.a.bit_test_imm(size, kind, Rm::Reg(r), insn.immediate(1) as u8);
            }
            if writes && r == T0 {
                self.a.store(if size < 4 { size } else { 8 }, T0, home(gpr(insn, 0)));
            }
        } else {
            let m = self.memory(insn, size, writes);
            if insn.has_lock_prefix() {
                self.a.lock();
            }
            // The offset is taken modulo the size, so that the byte is in the operand.
            self.a.bit_test_imm(size, kind, m, insn.immediate(1) as u8 & (8 * size - 1));
        }
        self.host = bit::CF;
        if item.need {
            self.a.set(cc::B, field(regs::CC_R));
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
        self.a.bit_scan(size, reverse, r, source);
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
        self.a.popcnt(size, r, source);
        if r == T1 {
            self.a.store(8, T1, home(d));
        }
        self.host = bit::ALL;
        if item.need {
            self.save_image();
        }
    }

    pub(super) fn bswap(&mut self, item: &Item) {
        let g = gpr(&item.insn, 0);
        let r = self.value(g, T0);
        self.a.swap_bytes(operand_size(&item.insn, 0), r);
        if r == T0 {
            self.a.store(8, T0, home(g));
        }
    }

    /// CBW CWDE CDQE, CWD CDQ CQO: RAX and RDX are where the host expects them.
    pub(super) fn widen(&mut self, item: &Item) {
        let size = match item.insn.code() {
            Code::Cbw | Code::Cwd => 2,
            Code::Cdqe | Code::Cqo => 8,
            _ => 4,
        };
        self.a.extend_rax(size, item.plan == Plan::Sign);
        debug_assert!(item.insn.op_count() == 0 || item.insn.op_kind(0) == OpKind::Register);
    }
}
