//! Branches: direct ones become exits, indirect ones look in the jump cache.

use super::super::emit::{Emit, Mem, Rm, cc};
use super::super::plan::bit;
use super::super::regs::{self, T0, T1, TMP, TMP2, field};
use super::super::scan::Item;
use super::super::state::{JUMPS, JumpEntry};
use super::alu::{gpr, is_reg};
use super::{Gen, Named, Stub, leave};
use crate::ops::shifts::{SAR, SHL};

/// The slot of an address in the jump cache: the translation computes the same.
pub(in super::super) fn jump_slot(rip: u64) -> usize {
    let x = (rip as u32 ^ (rip as u32 >> JUMP_SHIFT)) & JUMP_MASK;
    (x >> 1) as usize
}

const JUMP_SHIFT: u8 = 13;
/// Twice the number of entries: a factor of 8 makes an entry's size of it.
const JUMP_MASK: u32 = 2 * (JUMPS as u32 - 1);

const _: () = assert!(size_of::<JumpEntry>() == 16);

impl<E: Emit> Gen<E> {
    /// On condition `cc` it goes on at `target`.
    pub(super) fn jcc(&mut self, cc: u8, target: u64) {
        self.want_flags(cc);
        let from = self.a.jcc(cc);
        self.done += 1;
        let exit = self.new_exit(target);
        self.stubs.push(Stub::Exit { from, exit });
    }

    pub(super) fn call(&mut self, item: &Item) {
        self.call_pushes(item);
        self.call_leaves(item);
    }

    /// The half of a CALL that touches memory.
    pub(super) fn call_pushes(&mut self, item: &Item) {
        let m = self.below_stack();
        self.store_return(item, m);
        self.move_sp(-8);
    }

    pub(super) fn call_leaves(&mut self, item: &Item) {
        self.done += 1;
        let exit = self.new_exit(item.insn.near_branch_target());
        self.exit_here(exit);
    }

    fn store_return(&mut self, item: &Item, m: Rm) {
        self.own_address(T1, item.insn.next_ip());
        self.a.store(8, T1, m);
    }

    pub(super) fn ret(&mut self, item: &Item) {
        self.ret_pops();
        self.ret_leaves(item);
    }

    /// The half of a RET that touches memory: T0 is where it leads.
    pub(super) fn ret_pops(&mut self) {
        let m = self.at_stack();
        self.a.load(8, T0, m);
    }

    pub(super) fn ret_leaves(&mut self, item: &Item) {
        let extra = if item.insn.op_count() > 0 { item.insn.immediate(0) as i32 } else { 0 };
        self.leave_for_t0(8 + extra, None);
    }

    /// JMP and CALL through a register or memory.
    pub(super) fn indirect(&mut self, item: &Item) {
        let insn = &item.insn;
        let calls = item.plan == super::Plan::CallIndirect;
        if is_reg(insn, 0) {
            let r = self.value(gpr(insn, 0), T0);
            if calls {
                self.a.store(8, r, field(TMP));
            } else {
                self.a.mov(T0, r);
            }
        } else {
            let m = self.memory(insn, 8, false);
            self.a.load(8, T0, m);
            if calls {
                self.stash(T0);
            }
        }
        if calls {
            self.below_stack();
            self.a.store(8, T0, field(TMP2));
            self.a.load(8, T0, field(TMP));
        }
        self.leave_for_t0(if calls { -8 } else { 0 }, calls.then_some(item));
    }

    /// The return address of a call, to the host address in TMP2. Only now: what a call stores may lie
    /// over what its target was read from, and the interpreter would do it again. T0 stays, and T1.
    fn store_return_late(&mut self, item: &Item) {
        self.a.store(8, T1, field(regs::LIN));
        self.a.load(8, T1, field(TMP2));
        let m = Rm::Mem(Mem::at(T1, 0));
        self.own_address(T0, item.insn.next_ip());
        self.a.store(8, T0, m);
        self.a.load(8, T0, field(TMP));
        self.a.load(8, T1, field(regs::LIN));
    }

    /// T1, an entry's address that a search gives, as [`Gen::leave_for_t0`] has it.
    pub(super) fn entry_to_index(&mut self) {
        if let Some(first) = self.place.tables.jumps {
            self.a.alu_imm(8, 5, Rm::Reg(T1), first);
            self.name(Some(first), Named::Jumps);
            self.a.shift(8, SAR, Rm::Reg(T1), 3);
        }
    }

    /// Goes to the translation of the address in T0, moving the stack pointer. When there is none the
    /// interpreter does the instruction.
    fn leave_for_t0(&mut self, sp: i32, call: Option<&Item>) {
        let first = self.place.tables.jumps;
        let entry = |disp| {
            // Times 8: twice the number makes an entry's size of it.
            first.map_or(Mem::at(T1, disp), |first| Mem::scaled(T1, 3, first + disp))
        };
        self.a.shifted(self.place.bmi2, T1, T0, JUMP_SHIFT);
        self.a.alu(4, 6, T1, Rm::Reg(T0));
        self.a.alu_imm(4, 4, Rm::Reg(T1), JUMP_MASK as i32);
        if first.is_none() {
            self.a.shift(8, SHL, Rm::Reg(T1), 3);
            self.a.alu(8, 0, T1, field(regs::JUMPS));
        }
        self.a.alu(8, 7, T0, Rm::Mem(entry(0)));
        self.name(first, Named::Jumps);
        self.search_if(cc::NE);
        if let Some(item) = call {
            self.store_return_late(item);
        }
        if sp != 0 {
            self.move_sp(sp);
        }
        // (T1 is needed for the stores of the flags.)
        if self.desc.needs_stores() {
            self.a.store(8, T1, field(TMP2));
            self.store_desc(self.desc);
            self.a.load(8, T1, field(TMP2));
        }
        self.a.alu_imm(8, 5, field(regs::BUDGET), i32::from(self.done) + 1);
        let out = self.a.jcc(cc::S);
        self.a.alu_imm(8, 4, Rm::Reg(T0), -4096);
        self.a.store(8, T0, field(regs::PAGE));
        self.a.jmp_to(entry(8));
        self.name(first, Named::Jumps);
        self.a.bind(out);
        self.a.store(8, T0, field(regs::RIP));
        self.a.mov_imm(T1, u64::from(leave::RIP));
        let jump = self.a.jmp();
        self.lead_to(jump, self.place.thunks.leave);
        self.host = bit::NONE;
    }
}
