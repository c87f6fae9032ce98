//! PUSH, POP, PUSHF, POPF, ENTER, LEAVE, PUSHA, POPA.

use arch::x86_64::regs::gpr::{RBP, RSP};
use arch::x86_64::regs::{Rflags, seg};

use crate::cpu::{Cpu, Mode, Trap};
use crate::flags::ARITH;
use crate::op::Op;
use crate::ops::operand::{ANY, FLAT};

impl Cpu {
    /// Linear address of `bytes` bytes at stack offset `offset` (masked to the stack's width).
    #[inline(always)]
    pub(crate) fn stack_lin(&self, offset: u64, bytes: u32, write: bool) -> Result<u64, Trap> {
        if self.is_long() {
            return Ok(offset);
        }
        self.linear(seg::SS as u8, offset & self.stack_mask(), bytes, write)
    }

    /// Sets RSP within the stack's width.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: u64) {
        if self.is_long() {
            self.gpr[RSP] = sp;
            return;
        }
        let mask = self.stack_mask();
        self.gpr[RSP] = if mask == 0xffff { (self.gpr[RSP] & !mask) | (sp & mask) } else { sp & mask };
    }

    /// Pushes `size` bytes (2, 4 or 8).
    #[inline]
    pub(crate) fn push_sized(&mut self, size: u8, v: u64) -> Result<(), Trap> {
        let sp = self.gpr[RSP].wrapping_sub(u64::from(size));
        let lin = self.stack_lin(sp, u32::from(size), true)?;
        self.store_sized(lin, size, v)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Reads `size` bytes at the stack pointer plus `above`, without moving it.
    #[inline]
    pub(crate) fn peek_sized(&mut self, size: u8, above: u64) -> Result<u64, Trap> {
        let lin = self.stack_lin(self.gpr[RSP].wrapping_add(above), u32::from(size), false)?;
        self.load_sized(lin, size)
    }

    /// Pops `size` bytes.
    #[inline]
    pub(crate) fn pop_sized(&mut self, size: u8) -> Result<u64, Trap> {
        let v = self.peek_sized(size, 0)?;
        self.set_sp(self.gpr[RSP].wrapping_add(u64::from(size)));
        Ok(v)
    }
}

/// PUSH r64 in 64-bit mode.
pub(crate) fn push_r64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP].wrapping_sub(8);
    if cpu.quick_store::<64>(sp, cpu.gpr[usize::from(op.src & 15)]) {
        cpu.gpr[RSP] = sp;
        return Ok(());
    }
    push_r64_full(cpu, op)
}

#[cold]
#[inline(never)]
fn push_r64_full(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP].wrapping_sub(8);
    let v = cpu.gpr[usize::from(op.src & 15)];
    cpu.write_u64(sp, v)?;
    cpu.gpr[RSP] = sp;
    Ok(())
}

/// POP r64 in 64-bit mode.
pub(crate) fn pop_r64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP];
    if let Some(v) = cpu.quick_load::<64>(sp) {
        cpu.gpr[RSP] = sp.wrapping_add(8);
        cpu.gpr[usize::from(op.dst & 15)] = v;
        return Ok(());
    }
    pop_r64_full(cpu, op)
}

#[cold]
#[inline(never)]
fn pop_r64_full(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sp = cpu.gpr[RSP];
    let v = cpu.read_u64(sp)?;
    cpu.gpr[RSP] = sp.wrapping_add(8);
    cpu.gpr[usize::from(op.dst & 15)] = v;
    Ok(())
}

/// PUSH reg, any width.
pub(crate) fn push_reg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.reg_sized(op.src, op.size);
    cpu.push_sized(op.size, v)
}

/// PUSH imm; `imm` is sign-extended to 64 bits.
pub(crate) fn push_imm(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.push_sized(op.size, op.imm)
}

pub(crate) fn push_mem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<ANY>(op, u32::from(op.size), false)?;
    let v = cpu.load_sized(lin, op.size)?;
    cpu.push_sized(op.size, v)
}

/// PUSH mem in 64-bit mode without segment.
pub(crate) fn push_m64(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let lin = cpu.address::<FLAT>(op, 8, false)?;
    let v = cpu.read_u64(lin)?;
    cpu.push_sized(8, v)
}

pub(crate) fn pop_reg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = cpu.pop_sized(op.size)?;
    cpu.set_reg_sized(op.dst, op.size, v);
    Ok(())
}

/// POP mem: an address that uses RSP sees it already incremented (SDM vol. 2, POP).
pub(crate) fn pop_mem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let old = cpu.gpr[RSP];
    let v = cpu.pop_sized(op.size)?;
    let stored =
        cpu.address::<ANY>(op, u32::from(op.size), true).and_then(|lin| cpu.store_sized(lin, op.size, v));
    if stored.is_err() {
        cpu.gpr[RSP] = old;
    }
    stored
}

pub(crate) fn push_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let v = u64::from(cpu.seg[usize::from(op.src & 7)].selector);
    cpu.push_sized(op.size, v)
}

