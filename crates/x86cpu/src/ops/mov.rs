//! MOV, MOVZX, MOVSX, LEA, XCHG, BSWAP, the CBW family, XLAT, segment register moves.

use arch::x86_64::regs::gpr::{RAX, RBX, RDX};
use arch::x86_64::regs::seg;

use crate::cpu::{Cpu, Trap};
use crate::op::{Handler, Op};
use crate::ops::alu::by_size;
use crate::ops::operand::{ANY, FLAT, SEG, sext};

pub(crate) fn mov_rr<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.reg::<B>(op.src);
    cpu.set_reg::<B>(op.dst, v);
    Ok(())
}

pub(crate) fn mov_ri<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.set_reg::<B>(op.dst, op.imm);
    Ok(())
}

pub(crate) fn mov_rm<const A: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if A != ANY
        && let Some(v) = cpu.quick_load::<B>(cpu.quick_address::<A>(op))
    {
        cpu.set_reg::<B>(op.dst, v);
        return Ok(());
    }
    mov_rm_full::<A, B>(cpu, op)
}

#[cold]
#[inline(never)]
fn mov_rm_full<const A: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<A>(op, B / 8, false)?;
    let v = cpu.load::<B>(lin)?;
    cpu.set_reg::<B>(op.dst, v);
    Ok(())
}

pub(crate) fn mov_mr<const A: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if A != ANY && cpu.quick_store::<B>(cpu.quick_address::<A>(op), cpu.reg::<B>(op.src)) {
        return Ok(());
    }
    mov_mr_full::<A, B>(cpu, op)
}

#[cold]
#[inline(never)]
fn mov_mr_full<const A: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<A>(op, B / 8, true)?;
    let v = cpu.reg::<B>(op.src);
    cpu.store::<B>(lin, v)
}

pub(crate) fn mov_mi<const A: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if A != ANY && cpu.quick_store::<B>(cpu.quick_address::<A>(op), op.imm) {
        return Ok(());
    }
    mov_mi_full::<A, B>(cpu, op)
}

#[cold]
#[inline(never)]
fn mov_mi_full<const A: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<A>(op, B / 8, true)?;
    cpu.store::<B>(lin, op.imm)
}

/// Extension of a `S`-bit source: zero or sign.
#[inline(always)]
fn extend<const S: u32, const SIGNED: bool>(v: u64) -> u64 {
    if SIGNED { sext::<S>(v) } else { v }
}

/// MOVZX, MOVSX, MOVSXD from a register; the destination's width is `op.size`.
pub(crate) fn ext_rr<const S: u32, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = extend::<S, SIGNED>(cpu.reg::<S>(op.src));
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

/// MOVZX, MOVSX, MOVSXD from memory.
pub(crate) fn ext_rm<const S: u32, const SIGNED: bool, const A: u8>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    if A != ANY
        && let Some(v) = cpu.quick_load::<S>(cpu.quick_address::<A>(op))
    {
        cpu.set_reg_sized(op.dst, op.size, extend::<S, SIGNED>(v));
        return Ok(());
    }
    ext_rm_full::<S, SIGNED, A>(cpu, op)
}

#[cold]
#[inline(never)]
fn ext_rm_full<const S: u32, const SIGNED: bool, const A: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<A>(op, S / 8, false)?;
    let v = extend::<S, SIGNED>(cpu.load::<S>(lin)?);
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

/// LEA with 64-bit operand and address size.
pub(crate) fn lea_64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.address::<FLAT>(op, 1, false)?;
    cpu.gpr[usize::from(op.dst & 15)] = v;
    Ok(())
}

pub(crate) fn lea(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.offset(op);
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

pub(crate) fn xchg_rr(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (a, b) = (cpu.reg_sized(op.dst, op.size), cpu.reg_sized(op.src, op.size));
    cpu.set_reg_sized(op.dst, op.size, b);
    cpu.set_reg_sized(op.src, op.size, a);
    Ok(())
}

/// XCHG with memory: always locked.
pub(crate) fn xchg_mr<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, B / 8, true)?;
    let v = cpu.reg::<B>(op.src);
    let old = cpu.atomic_op::<B>(lin, |_| v)?;
    cpu.set_reg::<B>(op.src, old);
    Ok(())
}

pub(crate) fn bswap(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let slot = usize::from(op.dst & 15);
    match op.size {
        8 => cpu.gpr[slot] = cpu.gpr[slot].swap_bytes(),
        4 => cpu.gpr[slot] = u64::from((cpu.gpr[slot] as u32).swap_bytes()),
        // Undefined by the manual; processors give zero.
        _ => cpu.gpr[slot] &= !0xffff,
    }
    Ok(())
}

/// CBW, CWDE, CDQE by operand size.
pub(crate) fn cbw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let rax = cpu.gpr[RAX];
    match op.size {
        2 => cpu.set_reg::<16>(RAX as u8, sext::<8>(rax)),
        4 => cpu.set_reg::<32>(RAX as u8, sext::<16>(rax)),
        _ => cpu.gpr[RAX] = sext::<32>(rax),
    }
    Ok(())
}

