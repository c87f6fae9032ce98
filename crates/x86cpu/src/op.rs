//! [`Op`]: one decoded instruction, ready to run.

use crate::cpu::{Cpu, Trap};

/// What executes an op. It changes no architectural state before its last possible fault. Handlers
/// that end a block set `cpu.rip`; the others leave it alone (it is stale inside a block).
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Result<(), Trap>;

/// Index into `Cpu::gpr` that holds the address of the running block's first byte.
pub(crate) const REG_START: u8 = 16;
/// Index into `Cpu::gpr` that always holds zero: no base, no index.
pub(crate) const REG_ZERO: u8 = 17;
/// Index into `Cpu::seg` of a pseudo segment with base 0: no segment in 64-bit mode.
pub(crate) const SEG_FLAT: u8 = 6;

/// Flag in `Op::scale`: the op has an implicit stack operand.
pub(crate) const STACK: u8 = 0x80;
/// Flag in `Op::scale`: the implicit stack operand goes by RBP (ENTER, LEAVE).
pub(crate) const FRAME: u8 = 0x20;
/// Flag in `Op::scale`: the op reaches beyond its address (BT with a register offset).
pub(crate) const FAR_BITS: u8 = 0x40;

/// One instruction of a block, or a compare together with its branch.
///
/// 8-bit register operands are index | 0x80 for AH, CH, DH, BH (bits 4 and up are then the shift).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// Displacement of the memory operand, sign-extended.
    pub(crate) disp: u64,
    /// Immediate, sign-extended to the operand size and zero-extended from there; or a
    /// handler's own parameter; for direct branches the target as an offset from the block's start.
    pub(crate) imm: u64,
    pub(crate) dst: u8,
    pub(crate) src: u8,
    pub(crate) base: u8,
    pub(crate) index: u8,
    /// log2 of the index scale in bits 0-1; [`STACK`], [`FRAME`] and [`FAR_BITS`].
    pub(crate) scale: u8,
    /// Segment of the memory operand: `arch` encoding order or [`SEG_FLAT`].
    pub(crate) seg: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub(crate) addr_size: u8,
    /// Instruction length in bytes.
    pub(crate) len: u8,
    /// Offset of the instruction from the block's start.
    pub(crate) at: u16,
    /// Further facts, by handler: operand size in bytes for generic handlers.
    pub(crate) size: u8,
    /// Handler's own small parameter (condition code, REP kind, sub-operation).
    pub(crate) aux: u8,
    /// Instructions of the block before this op.
    pub(crate) before: u8,
    /// Instructions that this op is: 2 for a compare and its branch.
    pub(crate) insns: u8,
    /// Of a conditional branch: which of the block's side exits it takes.
    pub(crate) exit: u16,
}

impl Op {
    /// Offset of the next instruction from the block's start.
    #[inline(always)]
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.at) + u64::from(self.len)
    }
}
