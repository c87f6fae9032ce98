//! Operand handling of privileged and far instructions; what they mean is in `sys/`.
//!
//! All of these end a block, so `cpu.rip` is the next instruction when they run.

use crate::cpu::{Cpu, Mode, Trap};
use crate::flags::ZF;
use crate::op::Op;
use crate::ops::operand::{ANY, sext};

/// Instructions without explicit operands.
pub(crate) fn plain(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    match op.aux {
        SYSCALL => cpu.syscall(),
        SYSRET => cpu.sysret(op.size),
        SYSENTER => cpu.sysenter(),
        SYSEXIT => cpu.sysexit(op.size),
        SWAPGS => cpu.swapgs(),
        RDMSR => cpu.rdmsr(),
        WRMSR => cpu.wrmsr(),
        CPUID => cpu.cpuid_insn(),
        RDTSC => cpu.rdtsc(),
        RDTSCP => cpu.rdtscp(),
        RDPMC => cpu.rdpmc(),
        HLT => cpu.hlt(),
        CLTS => cpu.clts(),
        WBINVD => cpu.wbinvd(),
        CLAC => cpu.clac(),
        STAC => cpu.stac(),
        CLI => cpu.cli(),
        STI => cpu.sti(),
        IRET => cpu.iret(op.size),
        INT => cpu.soft_int(op.imm as u8),
        INT3 => cpu.int3(),
        INTO => cpu.into(),
        RETF => cpu.far_ret(op.size, op.imm as u16),
        VMCALL => cpu.vmcall(),
        _ => Err(Trap::UD),
    }
}

/// PAUSE: says that the guest waits in a loop.
pub(crate) fn pause(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.guest_waits();
    Ok(())
}

pub(crate) const SYSCALL: u8 = 0;
pub(crate) const SYSRET: u8 = 1;
pub(crate) const SYSENTER: u8 = 2;
pub(crate) const SYSEXIT: u8 = 3;
pub(crate) const SWAPGS: u8 = 4;
pub(crate) const RDMSR: u8 = 5;
pub(crate) const WRMSR: u8 = 6;
pub(crate) const CPUID: u8 = 7;
pub(crate) const RDTSC: u8 = 8;
pub(crate) const RDTSCP: u8 = 9;
pub(crate) const RDPMC: u8 = 10;
pub(crate) const HLT: u8 = 11;
pub(crate) const CLTS: u8 = 12;
pub(crate) const WBINVD: u8 = 13;
pub(crate) const CLAC: u8 = 14;
pub(crate) const STAC: u8 = 15;
pub(crate) const CLI: u8 = 16;
pub(crate) const STI: u8 = 17;
pub(crate) const IRET: u8 = 18;
pub(crate) const INT: u8 = 19;
pub(crate) const INT3: u8 = 20;
pub(crate) const INTO: u8 = 21;
pub(crate) const RETF: u8 = 22;
/// And VMMCALL.
pub(crate) const VMCALL: u8 = 23;

/// MOV r, CRn and MOV r, DRn (`aux` = 1); `src` is n.
pub(crate) fn mov_from_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = if op.aux == 0 { cpu.mov_from_cr(op.src)? } else { cpu.mov_from_dr(op.src)? };
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

/// MOV CRn, r and MOV DRn, r (`aux` = 1); `dst` is n.
pub(crate) fn mov_to_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.reg_sized(op.src, op.size);
    if op.aux == 0 { cpu.mov_to_cr(op.dst, v) } else { cpu.mov_to_dr(op.dst, v) }
}

pub(crate) const LGDT: u8 = 0;
pub(crate) const LIDT: u8 = 1;
pub(crate) const SGDT: u8 = 2;
pub(crate) const SIDT: u8 = 3;
pub(crate) const INVLPG: u8 = 4;
pub(crate) const INVPCID: u8 = 5;

/// Instructions on a memory operand.
pub(crate) fn on_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let write = op.aux == SGDT || op.aux == SIDT;
    if op.aux == INVLPG {
        // The address is not accessed: no limit check.
        let base = cpu.seg[usize::from(op.seg & 7)].base;
        let base = if cpu.is_long() && op.seg < 4 { 0 } else { base };
        let lin = base.wrapping_add(cpu.offset(op));
        return cpu.invlpg(lin);
    }
    let lin = cpu.address::<ANY>(op, 6, write)?;
    match op.aux {
        LGDT => cpu.lgdt(lin, op.size),
        LIDT => cpu.lidt(lin, op.size),
        SGDT => cpu.sgdt(lin),
        SIDT => cpu.sidt(lin),
        _ => {
            let kind = cpu.reg_sized(op.dst, op.size);
            cpu.invpcid(kind, lin)
        }
    }
}

pub(crate) const LLDT: u8 = 0;
pub(crate) const LTR: u8 = 1;
pub(crate) const LMSW: u8 = 2;
pub(crate) const VERR: u8 = 3;
pub(crate) const VERW: u8 = 4;
pub(crate) const LAR: u8 = 5;
pub(crate) const LSL: u8 = 6;
pub(crate) const SLDT: u8 = 7;
pub(crate) const STR: u8 = 8;
pub(crate) const SMSW: u8 = 9;

