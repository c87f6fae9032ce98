//! Arithmetic flags between translated instructions.
//!
//! Problem: a flag must be exact wherever the guest can be looked at (a fault, an exit), but almost
//! none ever is.
//!
//! Strategy: the flags are a *description*: which operation on which operands gave them. While
//! translating, it is a [`Desc`], whose operands may still be in guest registers; where a translation
//! is left for another one it is in [`JitState`]; when the interpreter goes on it is evaluated, with
//! the interpreter's own formulas ([`evaluate`]), into `Cpu::flags`. INC, DEC, rotates and bit tests
//! change some flags only: they are a second operation *over* the first.
//!
//! Invariant: an operand of 8, 16 or 32 bits may have anything above.

use super::state::JitState;
use crate::cpu::Cpu;
use crate::flags::{Flags, OF};
use crate::ops::alu::{ADC, ADD, AND, SBB, SUB, Sum, compute};
use crate::ops::mul_div::product;
use crate::ops::operand::mask;
use crate::ops::shifts::{self, double_shift, shift_value};

/// Operations, shifted left by two; the low bits are log2 of the operand size.
pub(super) mod op {
    /// `Cpu::flags` has them.
    pub const IN_FLAGS: u8 = 0;
    /// Only in a description: memory has them, whatever they are.
    pub const DYNAMIC: u8 = 0xff;
    /// Result a, second operand b.
    pub const ADD: u8 = 1 << 2;
    pub const SUB: u8 = 2 << 2;
    /// Operands a and b.
    pub const CMP: u8 = 3 << 2;
    /// Result a.
    pub const LOGIC: u8 = 4 << 2;
    /// Operands a and b.
    pub const TEST: u8 = 5 << 2;
    /// Result a.
    pub const NEG: u8 = 6 << 2;
    /// Operand a, count b (not 0, masked).
    pub const SHL: u8 = 7 << 2;
    pub const SHR: u8 = 8 << 2;
    pub const SAR: u8 = 9 << 2;
    /// Factors a and b.
    pub const IMUL: u8 = 10 << 2;
    pub const MUL: u8 = 11 << 2;
    /// Operands a and b, result c.
    pub const ADC: u8 = 12 << 2;
    pub const SBB: u8 = 13 << 2;
    /// The host's: LAHF in bits 15:8 of a, OF in bit 0.
    pub const IMAGE: u8 = 14 << 2;
    /// Operand a, count b (not 0, masked), what is shifted in c.
    pub const SHLD: u8 = 15 << 2;
    pub const SHRD: u8 = 16 << 2;
}

/// Operations over others, by their result r.
pub(super) mod over {
    pub const NONE: u8 = 0;
    /// Only in a description.
    pub const DYNAMIC: u8 = 0xff;
    pub const INC: u8 = 1 << 2;
    pub const DEC: u8 = 2 << 2;
    /// From here on CF is what changes: CF is bit 0 of r.
    pub const CF: u8 = 3 << 2;
    pub const ROL: u8 = 4 << 2;
    pub const ROR: u8 = 5 << 2;
}

/// Where an operand of a description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loc {
    /// In its place in [`JitState`].
    Slot,
    /// Guest register.
    Gpr(u8),
    Imm(i32),
}

/// Where the flags are at a point of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Desc {
    pub op: u8,
    pub a: Loc,
    pub b: Loc,
    pub over: u8,
    pub r: Loc,
}

impl Default for Desc {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl Desc {
    /// At the start of a translation.
    pub const UNKNOWN: Desc =
        Desc { op: op::DYNAMIC, a: Loc::Slot, b: Loc::Slot, over: over::DYNAMIC, r: Loc::Slot };
    /// In memory, nothing over it.
    pub const IN_MEMORY: Desc = Desc { over: over::NONE, ..Desc::UNKNOWN };

    pub fn of(op: u8, a: Loc, b: Loc) -> Desc {
        Desc { op, a, b, over: over::NONE, r: Loc::Slot }
    }

    /// Whether memory does not say it all already.
    pub fn needs_stores(&self) -> bool {
        self.op != op::DYNAMIC || !matches!(self.over, over::NONE | over::DYNAMIC)
    }

