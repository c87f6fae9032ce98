//! MUL, IMUL, DIV, IDIV.

use arch::x86_64::regs::gpr::{RAX, RDX};

use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::ops::alu::by_size;
use crate::ops::operand::{ANY, FLAT, mask, sext};

/// Source form: register, or memory by address kind.
pub(crate) const SRC_REG: u8 = 0;
pub(crate) const SRC_FLAT: u8 = 1;

#[inline(always)]
fn source<const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    match F {
        SRC_REG => Ok(cpu.reg::<B>(op.src)),
        SRC_FLAT => {
            let lin = cpu.address::<FLAT>(op, B / 8, false)?;
            cpu.load::<B>(lin)
        }
        _ => {
            let lin = cpu.address::<ANY>(op, B / 8, false)?;
            cpu.load::<B>(lin)
        }
    }
}

/// CF = OF = the product does not fit; the other flags are undefined: SF, ZF and PF of the low half
/// is what Intel's processors give.
#[inline(always)]
fn product_flags<const B: u32>(flags: &mut Flags, low: u64, overflow: bool) {
    flags.set_result(sext::<B>(low), overflow, overflow, false);
}

/// The two halves of a product (`SIGNED`: 0 or 1), and its flags.
#[inline(always)]
pub(crate) fn product<const SIGNED: u8, const B: u32>(flags: &mut Flags, a: u64, b: u64) -> (u64, u64) {
    let wide: u128 = if SIGNED != 0 {
        (i128::from(sext::<B>(a) as i64) * i128::from(sext::<B>(b) as i64)) as u128
    } else {
        u128::from(a) * u128::from(b)
    };
    let low = (wide as u64) & mask::<B>();
    let high = ((wide >> B) as u64) & mask::<B>();
    let fill = if SIGNED != 0 { ((sext::<B>(low) as i64) >> 63) as u64 & mask::<B>() } else { 0 };
    product_flags::<B>(flags, low, high != fill);
    (low, high)
}

/// MUL (`SIGNED` = 0) and one-operand IMUL (1).
pub(crate) fn mul<const SIGNED: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = source::<F, B>(cpu, op)?;
    let a = cpu.reg::<B>(RAX as u8);
    let (low, high) = product::<SIGNED, B>(&mut cpu.flags, a, b);
    if B == 8 {
        cpu.set_reg::<16>(RAX as u8, low | high << 8);
    } else {
        cpu.set_reg::<B>(RAX as u8, low);
        cpu.set_reg::<B>(RDX as u8, high);
    }
    Ok(())
}

/// IMUL with two or three operands: `dst = source * (imm when IMM, else dst)`.
pub(crate) fn imul<const IMM: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b = sext::<B>(source::<F, B>(cpu, op)?) as i64;
    let a = sext::<B>(if IMM != 0 { op.imm } else { cpu.reg::<B>(op.dst) }) as i64;
    let (low, overflow) = if B == 64 {
        a.overflowing_mul(b)
    } else {
        let wide = a * b;
        (wide, sext::<B>(wide as u64) as i64 != wide)
    };
    let low = low as u64 & mask::<B>();
    cpu.set_reg::<B>(op.dst, low);
    product_flags::<B>(&mut cpu.flags, low, overflow);
    Ok(())
}

/// DIV (`SIGNED` = 0) and IDIV (1). Flags are undefined; they stay.
pub(crate) fn div<const SIGNED: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let d = source::<F, B>(cpu, op)?;
    if d == 0 {
        return Err(Trap::DE);
    }
    let (low, high) = if B == 8 {
        let ax = cpu.gpr[RAX];
        (ax & 0xff, (ax >> 8) & 0xff)
    } else {
        (cpu.reg::<B>(RAX as u8), cpu.reg::<B>(RDX as u8))
    };
    let (q, r) = if SIGNED != 0 { divide_signed::<B>(high, low, d)? } else { divide::<B>(high, low, d)? };
    if B == 8 {
        cpu.set_reg::<16>(RAX as u8, (q & 0xff) | ((r & 0xff) << 8));
    } else {
        cpu.set_reg::<B>(RAX as u8, q);
        cpu.set_reg::<B>(RDX as u8, r);
    }
    Ok(())
}

#[inline(always)]
fn divide<const B: u32>(high: u64, low: u64, d: u64) -> Result<(u64, u64), Trap> {
    if high >= d {
        return Err(Trap::DE);
    }
    if B < 64 {
        let n = (high << B) | low;
        return Ok((n / d, n % d));
    }
    if high == 0 {
        return Ok((low / d, low % d));
    }
    let n = (u128::from(high) << 64) | u128::from(low);
    Ok(((n / u128::from(d)) as u64, (n % u128::from(d)) as u64))
}

#[inline(always)]
fn divide_signed<const B: u32>(high: u64, low: u64, d: u64) -> Result<(u64, u64), Trap> {
    if B < 64 {
        let n = (high << B) | low;
        // Sign-extend from 2B bits.
        let n = ((n << (64 - 2 * B)) as i64) >> (64 - 2 * B);
        let d = sext::<B>(d) as i64;
        let (Some(q), Some(r)) = (n.checked_div(d), n.checked_rem(d)) else { return Err(Trap::DE) };
        if sext::<B>(q as u64) as i64 != q {
            return Err(Trap::DE);
        }
        return Ok((q as u64 & mask::<B>(), r as u64 & mask::<B>()));
    }
    let d = d as i64;
    if high == ((low as i64) >> 63) as u64 {
        let n = low as i64;
        let (Some(q), Some(r)) = (n.checked_div(d), n.checked_rem(d)) else { return Err(Trap::DE) };
        return Ok((q as u64, r as u64));
    }
    let n = ((u128::from(high) << 64) | u128::from(low)) as i128;
    let (Some(q), Some(r)) = (n.checked_div(i128::from(d)), n.checked_rem(i128::from(d))) else {
        return Err(Trap::DE);
    };
    let fits = i64::try_from(q).map_err(|_| Trap::DE)?;
    Ok((fits as u64, r as i64 as u64))
}

macro_rules! by_source {
    ($f:ident, $k:expr) => {
        [by_size!($f, $k, 0), by_size!($f, $k, 1), by_size!($f, $k, 2)]
    };
}

/// Handlers by signedness, source form, log2 of the operand size in bytes.
pub(crate) static MUL: [[[Handler; 4]; 3]; 2] = [by_source!(mul, 0), by_source!(mul, 1)];
/// As [`MUL`].
pub(crate) static DIV: [[[Handler; 4]; 3]; 2] = [by_source!(div, 0), by_source!(div, 1)];
/// Handlers by "has an immediate", source form, log2 of the operand size in bytes.
pub(crate) static IMUL: [[[Handler; 4]; 3]; 2] = [by_source!(imul, 0), by_source!(imul, 1)];
