//! Addresses of memory operands, and the look-up in the TLB.

use iced_x86::{Instruction, Register};

use super::super::emit::{Emit, Jump, Mem, Rm, cc};
use super::super::plan::bit;
use super::super::regs::{self, T0, T1, field};
use super::{Gen, Named, Stub, leave};
use crate::cpu::Mode;
use crate::decode::segment;
use crate::op::SEG_FLAT;

impl<E: Emit> Gen<E> {
    /// Linear address of the memory operand into T0.
    pub(super) fn address(&mut self, insn: &Instruction) {
        let segment = segment(insn.memory_segment(), Mode::Long64);
        self.effective(insn, T0);
        if segment != SEG_FLAT {
            self.a.alu(8, 0, T0, field(regs::segment_base(segment)));
        }
    }

    /// Effective address (64 bits) into `to`. T0 and T1 are used where registers are in memory.
    pub(super) fn effective(&mut self, insn: &Instruction, to: u8) {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let number = |r: Register| r.number() as u8 & 15;
        let disp = insn.memory_displacement64();
        if base == Register::RIP {
            // iced gives the address itself.
            return self.own_address(to, disp);
        }
        if base == Register::None && index == Register::None {
            return self.a.mov_imm(to, disp);
        }
        let disp = disp as i32;
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        if base == Register::None {
            let i = self.value(number(index), T1);
            return self.a.lea(to, Mem::scaled(i, scale, disp));
        }
        let b = self.value(number(base), T0);
        match (index == Register::None, disp) {
            (true, 0) if b == to => return,
            // The host does this one while it renames registers.
            (true, 0) => return self.a.mov(to, b),
            (true, _) => return self.a.lea(to, Mem::at(b, disp)),
            _ => {}
        }
        let i = self.value(number(index), T1);
        self.a.lea(to, Mem { base: b, index: Some((i, scale)), disp });
    }

    /// Linear address of something that is `at` bytes from the start of the page. Flags stay; T1 is lost where it is
    /// farther away than a displacement reaches.
    pub(super) fn own_address(&mut self, to: u8, at: u64) {
        self.a.load(8, to, field(regs::PAGE));
        match i32::try_from(at as i64) {
            Ok(disp) => self.a.lea(to, Mem::at(to, disp)),
            Err(_) => {
                self.a.mov_imm(T1, at);
                self.a.lea(to, Mem { base: to, index: Some((T1, 0)), disp: 0 });
            }
        }
    }

    /// Looks up the linear address in T0: afterwards T0 is the host's address of `size` bytes that may be
    /// read, or written. T1 and the host's flags are lost. `aligned`: the offset in the page must be a
    /// multiple of `size`.
    pub(super) fn lookup(&mut self, size: u8, write: bool, aligned: bool) -> Mem {
        let again = self.a.pos();
        let (from, tag) = self.in_tlb(u32::from(size), write);
        let site = self.new_site(size, write);
        self.stubs.push(Stub::Fill { from, again, tag, site });
        self.host = bit::NONE;
        if aligned && size > 1 {
            self.a.test_imm(4, Rm::Reg(T0), i32::from(size) - 1);
            let from = self.a.jcc(cc::NE);
            self.stubs.push(Stub::Leave { from, site, how: leave::STEP });
        }
        Mem::at(T0, 0)
    }

    /// Makes the linear address in T0 the host's, where the TLB has so many bytes from it in one page for reading or
    /// writing; where it has not, the jump is taken and T0 is less by what is at the displacement given from T1.
    pub(super) fn in_tlb(&mut self, bytes: u32, write: bool) -> (Jump, i32) {
        let (read, written, host, _) = crate::mmu::TLB_FIELDS;
        let (shift, entries) = crate::mmu::TLB_SHAPE;
        let first = self.place.tables.tlb;
        let tag = first.unwrap_or(0) + if write { written } else { read } as i32;
        let slot = |disp| Rm::Mem(Mem::at(T1, disp));
        self.a.shifted(self.place.bmi2, T1, T0, 12 - shift);
        self.a.alu_imm(4, 4, Rm::Reg(T1), ((entries - 1) << shift) as i32);
        if first.is_none() {
            self.a.alu(8, 0, T1, field(regs::TLB));
        }
        self.a.alu(8, 5, T0, slot(tag));
        self.name(first, Named::Tlb);
        self.a.alu_imm(8, 7, Rm::Reg(T0), 4096 - bytes as i32);
        let from = self.a.jcc(cc::A);
        self.a.alu(8, 0, T0, slot(first.unwrap_or(0) + host as i32));
        self.name(first, Named::Tlb);
        (from, tag)
    }

    /// [`Gen::address`] and [`Gen::lookup`], or the like.
    pub(super) fn memory(&mut self, insn: &Instruction, size: u8, write: bool) -> Rm {
        self.operand_memory(insn, size, write, insn.has_lock_prefix())
    }

    pub(super) fn operand_memory(&mut self, insn: &Instruction, size: u8, write: bool, aligned: bool) -> Rm {
        if let Some(window) = &self.window {
            return Rm::Mem(window.place(insn.memory_displacement64() as i32));
        }
        self.address(insn);
        Rm::Mem(if self.is_by_stack(insn) {
            self.stack_lookup(size, write, aligned)
        } else {
            self.lookup(size, write, aligned)
        })
    }
}
