//! MOV and its kin, LEA, the stack, exchanges, conditional moves and sets.

use iced_x86::OpKind;

use super::super::emit::{Emit, Mem, Rm};
use super::super::plan::{Plan, bit, has_memory, operand_size};
use super::super::regs::{RBP, RSP, SP, T0, T1, TMP, TMP2, field, home, pinned};
use super::super::scan::Item;
use super::Gen;
use super::alu::{gpr, is_reg};

impl<E: Emit> Gen<E> {
    pub(super) fn mov(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        match (is_reg(insn, 0), insn.op_kind(1)) {
            (true, OpKind::Register) => {
                let scratch = self.spare();
                let s = self.value(gpr(insn, 1), scratch);
                self.move_to(size, gpr(insn, 0), s);
            }
            (true, OpKind::Memory) => {
                let m = self.memory(insn, size, false);
                self.load_to(size, gpr(insn, 0), m);
            }
            (true, _) => self.constant(size, gpr(insn, 0), insn.immediate(1)),
            (false, OpKind::Register) => {
                let m = self.memory(insn, size, true);
                let s = self.value(gpr(insn, 1), T1);
                self.a.store(size, s, m);
            }
            _ => {
                let m = self.memory(insn, size, true);
                self.a.store_imm(size, m, insn.immediate(1) as i32);
            }
        }
    }

    /// Guest register `g` := host register, by size.
    fn move_to(&mut self, size: u8, g: u8, from: u8) {
        match pinned(g) {
            Some(r) => self.a.load(size, r, Rm::Reg(from)),
            None if size == 4 => {
                let scratch = self.spare();
                self.a.load(4, scratch, Rm::Reg(from));
                self.a.store(8, scratch, home(g));
            }
            None => self.a.store(size, from, home(g)),
        }
    }

    /// Guest register `g` := memory, by size.
    fn load_to(&mut self, size: u8, g: u8, m: Rm) {
        match pinned(g) {
            Some(r) => self.a.load(size, r, m),
            None => {
                self.a.load(size, T1, m);
                self.a.store(if size == 4 { 8 } else { size }, T1, home(g));
            }
        }
    }

    fn constant(&mut self, size: u8, g: u8, v: u64) {
        let v = if size == 4 { v & 0xffff_ffff } else { v };
        match (pinned(g), size) {
            (Some(r), 4 | 8) => self.a.mov_imm(r, v),
            (None, 4 | 8) => match i32::try_from(v as i64) {
                Ok(v) => self.a.store_imm(8, home(g), v),
                Err(_) => {
                    let scratch = self.spare();
                    self.a.mov_imm(scratch, v);
                    self.a.store(8, scratch, home(g));
                }
            },
            (place, _) => self.a.store_imm(size, place.map_or(home(g), Rm::Reg), v as i32),
        }
    }

    /// MOVZX, MOVSX, MOVSXD.
    pub(super) fn extend(&mut self, item: &Item, signed: bool) {
        let insn = &item.insn;
        let (to, from) = (operand_size(insn, 0), operand_size(insn, 1));
        let d = gpr(insn, 0);
        let (source, scratch) = if is_reg(insn, 1) {
            (self.operand(gpr(insn, 1)), self.spare())
        } else {
            (self.memory(insn, from, false), T1)
        };
        let r = pinned(d).unwrap_or(scratch);
        self.a.extend(to, from, signed, r, source);
        if r == scratch {
            self.a.store(if to == 4 { 8 } else { to }, r, home(d));
        }
    }

    pub(super) fn lea(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let d = gpr(insn, 0);
        let r = pinned(d).unwrap_or(T0);
        self.effective(insn, r);
        if size == 4 {
            self.a.load(4, r, Rm::Reg(r));
        }
        if r == T0 {
            self.a.store(8, T0, home(d));
        }
    }

    pub(super) fn xchg_regs(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let (d, s) = (gpr(insn, 0), gpr(insn, 1));
        self.a.load(8, T0, self.operand(d));
        self.a.load(8, T1, self.operand(s));
        if size == 4 {
            self.a.load(4, T0, Rm::Reg(T0));
            self.a.load(4, T1, Rm::Reg(T1));
        }
        self.put(size, d, T1);
        self.put(size, s, T0);
    }