    /// Puts it into memory: guest registers are in `Cpu::gpr` now.
    pub fn settle(&self, cpu: &mut Cpu) {
        let value = |cpu: &Cpu, loc, old| match loc {
            Loc::Slot => old,
            Loc::Gpr(g) => cpu.gpr[usize::from(g & 15)],
            Loc::Imm(v) => v as i64 as u64,
        };
        if self.op != op::DYNAMIC {
            cpu.jx.op = self.op;
            cpu.jx.a = value(cpu, self.a, cpu.jx.a);
            cpu.jx.b = value(cpu, self.b, cpu.jx.b);
        }
        if self.over != over::DYNAMIC {
            cpu.jx.over = self.over;
            cpu.jx.r = value(cpu, self.r, cpu.jx.r);
        }
    }
}

/// Brings `Cpu::flags` up to date from what memory says.
pub(super) fn evaluate(cpu: &mut Cpu) {
    let jx = &cpu.jx;
    let mut flags = cpu.flags;
    match jx.op & 3 {
        0 => base::<8>(&mut flags, jx),
        1 => base::<16>(&mut flags, jx),
        2 => base::<32>(&mut flags, jx),
        _ => base::<64>(&mut flags, jx),
    }
    match jx.over & 3 {
        0 => later::<8>(&mut flags, jx),
        1 => later::<16>(&mut flags, jx),
        2 => later::<32>(&mut flags, jx),
        _ => later::<64>(&mut flags, jx),
    }
    cpu.flags = flags;
    (cpu.jx.op, cpu.jx.over) = (op::IN_FLAGS, over::NONE);
}

fn base<const B: u32>(flags: &mut Flags, jx: &JitState) {
    let m = mask::<B>();
    let (a, b, c) = (jx.a & m, jx.b & m, jx.c & m);
    match jx.op & !3 {
        op::ADD => flags.set_sum::<B>(compute::<ADD, B>(a.wrapping_sub(b) & m, b, 0)),
        op::SUB => flags.set_sum::<B>(compute::<SUB, B>(a.wrapping_add(b) & m, b, 0)),
        op::CMP => flags.set_sum::<B>(compute::<SUB, B>(a, b, 0)),
        op::LOGIC => flags.set_sum::<B>(Sum { value: a, carry: 0, aux: 0 }),
        op::TEST => flags.set_sum::<B>(compute::<AND, B>(a, b, 0)),
        op::NEG => flags.set_sum::<B>(compute::<SUB, B>(0, a.wrapping_neg() & m, 0)),
        op::ADC => flags.set_sum::<B>(compute::<ADC, B>(a, b, c.wrapping_sub(a).wrapping_sub(b) & 1)),
        op::SBB => flags.set_sum::<B>(compute::<SBB, B>(a, b, a.wrapping_sub(b).wrapping_sub(c) & 1)),
        // Who shifts by zero leaves the description alone. Here it would be one whose operand was overwritten.
        op::SHL | op::SHR | op::SAR if b as u32 == 0 => debug_assert!(false, "a shift by zero is described"),
        op::SHL => _ = shift_value::<{ shifts::SHL }, B>(flags, a, b as u32),
        op::SHR => _ = shift_value::<{ shifts::SHR }, B>(flags, a, b as u32),
        op::SAR => _ = shift_value::<{ shifts::SAR }, B>(flags, a, b as u32),
        op::SHLD => _ = double_shift::<B>(flags, true, a, c, b as u32),
        op::SHRD => _ = double_shift::<B>(flags, false, a, c, b as u32),
        op::IMUL => _ = product::<1, B>(flags, a, b),
        op::MUL => _ = product::<0, B>(flags, a, b),
        op::IMAGE => flags.set_arith((jx.a >> 8 & 0xd5) | if jx.a & 1 != 0 { OF } else { 0 }),
        _ => {}
    }
}

fn later<const B: u32>(flags: &mut Flags, jx: &JitState) {
    let r = jx.r & mask::<B>();
    let top = r >> (B - 1) != 0;
    match jx.over & !3 {
        over::INC => count::<ADD, B>(flags, r.wrapping_sub(1) & mask::<B>()),
        over::DEC => count::<SUB, B>(flags, r.wrapping_add(1) & mask::<B>()),
        over::CF => flags.set_cf(r & 1 != 0),
        over::ROL => flags.set_cf_of(r & 1 != 0, top != (r & 1 != 0)),
        over::ROR => flags.set_cf_of(top, top != (r >> (B - 2) & 1 != 0)),
        _ => {}
    }
}

/// INC and DEC: everything but CF.
fn count<const OP: u8, const B: u32>(flags: &mut Flags, a: u64) {
    let cf = flags.cf();
    flags.set_sum::<B>(compute::<OP, B>(a, 1, 0));
    flags.set_cf(cf);
}

/// An image of RFLAGS' arithmetic part that POPF takes, for translated code.
pub(super) fn image(cpu: &Cpu) -> u64 {
    cpu.flags.arith() | 2
}
