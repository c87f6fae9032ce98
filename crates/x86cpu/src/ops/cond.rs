//! Condition codes, Jcc, SETcc, CMOVcc, and compare-and-branch pairs executed as one.

use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::ops::operand::{ANY, mask};

impl Flags {
    /// Condition `cc` (0..16, SDM vol. 1, appendix B).
    #[inline(always)]
    pub(crate) fn condition(&self, cc: u8) -> bool {
        let base = match cc >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() | self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.less(),
            _ => self.less() | self.zf(),
        };
        base != (cc & 1 != 0)
    }
}

/// Jcc rel in 64-bit mode. When not taken, `rip` is already the next instruction.
pub(crate) fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.flags.condition(CC) {
        cpu.rip = cpu.block_start().wrapping_add(op.imm);
    }
    Ok(())
}

/// Jcc rel with a 16- or 32-bit instruction pointer.
pub(crate) fn jcc_any(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.flags.condition(op.aux) {
        return cpu.branch_to(op);
    }
    Ok(())
}

pub(crate) fn setcc_reg<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.flags.condition(CC);
    cpu.set_reg::<8>(op.dst, u64::from(v));
    Ok(())
}

pub(crate) fn setcc_mem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.flags.condition(op.aux);
    let lin = cpu.address::<ANY>(op, 1, true)?;
    cpu.store::<8>(lin, u64::from(v))
}

/// CMOVcc reg, reg: a 32-bit destination is zero-extended whether or not it moves.
pub(crate) fn cmov_reg<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let take = cpu.flags.condition(CC);
    let (d, s) = (cpu.gpr[usize::from(op.dst & 15)], cpu.gpr[usize::from(op.src & 15)]);
    let v = if take { s } else { d };
    match op.size {
        2 => cpu.set_reg::<16>(op.dst, v),
        4 => cpu.gpr[usize::from(op.dst & 15)] = v & mask::<32>(),
        _ => cpu.gpr[usize::from(op.dst & 15)] = v,
    }
    Ok(())
}

/// CMOVcc reg, mem: the load happens in any case.
pub(crate) fn cmov_mem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, u32::from(op.size), false)?;
    let loaded = cpu.load_sized(lin, op.size)?;
    let v = if cpu.flags.condition(op.aux) { loaded } else { cpu.reg_sized(op.dst, op.size) };
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

macro_rules! by_cc {
    ($f:ident) => {
        [
            $f::<0> as Handler,
            $f::<1>,
            $f::<2>,
            $f::<3>,
            $f::<4>,
            $f::<5>,
            $f::<6>,
            $f::<7>,
            $f::<8>,
            $f::<9>,
            $f::<10>,
            $f::<11>,
            $f::<12>,
            $f::<13>,
            $f::<14>,
            $f::<15>,
        ]
    };
}

pub(crate) static JCC: [Handler; 16] = by_cc!(jcc);
pub(crate) static SETCC: [Handler; 16] = by_cc!(setcc_reg);
pub(crate) static CMOV: [Handler; 16] = by_cc!(cmov_reg);
