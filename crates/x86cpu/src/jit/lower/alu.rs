//! ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT.

use iced_x86::{Instruction, OpKind};

use super::super::cc::{Desc, Loc, op, over};
use super::super::emit::{Emit, Rm};
use super::super::plan::bit;
use super::super::plan::operand_size;
use super::super::regs::{self, T0, T1, TMP2, field, home, pinned};
use super::super::scan::Item;
use super::Gen;
use super::flags::log2;
use crate::ops::alu::{ADC, ADD, CMP, DEC, INC, NEG, NOT, SBB, SUB, TEST, XOR};

/// Guest register of operand `i`.
pub(super) fn gpr(insn: &Instruction, i: u32) -> u8 {
    insn.op_register(i).full_register().number() as u8 & 15
}

pub(super) fn is_reg(insn: &Instruction, i: u32) -> bool {
    insn.op_kind(i) == OpKind::Register
}

/// A second operand.
#[derive(Clone, Copy)]
enum Src {
    Gpr(u8),
    Imm(i32),
}

impl<E: Emit> Gen<E> {
    /// `reg op= src`, or `rm op= src` where `to_memory`.
    fn emit_alu(&mut self, size: u8, operation: u8, dst: Rm, src: Src) {
        match (operation, src, dst) {
            (TEST, Src::Imm(v), _) => {
                self.a.test_imm(size, dst, v);
            }
            (_, Src::Imm(v), _) => self.a.alu_imm(size, operation, dst, v),
            (TEST, Src::Gpr(g), Rm::Reg(d)) => {
                let s = self.operand(g);
                self.a.test(size, d, s);
            }
            (_, Src::Gpr(g), Rm::Reg(d)) => {
                let s = self.operand(g);
                self.a.alu(size, operation, d, s);
            }
            (_, Src::Gpr(g), Rm::Mem(_)) => {
                let s = self.value(g, T1);
                if operation == TEST {
                    self.a.test(size, s, dst);
                } else {
                    self.a.alu_to(size, operation, s, dst);
                }
            }
        }
    }

