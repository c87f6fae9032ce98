//! BT BTS BTR BTC, BSF BSR, POPCNT, CRC32.

use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::Op;
use crate::ops::alu::Sum;
use crate::ops::operand::{ANY, sext};

pub(crate) const BT: u8 = 0;
pub(crate) const BTS: u8 = 1;
pub(crate) const BTR: u8 = 2;
pub(crate) const BTC: u8 = 3;

/// `aux`: operation in bits 0-1.
const KIND: u8 = 3;
/// `aux`: the bit offset is `imm`, not a register.
pub(crate) const BY_IMM: u8 = 4;
/// `aux`: LOCK.
pub(crate) const LOCKED: u8 = 8;

#[inline(always)]
fn change(kind: u8, v: u64, bit: u64) -> u64 {
    match kind {
        BTS => v | bit,
        BTR => v & !bit,
        BTC => v ^ bit,
        _ => v,
    }
}

pub(crate) fn bt_reg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let at = if op.aux & BY_IMM != 0 { op.imm } else { cpu.gpr[usize::from(op.src & 15)] };
    let bit = 1u64 << (at & (u64::from(op.size) * 8 - 1));
    let v = cpu.reg_sized(op.dst, op.size);
    if op.aux & KIND != BT {
        cpu.set_reg_sized(op.dst, op.size, change(op.aux & KIND, v, bit));
    }
    cpu.flags.set_cf(v & bit != 0);
    Ok(())
}

/// The memory forms; a register offset is signed and reaches beyond the operand (SDM vol. 2, BT).
pub(crate) fn bt_mem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bits = u64::from(op.size) * 8;
    let (at, far) = if op.aux & BY_IMM != 0 {
        (op.imm & (bits - 1), 0)
    } else {
        let raw = cpu.reg_sized(op.src, op.size);
        let signed = match op.size {
            2 => sext::<16>(raw),
            4 => sext::<32>(raw),
            _ => raw,
        } as i64;
        let word = signed >> bits.trailing_zeros();
        (signed as u64 & (bits - 1), (word as u64).wrapping_mul(u64::from(op.size)))
    };
    let kind = op.aux & KIND;
    let moved = Op { disp: op.disp.wrapping_add(far), ..*op };
    let lin = cpu.address::<ANY>(&moved, u32::from(op.size), kind != BT)?;
    let bit = 1u64 << at;
    let old = if kind == BT {
        cpu.load_sized(lin, op.size)?
    } else if op.aux & LOCKED != 0 {
        match op.size {
            2 => cpu.atomic_op::<16>(lin, |v| change(kind, v, bit))?,
            4 => cpu.atomic_op::<32>(lin, |v| change(kind, v, bit))?,
            _ => cpu.atomic_op::<64>(lin, |v| change(kind, v, bit))?,
        }
    } else {
        let v = match op.size {
            2 => cpu.load_rmw::<16>(lin)?,
            4 => cpu.load_rmw::<32>(lin)?,
            _ => cpu.load_rmw::<64>(lin)?,
        };
        cpu.store_sized(lin, op.size, change(kind, v, bit))?;
        v
    };
    cpu.flags.set_cf(old & bit != 0);
    Ok(())
}

/// The source of a "reg, r/m" op: `aux` bit 7 says memory.
pub(crate) const FROM_MEM: u8 = 0x80;

#[inline]
fn source(cpu: &mut Cpu, op: &Op, size: u8) -> Result<u64, Trap> {
    if op.aux & FROM_MEM == 0 {
        return Ok(cpu.reg_sized(op.src, size));
    }
    let lin = cpu.address::<ANY>(op, u32::from(size), false)?;
    cpu.load_sized(lin, size)
}

/// BSF (`aux` bit 0 clear) and BSR. A zero source sets ZF and leaves the destination, upper half
/// included (what AMD documents and Intel does). The other flags are undefined: those of TEST of the source.
pub(crate) fn bit_scan(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = source(cpu, op, op.size)?;
    if v != 0 {
        let at = if op.aux & 1 == 0 { v.trailing_zeros() } else { 63 - v.leading_zeros() };
        cpu.set_reg_sized(op.dst, op.size, u64::from(at));
    }
    let sum = Sum { value: v, carry: 0, aux: 0 };
    match op.size {
        2 => cpu.flags.set_sum::<16>(sum),
        4 => cpu.flags.set_sum::<32>(sum),
        _ => cpu.flags.set_sum::<64>(sum),
    }
    Ok(())
}

/// POPCNT: ZF by the source, the other flags cleared.
pub(crate) fn popcnt(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = source(cpu, op, op.size)?;
    cpu.set_reg_sized(op.dst, op.size, u64::from(v.count_ones()));
    let cleared = if v == 0 { crate::flags::ZF } else { 0 };
    cpu.flags.set_arith(cleared);
    Ok(())
}

/// CRC32 (SSE4.2): Castagnoli polynomial, bit-reflected; `imm` is the source's size in bytes,
/// `size` the destination's (4 or 8, the upper half becomes zero in both).
pub(crate) fn crc32(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bytes = op.imm as u8;
    let v = source(cpu, op, bytes)?;
    let mut crc = cpu.gpr[usize::from(op.dst & 15)] as u32;
    for i in 0..bytes {
        crc ^= u32::from((v >> (8 * i)) as u8);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    cpu.gpr[usize::from(op.dst & 15)] = u64::from(crc);
    Ok(())
}

/// LAHF, SAHF, CLC, STC, CMC, CLD, STD, SALC by `aux`.
pub(crate) fn flag_op(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    use arch::x86_64::regs::Rflags;
    use arch::x86_64::regs::gpr::RAX;
    let flags: &mut Flags = &mut cpu.flags;
    match op.aux {
        0 => {
            let image = (flags.arith() & 0xd5) | 2;
            cpu.set_reg::<8>(0x80, image);
        }
        1 => {
            let ah = (cpu.gpr[RAX] >> 8) & 0xd5;
            let of = flags.arith() & crate::flags::OF;
            flags.set_arith(ah | of);
        }
        2 => flags.set_cf(false),
        3 => flags.set_cf(true),
        4 => flags.set_cf(!flags.cf()),
        5 => flags.set_system_bit(Rflags::DF, false),
        6 => flags.set_system_bit(Rflags::DF, true),
        _ => {
            let all = if flags.cf() { 0xff } else { 0 };
            cpu.set_reg::<8>(RAX as u8, all);
        }
    }
    Ok(())
}
