//! CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD.
//!
//! The forms without LOCK run the same way: atomicity more than asked for is allowed.

use arch::x86_64::regs::gpr::{RAX, RBX, RCX, RDX};

use crate::cpu::{Cpu, Trap};
use crate::flags::ZF;
use crate::op::{Handler, Op};
use crate::ops::alu::{add, by_size, sub};
use crate::ops::operand::ANY;

/// CMPXCHG r, r.
pub(crate) fn cmpxchg_rr<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let old = cpu.reg::<B>(op.dst);
    let expected = cpu.reg::<B>(RAX as u8);
    if old == expected {
        let v = cpu.reg::<B>(op.src);
        cpu.set_reg::<B>(op.dst, v);
    } else {
        // The destination register is not written at all then: its upper half stays.
        cpu.set_reg::<B>(RAX as u8, old);
    }
    cpu.flags.set_sum::<B>(sub::<B>(expected, old, 0));
    Ok(())
}

/// CMPXCHG m, r: memory is written in any case (SDM vol. 2).
pub(crate) fn cmpxchg_mr<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, B / 8, true)?;
    let expected = cpu.reg::<B>(RAX as u8);
    let new = cpu.reg::<B>(op.src);
    let old = cpu.atomic_op::<B>(lin, |v| if v == expected { new } else { v })?;
    if old != expected {
        cpu.set_reg::<B>(RAX as u8, old);
    }
    cpu.flags.set_sum::<B>(sub::<B>(expected, old, 0));
    Ok(())
}

/// CMPXCHG8B (`size` 8) and CMPXCHG16B (16); only ZF changes.
pub(crate) fn cmpxchg_pair(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, u32::from(op.size), true)?;
    let equal = if op.size == 16 {
        if lin & 15 != 0 {
            return Err(Trap::gp(0));
        }
        let pair = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let expected = pair(cpu.gpr[RDX], cpu.gpr[RAX]);
        let new = pair(cpu.gpr[RCX], cpu.gpr[RBX]);
        let old = cpu.atomic_u128(lin, |v| if v == expected { new } else { v })?;
        if old != expected {
            cpu.gpr[RAX] = old as u64;
            cpu.gpr[RDX] = (old >> 64) as u64;
        }
        old == expected
    } else {
        let pair = |high: u64, low: u64| (high << 32) | (low & 0xffff_ffff);
        let expected = pair(cpu.gpr[RDX], cpu.gpr[RAX]);
        let new = pair(cpu.gpr[RCX], cpu.gpr[RBX]);
        let old = cpu.atomic_u64(lin, |v| if v == expected { new } else { v })?;
        if old != expected {
            cpu.set_reg::<32>(RAX as u8, old);
            cpu.set_reg::<32>(RDX as u8, old >> 32);
        }
        old == expected
    };
    let now = cpu.flags.arith();
    cpu.flags.set_arith(if equal { now | ZF } else { now & !ZF });
    Ok(())
}

/// XADD r, r: the sum goes to the destination last, so it wins when both are the same register.
pub(crate) fn xadd_rr<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (a, b) = (cpu.reg::<B>(op.dst), cpu.reg::<B>(op.src));
    let sum = add::<B>(a, b, 0);
    cpu.set_reg::<B>(op.src, a);
    cpu.set_reg::<B>(op.dst, sum.value);
    cpu.flags.set_sum::<B>(sum);
    Ok(())
}

pub(crate) fn xadd_mr<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, B / 8, true)?;
    let b = cpu.reg::<B>(op.src);
    let old = cpu.atomic_op::<B>(lin, |a| add::<B>(a, b, 0).value)?;
    cpu.set_reg::<B>(op.src, old);
    cpu.flags.set_sum::<B>(add::<B>(old, b, 0));
    Ok(())
}

pub(crate) static CMPXCHG_RR: [Handler; 4] = by_size!(cmpxchg_rr,);
pub(crate) static CMPXCHG_MR: [Handler; 4] = by_size!(cmpxchg_mr,);
pub(crate) static XADD_RR: [Handler; 4] = by_size!(xadd_rr,);
pub(crate) static XADD_MR: [Handler; 4] = by_size!(xadd_mr,);
