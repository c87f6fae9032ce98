//! MOV, MOVZX, MOVSX and the ALU group with AH, CH, DH or BH.
//!
//! No instruction with a REX prefix can name these, and the scratch registers need one. What is
//! combined with them goes by way of memory, `JitState::tmp2`.

use iced_x86::{OpKind, Register};

use super::super::cc::{Desc, Loc};
use super::super::emit::Emit;
use super::super::plan::{bit, is_high, operand_size};
use super::super::regs::{self, T0, T1, TMP2, field, home, pinned};
use super::super::scan::Item;
use super::Gen;
use super::alu::{described, gpr, is_reg};
use crate::ops::alu::{ADD, CMP, SUB, TEST};

/// Number of a high byte register in an encoding without REX.
fn number(r: Register) -> Option<u8> {
    is_high(r).then(|| r.full_register().number() as u8 + 4)
}

impl<E: Emit> Gen<E> {
    /// The byte of operand `i`, a register or memory, into TMP2. Flags are lost for memory.
    fn stage(&mut self, item: &Item, i: u32) {
        let insn = &item.insn;
        if !is_reg(insn, i) {
            let m = self.memory(insn, 1, false);
            self.a.load(1, T1, m);
            return self.a.store(1, T1, field(TMP2));
        }
        match number(insn.op_register(i)) {
            Some(r) => self.a.store_high(r, field(TMP2)),
            None => {
                let r = self.value(gpr(insn, i), T1);
                self.a.store(1, r, field(TMP2));
            }
        }
    }

    pub(super) fn mov_high(&mut self, item: &Item) {
        let insn = &item.insn;
        match (is_reg(insn, 0), insn.op_kind(1)) {
            (true, OpKind::Register | OpKind::Memory) => {
                self.stage(item, 1);
                match number(insn.op_register(0)) {
                    Some(r) => self.a.load_high(r, field(TMP2)),
                    None => {
                        let g = gpr(insn, 0);
                        let r = self.value(g, T0);
                        self.a.load(1, r, field(TMP2));
                        self.put_back(g, r);
                    }
                }
            }
            (true, _) => {
                let r = number(insn.op_register(0)).unwrap_or(4);
                self.a.set_high(r, insn.immediate8());
            }
            _ => {
                self.stage(item, 1);
                let m = self.memory(insn, 1, true);
                self.a.load(1, T1, field(TMP2));
                self.a.store(1, T1, m);
            }
        }
    }

    /// Stores T0 where it stands for a guest register in memory.
    fn put_back(&mut self, g: u8, r: u8) {
        if r == T0 {
            self.a.store(8, T0, home(g));
        }
    }

    /// MOVZX and MOVSX from a high byte.
    pub(super) fn extend_high(&mut self, item: &Item, signed: bool) {
        let insn = &item.insn;
        self.stage(item, 1);
        let (d, to) = (gpr(insn, 0), operand_size(insn, 0));
        let r = pinned(d).unwrap_or(T0);
        self.a.extend(to, 1, signed, r, field(TMP2));
        if r == T0 {
            self.a.store(if to == 4 { 8 } else { to }, T0, home(d));
        }
    }

    /// The two-operand group but ADC and SBB.
    pub(super) fn alu_high(&mut self, item: &Item, operation: u8) {
        let insn = &item.insn;
        let writes = operation != CMP && operation != TEST;
        let imm = (!is_reg(insn, 1) && insn.op_kind(1) != OpKind::Memory).then(|| insn.immediate8());
        if imm.is_none() {
            self.stage(item, 1);
        }
        if let Some(r) = number(insn.op_register(0)).filter(|_| is_reg(insn, 0)) {
            self.note_second(item, imm);
            if item.need && !writes {
                self.a.store_high(r, field(regs::CC_A));
            }
            self.combine(operation, r, true, imm);
            if item.need && writes {
                self.a.store_high(r, field(regs::CC_A));
            }
        } else {
            self.alu_with_high(item, operation, imm);
        }
        self.host = bit::ALL;
        if item.need {
            let takes_b = matches!(operation, ADD | SUB | CMP | TEST);
            let b = imm.filter(|_| takes_b).map_or(Loc::Slot, |v| Loc::Imm(i32::from(v)));
            self.desc = Desc::of(described(operation), Loc::Slot, b);
        }
    }

    /// The staged operand for a description: only behind the last look-up, which still needs the old one.
    fn note_second(&mut self, item: &Item, imm: Option<u8>) {
        if item.need && imm.is_none() {
            self.a.load(1, T1, field(TMP2));
            self.a.store(8, T1, field(regs::CC_B));
        }
    }

    /// A first operand that is not a high byte.
    fn alu_with_high(&mut self, item: &Item, operation: u8, imm: Option<u8>) {
        let insn = &item.insn;
        let writes = operation != CMP && operation != TEST;
        let (r, m) = if is_reg(insn, 0) {
            self.note_second(item, imm);
            (self.value(gpr(insn, 0), T0), None)
        } else {
            let m = self.memory(insn, 1, writes);
            self.note_second(item, imm);
            self.a.load(1, T1, m);
            (T1, Some(m))
        };
        if item.need && !writes {
            self.a.store(8, r, field(regs::CC_A));
        }
        self.combine(operation, r, false, imm);
        if item.need && writes {
            self.a.store(8, r, field(regs::CC_A));
        }
        match m {
            Some(m) if writes => self.a.store(1, T1, m),
            None if writes => self.put_back(gpr(insn, 0), r),
            _ => {}
        }
    }

    /// Byte register `r` (`high`: 4 to 7 are the high bytes) with TMP2 or an immediate.
    fn combine(&mut self, operation: u8, r: u8, high: bool, imm: Option<u8>) {
        match imm {
            Some(v) => self.a.byte_alu_imm(operation, r, high, v),
            None => self.a.byte_alu(operation, r, high, field(TMP2)),
        }
    }
}
