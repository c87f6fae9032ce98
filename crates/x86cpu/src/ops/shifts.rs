//! Shifts and rotates (SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD).
//!
//! The count is masked to 5 bits (6 for 64-bit operands); a masked count of zero changes nothing, not
//! even a flag. OF is defined for counts of 1 only; for others we do what processors do where it is
//! uniform (the formula of count 1 applied to the final step).

use arch::x86_64::regs::gpr::RCX;

use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::ops::alu::by_size;
use crate::ops::operand::{ANY, FLAT, mask, sext};

pub(crate) const ROL: u8 = 0;
pub(crate) const ROR: u8 = 1;
pub(crate) const RCL: u8 = 2;
pub(crate) const RCR: u8 = 3;
pub(crate) const SHL: u8 = 4;
pub(crate) const SHR: u8 = 5;
pub(crate) const SAR: u8 = 7;

/// Operand forms: register or memory (two address kinds), count in `imm` or in CL.
pub(crate) const REG_IMM: u8 = 0;
pub(crate) const FLAT_IMM: u8 = 2;
pub(crate) const ANY_IMM: u8 = 4;

/// `v` shifted or rotated by `n` (1 ≤ n ≤ 63, masked already), flags updated in `flags`.
#[inline(always)]
pub(crate) fn shift_value<const OP: u8, const B: u32>(flags: &mut Flags, v: u64, n: u32) -> u64 {
    let top = |x: u64| (x >> (B - 1)) & 1 != 0;
    let second = |x: u64| (x >> (B - 2)) & 1 != 0;
    match OP {
        ROL | ROR => {
            let k = n % B;
            let r = if k == 0 {
                v
            } else if OP == ROL {
                ((v << k) | (v >> (B - k))) & mask::<B>()
            } else {
                ((v >> k) | (v << (B - k))) & mask::<B>()
            };
            if OP == ROL {
                flags.set_cf_of(r & 1 != 0, top(r) != (r & 1 != 0));
            } else {
                flags.set_cf_of(top(r), top(r) != second(r));
            }
            r
        }
        RCL | RCR => rotate_carry::<OP, B>(flags, v, n),
        SHL => {
            let r = if n < B { (v << n) & mask::<B>() } else { 0 };
            let cf = n <= B && (v >> (B - n.min(B))) & 1 != 0;
            flags.set_result(sext::<B>(r), cf, top(r) != cf, false);
            r
        }
        SHR => {
            let r = if n < B { v >> n } else { 0 };
            let cf = n <= B && (v >> (n - 1)) & 1 != 0;
            flags.set_result(sext::<B>(r), cf, second(r) != top(r), false);
            r
        }
        _ => {
            let wide = sext::<B>(v) as i64;
            let r = ((wide >> n) as u64) & mask::<B>();
            let cf = (wide >> (n - 1)) & 1 != 0;
            flags.set_result(sext::<B>(r), cf, false, false);
            r
        }
    }
}

/// RCL and RCR: a rotation of B + 1 bits.
fn rotate_carry<const OP: u8, const B: u32>(flags: &mut Flags, v: u64, n: u32) -> u64 {
    let n = n % (B + 1);
    let cf = u64::from(flags.cf());
    let wide = (u128::from(cf) << B) | u128::from(v);
    let full = (1u128 << (B + 1)) - 1;
    let turned = match (OP, n) {
        (_, 0) => wide,
        (RCL, _) => ((wide << n) | (wide >> (B + 1 - n))) & full,
        _ => ((wide >> n) | (wide << (B + 1 - n))) & full,
    };
    let r = (turned as u64) & mask::<B>();
    let cf = (turned >> B) & 1 != 0;
    let top = (r >> (B - 1)) & 1 != 0;
    let of = if OP == RCL { top != cf } else { top != ((r >> (B - 2)) & 1 != 0) };
    flags.set_cf_of(cf, of);
    r
}