/// Instructions on a 16-bit r/m; `imm` = 1: memory.
pub(crate) fn on_word(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if op.aux >= SLDT {
        return store_word(cpu, op);
    }
    let v = if op.imm != 0 {
        let lin = cpu.address::<ANY>(op, 2, false)?;
        cpu.load::<16>(lin)? as u16
    } else {
        cpu.reg::<16>(op.src) as u16
    };
    let zf = match op.aux {
        LLDT => return cpu.lldt(v),
        LTR => return cpu.ltr(v),
        LMSW => return cpu.lmsw(v),
        VERR => cpu.verr(v)?,
        VERW => cpu.verw(v)?,
        _ => {
            let found = if op.aux == LAR { cpu.lar(v)? } else { cpu.lsl(v)? };
            if let Some(value) = found {
                cpu.set_reg_sized(op.dst, op.size, u64::from(value));
            }
            found.is_some()
        }
    };
    let now = cpu.flags.arith();
    cpu.flags.set_arith(if zf { now | ZF } else { now & !ZF });
    Ok(())
}

fn store_word(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = match op.aux {
        SLDT => u64::from(cpu.sldt()?),
        STR => u64::from(cpu.str_insn()?),
        _ => cpu.smsw()?,
    };
    if op.imm != 0 {
        let lin = cpu.address::<ANY>(op, 2, true)?;
        return cpu.store::<16>(lin, v);
    }
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

/// JMP and CALL ptr16:16, ptr16:32: `imm` is the offset, `disp` the selector; `aux` = 1: CALL.
pub(crate) fn far_direct(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    far(cpu, op, op.disp as u16, op.imm)
}

/// JMP and CALL m16:16, m16:32, m16:64.
pub(crate) fn far_indirect(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, u32::from(op.size) + 2, false)?;
    let offset = cpu.load_sized(lin, op.size)?;
    let selector = cpu.load::<16>(lin.wrapping_add(u64::from(op.size)))? as u16;
    far(cpu, op, selector, offset)
}

fn far(cpu: &mut Cpu, op: &Op, selector: u16, offset: u64) -> Result<(), Trap> {
    if op.aux == 0 {
        cpu.far_jump(selector, offset, op.size)
    } else {
        cpu.far_call(selector, offset, op.size)
    }
}

/// RDRAND (`aux` 0) and RDSEED (1): CF set, the other flags clear.
pub(crate) fn random(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = if op.aux == 0 { cpu.rdrand()? } else { cpu.rdseed()? };
    cpu.set_reg_sized(op.dst, op.size, v);
    cpu.flags.set_arith(crate::flags::CF);
    Ok(())
}

/// RDFSBASE RDGSBASE (`aux` 0), WRFSBASE WRGSBASE (1); `seg` is the segment.
pub(crate) fn fs_gs_base(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let segment = usize::from(op.seg);
    if op.aux == 0 {
        let v = cpu.rd_fs_gs_base(segment)?;
        cpu.set_reg_sized(op.dst, op.size, v);
        return Ok(());
    }
    let v = cpu.reg_sized(op.dst, op.size);
    cpu.wr_fs_gs_base(segment, v)
}

/// BOUND: #BR when the signed index is outside of the two limits in memory.
pub(crate) fn bound(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = u64::from(op.size);
    let lin = cpu.address::<ANY>(op, 2 * u32::from(op.size), false)?;
    let (low, high) = (cpu.load_sized(lin, op.size)?, cpu.load_sized(lin.wrapping_add(size), op.size)?);
    let signed = |v: u64| if size == 2 { sext::<16>(v) as i64 } else { sext::<32>(v) as i64 };
    let index = signed(cpu.reg_sized(op.dst, op.size));
    if index < signed(low) || index > signed(high) { Err(Trap::fault(5)) } else { Ok(()) }
}

/// ARPL: raises the destination selector's RPL to the source's; `imm` = 1: memory.
pub(crate) fn arpl(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.mode == Mode::Real16 {
        return Err(Trap::UD);
    }
    let lin = if op.imm != 0 { Some(cpu.address::<ANY>(op, 2, true)?) } else { None };
    let selector = match lin {
        Some(lin) => cpu.load_rmw::<16>(lin)?,
        None => cpu.reg::<16>(op.dst),
    };
    let rpl = cpu.reg::<16>(op.src) & 3;
    let raised = selector & 3 < rpl;
    if raised {
        let selector = (selector & !3) | rpl;
        match lin {
            Some(lin) => cpu.store::<16>(lin, selector)?,
            None => cpu.set_reg::<16>(op.dst, selector),
        }
    }
    let now = cpu.flags.arith();
    cpu.flags.set_arith(if raised { now | ZF } else { now & !ZF });
    Ok(())
}