pub(crate) fn pop_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.peek_sized(op.size, 0)? as u16;
    cpu.load_segment(usize::from(op.dst & 7), selector)?;
    cpu.set_sp(cpu.gpr[RSP].wrapping_add(u64::from(op.size)));
    if usize::from(op.dst) == seg::SS {
        // For the next instruction alone: who looks for events executes it by itself.
        (cpu.events.movss_shadow, cpu.attention) = (true, true);
    }
    Ok(())
}

pub(crate) fn pushf(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    // VM and RF are pushed as zero.
    let image = cpu.rflags() & !(Rflags::VM | Rflags::RF).bits();
    cpu.push_sized(op.size, image)
}

/// POPF (SDM vol. 2): IOPL only at CPL 0, IF only when CPL ≤ IOPL; RF becomes zero.
pub(crate) fn popf(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let image = cpu.pop_sized(op.size)?;
    let old = cpu.rflags();
    let iopl = ((old >> 12) & 3) as u8;
    let mut may = Rflags::TF | Rflags::DF | Rflags::NT;
    if op.size != 2 {
        may |= Rflags::AC | Rflags::ID;
    }
    if cpu.cpl == 0 || cpu.mode == Mode::Real16 {
        may |= Rflags::IOPL;
    }
    if cpu.cpl <= iopl {
        may |= Rflags::IF;
    }
    let may = may.bits() | ARITH;
    let fixed = if op.size == 2 { 0 } else { Rflags::RF.bits() };
    let ac_before = old & Rflags::AC.bits();
    cpu.set_rflags((image & may) | (old & !may & !fixed));
    if cpu.rflags() & Rflags::AC.bits() != ac_before {
        cpu.update_mode();
    }
    Ok(())
}

/// ENTER: `imm` = bytes | level << 16.
pub(crate) fn enter(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = u64::from(op.size);
    let bytes = op.imm & 0xffff;
    let level = (op.imm >> 16) & 31;
    let (rsp, rbp) = (cpu.gpr[RSP], cpu.gpr[RBP]);
    // Everything is probed first: the new frame, then its use by the last probe of the manual.
    let total = size * (level + 1);
    let low = rsp.wrapping_sub(total);
    let first = cpu.stack_lin(low, total as u32, true)?;
    cpu.probe_write(first, total)?;
    let mut at = rsp.wrapping_sub(size);
    let frame = at;
    let lin = cpu.stack_lin(at, size as u32, true)?;
    cpu.store_sized(lin, op.size, rbp)?;
    for i in 1..level {
        let from = cpu.stack_lin(rbp.wrapping_sub(size * i), size as u32, false)?;
        let v = cpu.load_sized(from, op.size)?;
        at = at.wrapping_sub(size);
        let to = cpu.stack_lin(at, size as u32, true)?;
        cpu.store_sized(to, op.size, v)?;
    }
    if level > 0 {
        at = at.wrapping_sub(size);
        let to = cpu.stack_lin(at, size as u32, true)?;
        cpu.store_sized(to, op.size, frame)?;
    }
    let sp = at.wrapping_sub(bytes);
    let probe = cpu.stack_lin(sp, 1, true)?;
    cpu.probe_write(probe, 1)?;
    cpu.set_reg_sized(RBP as u8, op.size, frame);
    cpu.set_sp(sp);
    Ok(())
}

pub(crate) fn leave(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bp = cpu.gpr[RBP];
    let lin = cpu.stack_lin(bp, u32::from(op.size), false)?;
    let v = cpu.load_sized(lin, op.size)?;
    cpu.set_sp(bp.wrapping_add(u64::from(op.size)));
    cpu.set_reg_sized(RBP as u8, op.size, v);
    Ok(())
}

/// PUSHA, PUSHAD.
pub(crate) fn pusha(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = u64::from(op.size);
    let sp = cpu.gpr[RSP];
    let low = cpu.stack_lin(sp.wrapping_sub(8 * size), 8 * u32::from(op.size), true)?;
    cpu.probe_write(low, 8 * size)?;
    for i in 0..8u64 {
        let v = cpu.reg_sized(i as u8, op.size);
        let lin = cpu.stack_lin(sp.wrapping_sub((i + 1) * size), u32::from(op.size), true)?;
        cpu.store_sized(lin, op.size, v)?;
    }
    cpu.set_sp(sp.wrapping_sub(8 * size));
    Ok(())
}

/// POPA, POPAD: the stack pointer's slot is skipped.
pub(crate) fn popa(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = u64::from(op.size);
    let mut values = [0; 8];
    for (i, v) in values.iter_mut().enumerate() {
        *v = cpu.peek_sized(op.size, (7 - i as u64) * size)?;
    }
    for (i, v) in values.iter().enumerate() {
        if i != RSP {
            cpu.set_reg_sized(i as u8, op.size, *v);
        }
    }
    cpu.set_sp(cpu.gpr[RSP].wrapping_add(8 * size));
    Ok(())
}
