//! Memory near the stack pointer, which is nearly half of what code touches.
//!
//! The page that it was last in is remembered by privilege ([`crate::mmu::StackPage`]): a compare and an addition, all
//! of whose operands are known before the address is. What is in another page, or at the end of one, goes by a thunk
//! that looks in the TLB and remembers that page where it may be written.

use iced_x86::{Instruction, Register};

use super::super::emit::{Emit, Jump, Mem, Rm, cc};
use super::super::plan::bit;
use super::super::regs::{T0, T1, field, stack_fields};
use super::{Gen, Stub, leave};
use crate::cpu::Mode;
use crate::decode::segment;
use crate::op::SEG_FLAT;
use crate::ops::alu::{ADD, CMP, SUB};

/// Number of the thunk for accesses of `size` bytes; `None`: there is none.
pub(in super::super) fn thunk_number(size: u8, write: bool) -> Option<usize> {
    let known = size.is_power_of_two() && size <= 16;
    known.then(|| 2 * size.trailing_zeros() as usize + usize::from(write))
}

/// Whether a memory operand goes by no segment's base.
pub(super) fn is_flat(insn: &Instruction) -> bool {
    segment(insn.memory_segment(), Mode::Long64) == SEG_FLAT
}

impl<E: Emit> Gen<E> {
    /// Whether a memory operand is at a fixed distance from the stack pointer, or from a frame on the stack.
    pub(super) fn is_by_stack(&self, insn: &Instruction) -> bool {
        self.is_on_stack(insn.memory_base()) && insn.memory_index() == Register::None && is_flat(insn)
    }

    /// Whether a register points into the stack.
    pub(super) fn is_on_stack(&self, base: Register) -> bool {
        base == Register::RSP || base == Register::RBP && self.place.frame
    }

    /// Makes the linear address in T0 the host's, where so many bytes from it are in the page that is remembered; where
    /// they are not, the jump is taken and T0 is less by that page's address.
    pub(super) fn in_stack_page(&mut self, bytes: u32) -> Jump {
        let fields = stack_fields(self.place.bank);
        self.a.alu(8, SUB, T0, field(fields.base));
        self.a.alu(8, CMP, T0, field(fields.limit(bytes)));
        let elsewhere = self.a.jcc(cc::AE);
        self.a.alu(8, ADD, T0, field(fields.host));
        elsewhere
    }

    /// As [`Gen::lookup`], for the stack.
    pub(super) fn stack_lookup(&mut self, size: u8, write: bool, aligned: bool) -> Mem {
        let Some(number) = thunk_number(size, write) else { return self.lookup(size, write, aligned) };
        let again = self.a.pos();
        let from = self.in_stack_page(u32::from(size));
        let site = self.new_site(size, write);
        self.stubs.push(Stub::Stack { from, again, back: self.a.pos(), number, site });
        if aligned && size > 1 {
            self.a.test_imm(4, Rm::Reg(T0), i32::from(size) - 1);
            let from = self.a.jcc(cc::NE);
            self.stubs.push(Stub::Leave { from, site, how: leave::STEP });
        }
        self.host = bit::NONE;
        Mem::at(T0, 0)
    }

    /// The stub of [`Gen::stack_lookup`]: the thunk says whether it has found the address or to try again.
    pub(super) fn stack_stub(&mut self, again: usize, back: usize, number: usize, site: u32) {
        let fields = stack_fields(self.place.bank);
        self.a.alu(8, ADD, T0, field(fields.base));
        self.a.mov_imm(T1, u64::from(self.place.first_site + site));
        let call = self.a.call();
        self.lead_to(call, self.place.thunks.stack[self.place.bank][number]);
        let retry = self.a.jcc(cc::E);
        self.a.bind_to(retry, again);
        let found = self.a.jmp();
        self.a.bind_to(found, back);
    }
}
