//! Condition codes, Jcc, SETcc, CMOVcc, and compare-and-branch pairs executed as one.

use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::ops::alu::{CMP, RI, RR, Sum, TEST, sub};
use crate::ops::operand::{ANY, mask, sext};

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

/// Jcc rel in 64-bit mode. When not taken the block goes on.
pub(crate) fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.flags.condition(CC) {
        cpu.rip = cpu.block_start().wrapping_add(op.imm);
        return Err(Trap::Taken);
    }
    Ok(())
}

/// What is compared before a fused branch: operation and operand form of `alu`.
const FUSED: [(u8, u8); 4] = [(CMP, RR), (CMP, RI), (TEST, RR), (TEST, RI)];

/// CMP or TEST of registers and immediates with the Jcc behind it, as one op; the branch's target is in
/// `disp`. Neither can fault.
fn compare_and_jump<const KIND: usize, const CC: u8, const B: u32>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    let (operation, form) = FUSED[KIND];
    let a = cpu.reg::<B>(op.dst);
    let b = if form == RR { cpu.reg::<B>(op.src) } else { op.imm };
    let take = if operation == CMP {
        cpu.flags.set_sum::<B>(sub::<B>(a, b, 0));
        let base = match CC >> 1 {
            1 => a < b,
            2 => a == b,
            3 => a <= b,
            6 => (sext::<B>(a) as i64) < (sext::<B>(b) as i64),
            7 => sext::<B>(a) as i64 <= sext::<B>(b) as i64,
            _ => cpu.flags.condition(CC & !1),
        };
        base != (CC & 1 != 0)
    } else {
        cpu.flags.set_sum::<B>(Sum { value: a & b, carry: 0, aux: 0 });
        cpu.flags.condition(CC)
    };
    if take {
        cpu.rip = cpu.block_start().wrapping_add(op.disp);
        return Err(Trap::Taken);
    }
    Ok(())
}

/// The fused op of a compare (its op, operation and form as in `alu`, operand size) and the branch
/// behind it with condition `cc`, when there is one.
pub(crate) fn fuse(operation: u8, form: u8, size: u8, cc: u8) -> Option<Handler> {
    let kind = FUSED.iter().position(|f| *f == (operation, form))?;
    let table = &COMPARE_AND_JUMP[kind];
    let by_cc = match size {
        1 => &table[0],
        4 => &table[1],
        8 => &table[2],
        _ => return None,
    };
    Some(by_cc[usize::from(cc & 15)])
}

/// Jcc rel with a 16- or 32-bit instruction pointer.
pub(crate) fn jcc_any(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.flags.condition(op.aux) {
        cpu.branch_to(op)?;
        return Err(Trap::Taken);
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

macro_rules! fused_by_cc {
    ($k:expr, $b:expr) => {
        [
            compare_and_jump::<$k, 0, $b> as Handler,
            compare_and_jump::<$k, 1, $b>,
            compare_and_jump::<$k, 2, $b>,
            compare_and_jump::<$k, 3, $b>,
            compare_and_jump::<$k, 4, $b>,
            compare_and_jump::<$k, 5, $b>,
            compare_and_jump::<$k, 6, $b>,
            compare_and_jump::<$k, 7, $b>,
            compare_and_jump::<$k, 8, $b>,
            compare_and_jump::<$k, 9, $b>,
            compare_and_jump::<$k, 10, $b>,
            compare_and_jump::<$k, 11, $b>,
            compare_and_jump::<$k, 12, $b>,
            compare_and_jump::<$k, 13, $b>,
            compare_and_jump::<$k, 14, $b>,
            compare_and_jump::<$k, 15, $b>,
        ]
    };
}

macro_rules! fused_by_size {
    ($k:expr) => {
        [fused_by_cc!($k, 8), fused_by_cc!($k, 32), fused_by_cc!($k, 64)]
    };
}

static COMPARE_AND_JUMP: [[[Handler; 16]; 3]; 4] =
    [fused_by_size!(0), fused_by_size!(1), fused_by_size!(2), fused_by_size!(3)];
