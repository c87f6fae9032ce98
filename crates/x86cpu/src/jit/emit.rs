//! What lowering asks of a host: [`Emit`], and the words that it asks in.
//!
//! The guest's instructions are lowered to operations on host registers, memory operands and the host's flags, which are
//! named here; how a host encodes them is its emitter's. `emit_x86_64` is the one there is. `lower` says nothing in bytes.
//!
//! Registers are numbers of the host, which [`super::regs`] gives to guest registers and scratch. Operations of the ALU
//! group, shifts and bit tests go by the numbers of [`crate::ops`], conditions by x86's ([`cc`]). Sizes are bytes of the
//! operands: 1, 2, 4 or 8.
//!
//! Contract of an emitter:
//! - An operation sets those flags that [`super::plan::Plan::gives`] says, as x86 does; moves, [`Emit::lea`], jumps and
//!   [`Emit::set`] leave them.
//! - A write of 4 bytes to a register makes its upper half zero, one of 1 or 2 leaves what is above.
//! - A position may be bound before or after the jumps that lead there; code is in one piece up to
//!   [`Emit::split_here`], and in another from there on.
//!
//! [`Emit::sse`], [`Emit::x87`] and [`Emit::x87_memory`] are for hosts that have the guest's floating point: on others
//! [`super::plan`] gives these instructions to the interpreter's handlers.

/// Condition codes (SDM vol. 1, appendix B).
pub(super) mod cc {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const NS: u8 = 9;
}

/// In place of a base: there is none, and an index must be there.
pub(super) const NO_BASE: u8 = 5 | 0x40;

/// A memory operand: base, index and log2 of its scale, displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mem {
    pub base: u8,
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

impl Mem {
    pub fn at(base: u8, disp: i32) -> Mem {
        Mem { base, index: None, disp }
    }

    /// An index times a power of two, and a displacement.
    pub fn scaled(index: u8, scale: u8, disp: i32) -> Mem {
        Mem { base: NO_BASE, index: Some((index, scale)), disp }
    }
}

/// Register or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rm {
    Reg(u8),
    Mem(Mem),
}

/// A jump whose target is not known yet: the place of its 32-bit displacement.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(pub usize);

/// See the module.
pub(super) trait Emit: Default {
    // Places.

    /// Forgets what was emitted.
    fn clear(&mut self);
    /// Where the next operation will be, in bytes.
    fn pos(&self) -> usize;
    /// What is emitted from here on will stand at `place`, a distance from where the first piece will.
    fn split_here(&mut self, place: i64);
    /// The jump leads to `place`, a distance from where the first piece will stand.
    fn bind_to_place(&mut self, jump: Jump, place: i64);
    /// The jump leads to a position.
    fn bind_to(&mut self, jump: Jump, pos: usize);
    /// The jump leads here.
    fn bind(&mut self, jump: Jump) {
        self.bind_to(jump, self.pos());
    }
    fn jmp(&mut self) -> Jump;
    fn jcc(&mut self, cc: u8) -> Jump;
    fn call(&mut self) -> Jump;
    /// To the host address that is in memory.
    fn jmp_to(&mut self, m: Mem);
    /// Compares 8 bytes with those at the place that is bound.
    fn cmp_with_place(&mut self, reg: u8) -> Jump;

    // Moves.

    /// Register from `rm`.
    fn load(&mut self, size: u8, reg: u8, rm: Rm);
    /// As [`Emit::load`], with zeros above: nothing waits for what the register had.
    fn load_whole(&mut self, size: u8, reg: u8, rm: Rm);
    /// Register to `rm`.
    fn store(&mut self, size: u8, reg: u8, rm: Rm);
    /// A constant, sign-extended, to `rm`.
    fn store_imm(&mut self, size: u8, rm: Rm, v: i32);
    fn mov(&mut self, to: u8, from: u8) {
        self.load(8, to, Rm::Reg(from));
    }
    fn mov_imm(&mut self, reg: u8, v: u64);
    /// The address, 64 bits.
    fn lea(&mut self, reg: u8, m: Mem);
    /// `from` bytes of `rm` as `to` bytes, with zeros or the sign above.
    fn extend(&mut self, to: u8, from: u8, signed: bool, reg: u8, rm: Rm);
    /// Half of RAX with its sign as a whole of `size` bytes; or that sign into RDX.
    fn extend_rax(&mut self, size: u8, into_rdx: bool);
    fn swap_bytes(&mut self, size: u8, reg: u8);
    /// 1 where the condition holds, else 0.
    fn set(&mut self, cc: u8, rm: Rm);
    fn cmov(&mut self, size: u8, cc: u8, reg: u8, rm: Rm);
    /// CF, PF, AF, ZF, SF into bits 15:8 of RAX and OF into bits 7:0.
    fn flags_to_rax(&mut self);

