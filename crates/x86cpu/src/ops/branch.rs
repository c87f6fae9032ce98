//! JMP, CALL, RET, LOOP, JCXZ. Far ones are sys's.

use arch::x86_64::regs::gpr::{RCX, RSP};

use crate::cpu::{Cpu, Trap};
use crate::mmu::is_canonical;
use crate::op::Op;
use crate::ops::operand::{ANY, addr_mask};

impl Cpu {
    /// Goes to the op's direct target, with an instruction pointer of `op.size` bytes. Outside of
    /// 64-bit mode a target beyond the CS limit is #GP(0).
    pub(crate) fn branch_to(&mut self, op: &Op) -> Result<(), Trap> {
        let target = self.block_start().wrapping_add(op.imm) & addr_mask(op.size);
        self.go(target)
    }

    /// Goes to `target`; checks the CS limit outside of 64-bit mode and canonicality inside.
    #[inline(always)]
    pub(crate) fn go(&mut self, target: u64) -> Result<(), Trap> {
        if self.is_long() {
            if !is_canonical(target) {
                return Err(Trap::gp(0));
            }
        } else if target > u64::from(self.seg[arch::x86_64::regs::seg::CS].limit) {
            return Err(Trap::gp(0));
        }
        self.rip = target;
        Ok(())
    }
}

/// JMP rel in 64-bit mode.
pub(crate) fn jmp_64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.rip = cpu.block_start().wrapping_add(op.imm);
    Ok(())
}

pub(crate) fn jmp_any(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.branch_to(op)
}

/// CALL rel in 64-bit mode.
pub(crate) fn call_64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP].wrapping_sub(8);
    if cpu.quick_store::<64>(sp, cpu.rip) {
        cpu.gpr[RSP] = sp;
        cpu.rip = cpu.block_start().wrapping_add(op.imm);
        return Ok(());
    }
    call_64_full(cpu, op)
}

#[cold]
#[inline(never)]
fn call_64_full(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP].wrapping_sub(8);
    let next = cpu.rip;
    cpu.write_u64(sp, next)?;
    cpu.gpr[RSP] = sp;
    cpu.rip = cpu.block_start().wrapping_add(op.imm);
    Ok(())
}

pub(crate) fn call_any(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let next = cpu.rip;
    let target = cpu.block_start().wrapping_add(op.imm) & addr_mask(op.size);
    call_to(cpu, op, next, target)
}

/// Pushes `next` and goes; nothing changes when either faults.
fn call_to(cpu: &mut Cpu, op: &Op, next: u64, target: u64) -> Result<(), Trap> {
    cpu.go(target)?;
    cpu.push_sized(op.size, next)
}

#[inline(always)]
fn indirect_target(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    if op.aux == 0 {
        return Ok(cpu.reg_sized(op.src, op.size));
    }
    let lin = cpu.address::<ANY>(op, u32::from(op.size), false)?;
    cpu.load_sized(lin, op.size)
}

/// JMP r/m; `aux` != 0: memory.
pub(crate) fn jmp_indirect(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target = indirect_target(cpu, op)?;
    cpu.go(target)
}

/// CALL r/m; `aux` != 0: memory.
pub(crate) fn call_indirect(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let next = cpu.rip;
    let target = indirect_target(cpu, op)?;
    call_to(cpu, op, next, target)
}

/// RET in 64-bit mode.
pub(crate) fn ret_64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP];
    if let Some(target) = cpu.quick_load::<64>(sp)
        && is_canonical(target)
    {
        cpu.gpr[RSP] = sp.wrapping_add(8);
        cpu.rip = target;
        return Ok(());
    }
    ret_64_full(cpu, op)
}

#[cold]
#[inline(never)]
fn ret_64_full(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP];
    let target = cpu.read_u64(sp)?;
    cpu.go(target)?;
    cpu.gpr[RSP] = sp.wrapping_add(8);
    Ok(())
}

/// RET imm16, any mode.
pub(crate) fn ret_any(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target = cpu.peek_sized(op.size, 0)?;
    cpu.go(target)?;
    cpu.set_sp(cpu.gpr[RSP].wrapping_add(u64::from(op.size)).wrapping_add(op.imm));
    Ok(())
}

/// LOOP (`aux` 2), LOOPE (1), LOOPNE (0), JCXZ (3): the counter's width is the address size.
pub(crate) fn loop_cx(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mask = addr_mask(op.addr_size);
    let count = cpu.gpr[RCX] & mask;
    if op.aux == 3 {
        if count != 0 {
            return Ok(());
        }
        cpu.branch_to(op)?;
        return Err(Trap::Taken);
    }
    let left = count.wrapping_sub(1) & mask;
    let take = left != 0
        && match op.aux {
            0 => !cpu.flags.zf(),
            1 => cpu.flags.zf(),
            _ => true,
        };
    if take {
        cpu.branch_to(op)?;
    }
    cpu.set_reg_sized(RCX as u8, op.addr_size, left);
    if take { Err(Trap::Taken) } else { Ok(()) }
}

/// #UD.
pub(crate) fn undefined(_: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(Trap::UD)
}