    /// XCHG, XADD, CMPXCHG with memory: always locked, which is allowed.
    pub(super) fn exchange(&mut self, item: &Item) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let i = u32::from(is_reg(insn, 1));
        let s = if i == 1 { gpr(insn, 1) } else { gpr(insn, 0) };
        self.address(insn);
        let m = Rm::Mem(self.lookup(size, true, true));
        let r = self.value(s, T1);
        match item.plan {
            Plan::XchgMem => self.a.exchange(size, r, m),
            Plan::Xadd => self.a.exchange_add(size, r, m),
            _ => self.a.compare_exchange(size, r, m),
        }
        if r == T1 && item.plan != Plan::Cmpxchg {
            self.a.store(if size < 4 { size } else { 8 }, T1, home(s));
        }
        if item.plan == Plan::XchgMem {
            return;
        }
        self.host = bit::ALL;
        if item.need {
            self.save_image();
        }
    }

    /// Host memory of the eight bytes below the stack pointer.
    pub(super) fn below_stack(&mut self) -> Rm {
        if let Some(window) = &self.window {
            return Rm::Mem(window.place(-8));
        }
        self.a.lea(T0, Mem::at(SP, -8));
        Rm::Mem(self.stack_lookup(8, true, false))
    }

    /// Host memory of the eight bytes at the stack pointer.
    pub(super) fn at_stack(&mut self) -> Rm {
        if let Some(window) = &self.window {
            return Rm::Mem(window.place(0));
        }
        self.a.mov(T0, SP);
        Rm::Mem(self.stack_lookup(8, false, false))
    }

    pub(super) fn move_sp(&mut self, by: i32) {
        match &mut self.window {
            Some(window) => window.move_by(by),
            None => self.a.lea(SP, Mem::at(SP, by)),
        }
    }

    pub(super) fn push(&mut self, item: &Item) {
        let insn = &item.insn;
        match insn.op_kind(0) {
            OpKind::Register => {
                let m = self.below_stack();
                let r = self.value(gpr(insn, 0), T1);
                self.a.store(8, r, m);
            }
            OpKind::Memory => {
                let m = self.memory(insn, 8, false);
                self.a.load(8, T1, m);
                self.stash(T1);
                let m = self.below_stack();
                self.a.load(8, T1, field(TMP));
                self.a.store(8, T1, m);
            }
            _ => {
                let m = self.below_stack();
                self.a.store_imm(8, m, insn.immediate(0) as i32);
            }
        }
        self.move_sp(-8);
    }

    pub(super) fn pop(&mut self, item: &Item) {
        let g = gpr(&item.insn, 0);
        let m = self.at_stack();
        self.load_to(8, g, m);
        if g != RSP {
            self.move_sp(8);
        }
    }

    pub(super) fn leave(&mut self) {
        let bp = self.value(RBP, T0);
        self.a.mov(T0, bp);
        let m = Rm::Mem(self.stack_lookup(8, false, false));
        self.a.load(8, T1, m);
        self.a.lea(SP, Mem::at(bp, 8));
        self.a.mov(bp, T1);
    }

    pub(super) fn setcc(&mut self, item: &Item, cc: u8) {
        let insn = &item.insn;
        self.want_flags(cc);
        let place = if is_reg(insn, 0) { self.operand(gpr(insn, 0)) } else { field(TMP2) };
        self.a.set(cc, place);
        if !is_reg(insn, 0) {
            let m = self.memory(insn, 1, true);
            self.a.load(1, T1, field(TMP2));
            self.a.store(1, T1, m);
        }
    }

    /// CMOVcc: a 32-bit destination is zero-extended in any case, as the host does it.
    pub(super) fn cmov(&mut self, item: &Item, cc: u8) {
        let insn = &item.insn;
        let size = operand_size(insn, 0);
        let d = gpr(insn, 0);
        if has_memory(insn) {
            let m = self.memory(insn, size, false);
            self.a.load(size, T1, m);
            self.a.store(8, T1, field(TMP2));
        }
        self.want_flags(cc);
        let source = if has_memory(insn) { field(TMP2) } else { self.operand(gpr(insn, 1)) };
        let r = self.value(d, T0);
        self.a.cmov(size, cc, r, source);
        if r == T0 {
            self.a.store(if size < 4 { size } else { 8 }, T0, home(d));
        }
    }
}