    // Integer operations.

    /// `reg op= rm`.
    fn alu(&mut self, size: u8, operation: u8, reg: u8, rm: Rm);
    /// `rm op= reg`.
    fn alu_to(&mut self, size: u8, operation: u8, reg: u8, rm: Rm);
    fn alu_imm(&mut self, size: u8, operation: u8, rm: Rm, v: i32);
    fn test(&mut self, size: u8, reg: u8, rm: Rm);
    fn test_imm(&mut self, size: u8, rm: Rm, v: i32);
    /// INC, DEC, NOT, NEG.
    fn unary(&mut self, size: u8, operation: u8, rm: Rm);
    /// By a constant below the operand's width.
    fn shift(&mut self, size: u8, operation: u8, rm: Rm, by: u8);
    /// By RCX modulo 32, or 64 for 8 bytes.
    fn shift_by_cl(&mut self, size: u8, operation: u8, reg: u8);
    /// `reg := from >> by` in its low bits, of 64 bits; the upper `by` bits are not zero where `rotates`, which is what
    /// a host may do faster. Flags are lost.
    fn shifted(&mut self, rotates: bool, reg: u8, from: u8, by: u8);
    /// SHLD, SHRD by a constant or RCX.
    fn double_shift(&mut self, size: u8, left: bool, reg: u8, from: u8, by: Option<u8>);
    fn imul(&mut self, size: u8, reg: u8, rm: Rm);
    fn imul_imm(&mut self, size: u8, reg: u8, rm: Rm, v: i32);
    /// RDX:RAX of RAX and a factor.
    fn mul(&mut self, size: u8, signed: bool, rm: Rm);
    /// RDX:RAX by what is in a register; the quotient must fit.
    fn div(&mut self, size: u8, signed: bool, reg: u8);
    /// BT and its kin, by the number of [`crate::ops::bits`].
    fn bit_test(&mut self, size: u8, kind: u8, rm: Rm, bit: u8);
    fn bit_test_imm(&mut self, size: u8, kind: u8, rm: Rm, bit: u8);
    /// BSF, BSR: of zero the register stays.
    fn bit_scan(&mut self, size: u8, reverse: bool, reg: u8, rm: Rm);
    fn popcnt(&mut self, size: u8, reg: u8, rm: Rm);
    /// Of `from` bytes; `wide`: the register is one of 64 bits.
    fn crc32(&mut self, from: u8, wide: bool, reg: u8, rm: Rm);

    // Atomic operations.

    /// The next one, of those that change memory, is atomic.
    fn lock(&mut self);
    /// All later accesses are made after all earlier ones.
    fn fence(&mut self);
    /// Atomic in any case.
    fn exchange(&mut self, size: u8, reg: u8, m: Rm);
    fn exchange_add(&mut self, size: u8, reg: u8, m: Rm);
    /// RAX is what is expected.
    fn compare_exchange(&mut self, size: u8, reg: u8, m: Rm);
    /// CMPXCHG8B, CMPXCHG16B, by the bytes in memory.
    fn compare_exchange_pair(&mut self, bytes: u8, m: Rm);

    // Bytes 15:8 of RAX, RCX, RDX and RBX: 4 to 7.

    fn load_high(&mut self, high: u8, m: Rm);
    fn store_high(&mut self, high: u8, m: Rm);
    fn set_high(&mut self, high: u8, v: u8);
    /// ALU group or TEST of a byte register, which is one of these where `high`, with `rm`.
    fn byte_alu(&mut self, operation: u8, reg: u8, high: bool, m: Rm);
    fn byte_alu_imm(&mut self, operation: u8, reg: u8, high: bool, v: u8);

    // The guest's own floating point.

    /// A legacy SSE instruction by its encoding, on other operands.
    fn sse(&mut self, encoding: &Sse, reg: u8, rm: Rm, imm: Option<u8>);
    /// An x87 instruction without memory.
    fn x87(&mut self, opcode: u8, modrm: u8);
    /// One with memory; `extension`: the middle field of its ModRM.
    fn x87_memory(&mut self, opcode: u8, extension: u8, m: Rm);
}

/// The parts of a legacy SSE encoding that stay when its operands are others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sse<'a> {
    /// 66, F2, F3 or 0.
    pub prefix: u8,
    pub wide: bool,
    pub opcode: &'a [u8],
}