/// The shift group.
pub(crate) fn shift<const OP: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let count = if F & 1 == 0 { op.imm } else { cpu.gpr[RCX] };
    let n = (count as u32) & if B == 64 { 63 } else { 31 };
    if F < FLAT_IMM {
        if n == 0 {
            if B == 32 {
                // The destination is written, so a 32-bit one is zero-extended.
                let v = cpu.reg::<B>(op.dst);
                cpu.set_reg::<B>(op.dst, v);
            }
            return Ok(());
        }
        let v = cpu.reg::<B>(op.dst);
        let r = shift_value::<OP, B>(&mut cpu.flags, v, n);
        cpu.set_reg::<B>(op.dst, r);
        return Ok(());
    }
    let lin = if F < ANY_IMM {
        cpu.address::<FLAT>(op, B / 8, true)?
    } else {
        cpu.address::<ANY>(op, B / 8, true)?
    };
    let v = cpu.load_rmw::<B>(lin)?;
    if n == 0 {
        return Ok(());
    }
    let mut flags = cpu.flags;
    let r = shift_value::<OP, B>(&mut flags, v, n);
    cpu.store::<B>(lin, r)?;
    cpu.flags = flags;
    Ok(())
}

/// SHLD and SHRD on values; `n` is masked and not zero. 16-bit operands with counts above 16 take
/// bits from the destination again (what processors do; undefined by the manual).
pub(crate) fn double_shift<const B: u32>(flags: &mut Flags, left: bool, d: u64, s: u64, n: u32) -> u64 {
    let (d, s) = (u128::from(d), u128::from(s));
    let (r, cf) = if left {
        let wide = if B == 16 { (d << 32) | (s << 16) | d } else { (d << B) | s };
        let width = if B == 16 { 48 } else { 2 * B };
        let moved = wide << n;
        let r = (moved >> (width - B)) as u64 & mask::<B>();
        (r, (wide >> (width - n)) & 1 != 0)
    } else {
        let wide = if B == 16 { (d << 32) | (s << 16) | d } else { (s << B) | d };
        ((wide >> n) as u64 & mask::<B>(), (wide >> (n - 1)) & 1 != 0)
    };
    let changed = ((r ^ d as u64) >> (B - 1)) & 1 != 0;
    flags.set_result(sext::<B>(r), cf, changed, false);
    r
}

fn double_sized(flags: &mut Flags, op: &Op, d: u64, s: u64, n: u32) -> u64 {
    let left = op.aux & 1 != 0;
    match op.size {
        2 => double_shift::<16>(flags, left, d, s, n),
        4 => double_shift::<32>(flags, left, d, s, n),
        _ => double_shift::<64>(flags, left, d, s, n),
    }
}

/// SHLD (`aux` bit 0 set) or SHRD; count in CL when `aux` bit 1 is set, else in `imm`.
pub(crate) fn shld_reg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let n = double_count(cpu, op);
    let d = cpu.reg_sized(op.dst, op.size);
    if n == 0 {
        cpu.set_reg_sized(op.dst, op.size, d);
        return Ok(());
    }
    let s = cpu.reg_sized(op.src, op.size);
    let r = double_sized(&mut cpu.flags, op, d, s, n);
    cpu.set_reg_sized(op.dst, op.size, r);
    Ok(())
}

pub(crate) fn shld_mem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let n = double_count(cpu, op);
    let lin = cpu.address::<ANY>(op, u32::from(op.size), true)?;
    cpu.probe_write(lin, u64::from(op.size))?;
    let d = cpu.load_sized(lin, op.size)?;
    if n == 0 {
        return Ok(());
    }
    let s = cpu.reg_sized(op.src, op.size);
    let mut flags = cpu.flags;
    let r = double_sized(&mut flags, op, d, s, n);
    cpu.store_sized(lin, op.size, r)?;
    cpu.flags = flags;
    Ok(())
}

fn double_count(cpu: &Cpu, op: &Op) -> u32 {
    let count = if op.aux & 2 != 0 { cpu.gpr[RCX] } else { op.imm };
    (count as u32) & if op.size == 8 { 63 } else { 31 }
}

macro_rules! shift_forms {
    ($op:expr) => {
        [
            by_size!(shift, $op, 0),
            by_size!(shift, $op, 1),
            by_size!(shift, $op, 2),
            by_size!(shift, $op, 3),
            by_size!(shift, $op, 4),
            by_size!(shift, $op, 5),
        ]
    };
}

/// Handlers by operation (SAL, 6, is SHL), form, log2 of the operand size in bytes.
pub(crate) static SHIFT: [[[Handler; 4]; 6]; 8] = [
    shift_forms!(ROL),
    shift_forms!(ROR),
    shift_forms!(RCL),
    shift_forms!(RCR),
    shift_forms!(SHL),
    shift_forms!(SHR),
    shift_forms!(SHL),
    shift_forms!(SAR),
];