/// CWD, CDQ, CQO by operand size.
pub(crate) fn cwd(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let rax = cpu.gpr[RAX];
    let sign = match op.size {
        2 => sext::<16>(rax),
        4 => sext::<32>(rax),
        _ => rax,
    };
    let fill = ((sign as i64) >> 63) as u64;
    cpu.set_reg_sized(RDX as u8, op.size, fill);
    Ok(())
}

pub(crate) fn xlat(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let at = cpu.gpr[RBX].wrapping_add(cpu.gpr[RAX] & 0xff);
    let at = at & crate::ops::operand::addr_mask(op.addr_size);
    let lin = cpu.linear(op.seg, at, 1, false)?;
    let v = cpu.load::<8>(lin)?;
    cpu.set_reg::<8>(RAX as u8, v);
    Ok(())
}

/// MOV r/m, Sreg: a register destination is zero-extended to the operand size.
pub(crate) fn mov_from_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = u64::from(cpu.seg[usize::from(op.src & 7)].selector);
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

pub(crate) fn mov_mem_from_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = u64::from(cpu.seg[usize::from(op.src & 7)].selector);
    let lin = cpu.address::<ANY>(op, 2, true)?;
    cpu.store::<16>(lin, v)
}

/// MOV Sreg, r/m; `aux` != 0: the source is memory.
pub(crate) fn mov_to_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = if op.aux != 0 {
        let lin = cpu.address::<ANY>(op, 2, false)?;
        cpu.load::<16>(lin)? as u16
    } else {
        cpu.reg::<16>(op.src) as u16
    };
    cpu.load_segment(usize::from(op.dst & 7), selector)?;
    if usize::from(op.dst) == seg::SS {
        // For the next instruction alone: who looks for events executes it by itself.
        (cpu.events.movss_shadow, cpu.attention) = (true, true);
    }
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: a far pointer from memory; `aux` is the segment.
pub(crate) fn load_far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, u32::from(op.size) + 2, false)?;
    let offset = cpu.load_sized(lin, op.size)?;
    let selector = cpu.load::<16>(lin.wrapping_add(u64::from(op.size)))? as u16;
    cpu.load_segment(usize::from(op.aux & 7), selector)?;
    cpu.set_reg_sized(op.dst, op.size, offset);
    Ok(())
}

pub(crate) fn nop(_: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Ok(())
}

/// MFENCE. (Loads are not moved before loads nor stores before stores: LFENCE and SFENCE are [`nop`].)
pub(crate) fn fence(_: &mut Cpu, _: &Op) -> Result<(), Trap> {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// Handlers by log2 of the operand size.
pub(crate) static MOV_RR: [Handler; 4] = by_size!(mov_rr,);
pub(crate) static MOV_RI: [Handler; 4] = by_size!(mov_ri,);
pub(crate) static XCHG_MR: [Handler; 4] = by_size!(xchg_mr,);
/// Handlers by address kind, log2 of the operand size.
pub(crate) static MOV_RM: [[Handler; 4]; 3] =
    [by_size!(mov_rm, FLAT), by_size!(mov_rm, SEG), by_size!(mov_rm, ANY)];
pub(crate) static MOV_MR: [[Handler; 4]; 3] =
    [by_size!(mov_mr, FLAT), by_size!(mov_mr, SEG), by_size!(mov_mr, ANY)];
pub(crate) static MOV_MI: [[Handler; 4]; 3] =
    [by_size!(mov_mi, FLAT), by_size!(mov_mi, SEG), by_size!(mov_mi, ANY)];

/// Extension handlers by signedness, log2 of the source size in bytes (0..3), and form: register,
/// then memory by address kind.
pub(crate) static EXT: [[[Handler; 4]; 3]; 2] = [
    [
        [ext_rr::<8, false>, ext_rm::<8, false, FLAT>, ext_rm::<8, false, SEG>, ext_rm::<8, false, ANY>],
        [ext_rr::<16, false>, ext_rm::<16, false, FLAT>, ext_rm::<16, false, SEG>, ext_rm::<16, false, ANY>],
        [ext_rr::<32, false>, ext_rm::<32, false, FLAT>, ext_rm::<32, false, SEG>, ext_rm::<32, false, ANY>],
    ],
    [
        [ext_rr::<8, true>, ext_rm::<8, true, FLAT>, ext_rm::<8, true, SEG>, ext_rm::<8, true, ANY>],
        [ext_rr::<16, true>, ext_rm::<16, true, FLAT>, ext_rm::<16, true, SEG>, ext_rm::<16, true, ANY>],
        [ext_rr::<32, true>, ext_rm::<32, true, FLAT>, ext_rm::<32, true, SEG>, ext_rm::<32, true, ANY>],
    ],
];
