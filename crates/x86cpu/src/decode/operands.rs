//! What iced says about operands, as [`Op`] fields.

use arch::x86_64::regs::gpr::RDI;
use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::Mode;
use crate::op::{Op, REG_START, REG_ZERO, SEG_FLAT};
use crate::ops::branch;
use crate::ops::operand::{ANY, FLAT, SEG};

/// An op without operands.
pub(crate) fn blank() -> Op {
    Op {
        run: branch::undefined,
        disp: 0,
        imm: 0,
        dst: 0,
        src: 0,
        base: REG_ZERO,
        index: REG_ZERO,
        scale: 0,
        seg: SEG_FLAT,
        addr_size: 8,
        len: 0,
        at: 0,
        size: 0,
        aux: 0,
        before: 0,
        insns: 1,
        exit: 0,
    }
}

/// An instruction and the facts that every decoder asks for.
pub(crate) struct Form<'a> {
    pub(crate) insn: &'a Instruction,
    pub(crate) mode: Mode,
    memory: bool,
    op: Op,
}

impl<'a> Form<'a> {
    pub(crate) fn new(insn: &'a Instruction, at: u16, mode: Mode) -> Self {
        let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let mut op = Op { len: insn.len() as u8, at, ..blank() };
        op.addr_size = (mode.bits() / 8) as u8;
        if memory {
            memory_operand(insn, mode, &mut op);
        }
        Self { insn, mode, memory, op }
    }

    /// The op so far: length, place and memory operand.
    pub(crate) fn op(&self) -> Op {
        self.op
    }

    pub(crate) fn has_memory(&self) -> bool {
        self.memory
    }

    pub(crate) fn is_reg(&self, i: u32) -> bool {
        self.insn.op_kind(i) == OpKind::Register
    }

    pub(crate) fn is_mem(&self, i: u32) -> bool {
        self.insn.op_kind(i) == OpKind::Memory
    }

    /// Operand `i` as an index into the registers (with 0x80 for AH..BH).
    pub(crate) fn reg(&self, i: u32) -> u8 {
        reg_index(self.insn.op_register(i))
    }

    /// Bytes of operand `i` (register or memory).
    pub(crate) fn size(&self, i: u32) -> u8 {
        if self.is_reg(i) {
            self.insn.op_register(i).size() as u8
        } else {
            self.insn.memory_size().size() as u8
        }
    }

    /// Immediate operand `i`, sign-extended as the instruction says, cut to `size` bytes.
    pub(crate) fn imm(&self, i: u32, size: u8) -> u64 {
        let v = self.insn.try_immediate(i).unwrap_or(0);
        v & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
    }

    /// The memory operand's address kind.
    pub(crate) fn kind(&self) -> u8 {
        if self.mode != Mode::Long64 || self.op.addr_size != 8 {
            ANY
        } else if self.op.seg == SEG_FLAT {
            FLAT
        } else {
            SEG
        }
    }

    pub(crate) fn locked(&self) -> bool {
        self.insn.has_lock_prefix()
    }
}

/// log2 of an operand size in bytes: the index of the handler tables.
pub(crate) fn log2(size: u8) -> usize {
    match size {
        1 => 0,
        2 => 1,
        4 => 2,
        _ => 3,
    }
}

/// A general-purpose or segment register as an index.
pub(crate) fn reg_index(r: Register) -> u8 {
    let number = r.full_register().number() as u8;
    if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
        number | 0x80
    } else {
        number
    }
}

/// Segment index of iced's segment register; in 64-bit mode only FS and GS have a base.
pub(crate) fn segment(r: Register, mode: Mode) -> u8 {
    let n = match r {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => 5,
        _ => SEG_FLAT,
    };
    if mode == Mode::Long64 && n < 4 { SEG_FLAT } else { n }
}

fn address_register(r: Register) -> u8 {
    match r {
        Register::None => REG_ZERO,
        Register::RIP | Register::EIP => REG_START,
        _ => reg_index(r),
    }
}

fn memory_operand(insn: &Instruction, mode: Mode, op: &mut Op) {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let wide = |r: Register| match r {
        Register::None => None,
        Register::RIP => Some(8),
        Register::EIP => Some(4),
        _ => Some(r.size() as u8),
    };
    op.addr_size = wide(base).or(wide(index)).unwrap_or(match insn.memory_displ_size() {
        2 => 2,
        4 => 4,
        8 => 8,
        _ => (mode.bits() / 8) as u8,
    });
    op.base = address_register(base);
    op.index = address_register(index);
    op.scale = insn.memory_index_scale().trailing_zeros() as u8 & 3;
    op.disp = insn.memory_displacement64();
    op.seg = segment(insn.memory_segment(), mode);
}

/// MASKMOVQ and MASKMOVDQU: their memory operand is implicit, at DS:rDI.
pub(crate) fn string_target(insn: &Instruction, mode: Mode, op: Op) -> Op {
    let addr_size = match insn.op_kind(0) {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        OpKind::MemorySegRDI => 8,
        _ => return op,
    };
    let seg = segment(insn.memory_segment(), mode);
    // The bytes that are not masked are not accessed: one byte stands for the address.
    Op { base: RDI as u8, addr_size, seg, size: 1, ..op }
}