    pub(super) fn alu(&mut self, item: &Item, operation: u8) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        if operation == ADC || operation == SBB {
            return self.with_carry(item, operation, size);
        }
        let zero = (operation == XOR || operation == SUB) && is_reg(insn, 0) && is_reg(insn, 1) && size >= 4;
        if zero && gpr(insn, 0) == gpr(insn, 1) {
            return self.zero(gpr(insn, 0), size);
        }
        match (is_reg(insn, 0), insn.op_kind(1)) {
            (true, OpKind::Memory) => self.alu_load(item, operation, size),
            (true, _) => self.alu_reg(item, operation, size),
            _ => self.alu_store(item, operation, size),
        }
    }

    fn zero(&mut self, g: u8, size: u8) {
        match pinned(g) {
            Some(r) => self.a.alu(4, XOR, r, Rm::Reg(r)),
            None => {
                let scratch = self.spare();
                self.a.alu(4, XOR, scratch, Rm::Reg(scratch));
                self.a.store(8, scratch, home(g));
            }
        }
        self.desc = Desc::of(op::LOGIC | log2(size), Loc::Imm(0), Loc::Slot);
        self.host = bit::ALL;
    }

    fn second(&self, insn: &Instruction) -> Src {
        if is_reg(insn, 1) { Src::Gpr(gpr(insn, 1)) } else { Src::Imm(insn.immediate(1) as i32) }
    }

    /// Second operand as a location; stored when it cannot stay.
    fn keep_second(&mut self, src: Src, keep: bool) -> Loc {
        match src {
            Src::Imm(v) => Loc::Imm(v),
            Src::Gpr(g) if keep => Loc::Gpr(g),
            Src::Gpr(g) => {
                // T1 may hold a value that is still wanted where there is memory; T0 never does here.
                let scratch = self.spare();
                let r = self.value(g, scratch);
                self.a.store(8, r, field(regs::CC_B));
                Loc::Slot
            }
        }
    }

    /// Register with register or immediate.
    fn alu_reg(&mut self, item: &Item, operation: u8, size: u8) {
        let insn = &item.insn;
        let d = gpr(insn, 0);
        let src = self.second(insn);
        let doubles = matches!(src, Src::Gpr(s) if s == d);
        let keep = item.keep && !(doubles && operation == ADD);
        let takes_b = matches!(operation, ADD | SUB | CMP | TEST);
        let b = if item.need && takes_b { self.keep_second(src, keep) } else { Loc::Slot };
        let scratch = self.spare();
        let r = self.value(d, scratch);
        self.emit_alu(size, operation, Rm::Reg(r), src);
        let writes = operation != CMP && operation != TEST;
        if writes && r == scratch {
            self.a.store(if size < 4 { size } else { 8 }, scratch, home(d));
        }
        self.host = bit::ALL;
        if item.need {
            let a = if keep {
                Loc::Gpr(d)
            } else {
                self.a.store(8, r, field(regs::CC_A));
                Loc::Slot
            };
            self.desc = Desc::of(described(operation) | log2(size), a, b);
        }
    }

    /// Register with memory.
    fn alu_load(&mut self, item: &Item, operation: u8, size: u8) {
        let insn = &item.insn;
        let d = gpr(insn, 0);
        let m = self.memory(insn, size, false);
        self.host = bit::ALL;
        if !item.need {
            let r = self.value(d, T1);
            if operation == TEST {
                self.a.test(size, r, m);
            } else {
                self.a.alu(size, operation, r, m);
            }
            if r == T1 && operation != CMP && operation != TEST {
                self.a.store(if size < 4 { size } else { 8 }, T1, home(d));
            }
            return;
        }
        self.a.load_whole(size, T1, m);
        self.a.store(8, T1, field(regs::CC_B));
        let r = self.value(d, T0);
        if operation == TEST {
            self.a.test(size, r, Rm::Reg(T1));
        } else {
            self.a.alu(size, operation, r, Rm::Reg(T1));
        }
        if r == T0 && operation != CMP && operation != TEST {
            self.a.store(if size < 4 { size } else { 8 }, T0, home(d));
        }
        let a = if item.keep {
            Loc::Gpr(d)
        } else {
            self.a.store(8, r, field(regs::CC_A));
            Loc::Slot
        };
        self.desc = Desc::of(described(operation) | log2(size), a, Loc::Slot);
    }

    /// Memory with register or immediate.
    fn alu_store(&mut self, item: &Item, operation: u8, size: u8) {
        let insn = &item.insn;
        let src = self.second(insn);
        let writes = operation != CMP && operation != TEST;
        let m = self.memory(insn, size, writes);
        let locked = insn.has_lock_prefix();
        if !item.need || locked {
            let s = match src {
                Src::Gpr(g) => Some(self.value(g, T1)),
                Src::Imm(_) => None,
            };
            if locked {
                self.a.lock();
            }
            match s {
                Some(s) if operation == TEST => self.a.test(size, s, m),
                Some(s) => self.a.alu_to(size, operation, s, m),
                None => self.emit_alu(size, operation, m, src),
            }
            self.host = bit::ALL;
            if item.need {
                self.save_image();
            }
            return;
        }
        self.a.load_whole(size, T1, m);
        if !writes {
            self.a.store(8, T1, field(regs::CC_A));
        }
        self.emit_alu(size, operation, Rm::Reg(T1), src);
        if writes {
            self.a.store(size, T1, m);
            self.a.store(8, T1, field(regs::CC_A));
        }
        self.host = bit::ALL;
        let takes_b = matches!(operation, ADD | SUB | CMP | TEST);
        let b = if takes_b { self.keep_second(src, item.keep) } else { Loc::Slot };
        self.desc = Desc::of(described(operation) | log2(size), Loc::Slot, b);
    }

    /// ADC and SBB.
    fn with_carry(&mut self, item: &Item, operation: u8, size: u8) {
        const CF: u8 = 2;
        let insn = &item.insn;
        let loads = insn.op_kind(1) == OpKind::Memory;
        let stores = insn.op_kind(0) == OpKind::Memory;
        if loads || stores {
            let m = self.memory(insn, size, stores);
            if stores {
                self.a.store(8, T0, field(TMP2));
            } else {
                self.a.load_whole(size, T1, m);
                self.a.store(8, T1, field(TMP2));
            }
        }
        self.want_flags(CF);
        let kind = if operation == ADC { op::ADC } else { op::SBB };
        // First operand into `r`; what it is combined with is a register, TMP2 or an immediate.
        let r = if stores {
            self.a.load(8, T0, field(TMP2));
            self.a.load(size, T1, Rm::Mem(super::Mem::at(T0, 0)));
            T1
        } else {
            self.value(gpr(insn, 0), T0)
        };
        let other = if loads { None } else { Some(self.second(insn)) };
        if item.need {
            self.a.store(8, r, field(regs::CC_A));
            match other {
                Some(Src::Imm(v)) => self.a.store_imm(8, field(regs::CC_B), v),
                // (A scratch register is free: T1 for loads, and T0 has been used up for stores.)
                Some(Src::Gpr(g)) => self.copy_to_b(g, if stores { None } else { Some(T1) }),
                None => {
                    self.a.load(8, T1, field(TMP2));
                    self.a.store(8, T1, field(regs::CC_B));
                }
            }
        }
        match other {
            Some(src) => self.emit_alu(size, operation, Rm::Reg(r), src),
            None => self.a.alu(size, operation, r, field(TMP2)),
        }
        if stores {
            self.a.load(8, T0, field(TMP2));
            self.a.store(size, r, Rm::Mem(super::Mem::at(T0, 0)));
        } else if r == T0 {
            self.a.store(if size < 4 { size } else { 8 }, T0, home(gpr(insn, 0)));
        }
        self.host = bit::ALL;
        if item.need {
            self.a.store(8, r, field(regs::CC_C));
            self.desc = Desc::of(kind | log2(size), Loc::Slot, Loc::Slot);
        }
    }

    fn copy_to_b(&mut self, g: u8, scratch: Option<u8>) {
        let r = self.value(g, scratch.unwrap_or(T0));
        self.a.store(8, r, field(regs::CC_B));
    }

    pub(super) fn unary(&mut self, item: &Item, operation: u8) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let counts = operation == INC || operation == DEC;
        let kind = if operation == INC { over::INC } else { over::DEC };
        let r = if is_reg(insn, 0) {
            if counts && item.need {
                self.begin_over(kind);
            }
            let r = self.value(gpr(insn, 0), T0);
            self.a.unary(size, operation, Rm::Reg(r));
            if r == T0 {
                self.a.store(if size < 4 { size } else { 8 }, T0, home(gpr(insn, 0)));
            }
            Some(r)
        } else {
            self.unary_memory(item, size, operation, kind)
        };
        if operation == NOT {
            return;
        }
        self.host = if counts { self.host & bit::CF | bit::ALL & !bit::CF } else { bit::ALL };
        if !item.need {
            return;
        }
        let Some(r) = r else {
            // LOCK NEG, INC or DEC without its result.
            return self.save_image();
        };
        let keep = is_reg(insn, 0) && item.keep;
        let loc = if keep { Loc::Gpr(gpr(insn, 0)) } else { Loc::Slot };
        if !keep {
            self.a.store(8, r, field(if operation == NEG { regs::CC_A } else { regs::CC_R }));
        }
        if operation == NEG {
            self.desc = Desc::of(op::NEG | log2(size), loc, Loc::Slot);
        } else {
            self.desc = Desc { over: kind | log2(size), r: loc, ..self.desc };
        }
    }

    /// The register that has the result, when there is one.
    fn unary_memory(&mut self, item: &Item, size: u8, operation: u8, kind: u8) -> Option<u8> {
        let insn = &item.insn;
        let locked = insn.has_lock_prefix();
        let counts = operation == INC || operation == DEC;
        // With LOCK the result is not seen: CF has to be in the host's flags for an image.
        if counts && item.need && !locked {
            self.begin_over(kind);
        }
        let m = self.memory(insn, size, true);
        if locked {
            if counts && item.need {
                self.a.store(8, T0, field(TMP2));
                self.want_flags(2);
                self.a.load(8, T0, field(TMP2));
            }
            self.a.lock();
            self.a.unary(size, operation, m);
            return None;
        }
        if !item.need {
            self.a.unary(size, operation, m);
            return Some(T1);
        }
        self.a.load_whole(size, T1, m);
        self.a.unary(size, operation, Rm::Reg(T1));
        self.a.store(size, T1, m);
        Some(T1)
    }
}

/// What `cc` calls an operation.
pub(super) fn described(operation: u8) -> u8 {
    match operation {
        ADD => op::ADD,
        SUB => op::SUB,
        CMP => op::CMP,
        TEST => op::TEST,
        _ => op::LOGIC,
    }
}
