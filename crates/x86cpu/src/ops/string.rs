//! MOVS STOS LODS SCAS CMPS, INS OUTS, with REP.
//!
//! Each element commits on its own: a fault or an event in the middle leaves the registers at an
//! element boundary and the instruction starts again from there. Long runs of MOVS and STOS over
//! plain RAM go page-wise through the MMU's bulk copies; what those refuse goes element by element.

use arch::x86_64::regs::gpr::{RAX, RCX, RDI, RDX, RSI};
use arch::x86_64::regs::{Rflags, seg};

use crate::cpu::{Cpu, Trap};
use crate::op::{Handler, Op};
use crate::ops::alu::by_size;
use crate::ops::alu::sub;
use crate::ops::operand::addr_mask;

/// `aux`: no prefix, REP or REPE, REPNE.
pub(crate) const NO_REP: u8 = 0;
pub(crate) const REPE: u8 = 1;
pub(crate) const REPNE: u8 = 2;

/// Elements after which a string instruction lets events in.
const BURST: u32 = 4096;

impl Cpu {
    /// Adds `delta` to an index register within the address size.
    #[inline(always)]
    fn advance(&mut self, r: usize, addr_size: u8, delta: u64) {
        let v = self.gpr[r].wrapping_add(delta);
        self.set_reg_sized(r as u8, addr_size, v);
    }

    #[inline(always)]
    fn stride(&self, bytes: u64) -> u64 {
        if self.flags.system_bit(Rflags::DF) { bytes.wrapping_neg() } else { bytes }
    }

    #[inline(always)]
    fn source_address(&self, op: &Op, bytes: u32) -> Result<u64, Trap> {
        self.linear(op.seg, self.gpr[RSI] & addr_mask(op.addr_size), bytes, false)
    }

    #[inline(always)]
    fn target_address(&self, op: &Op, bytes: u32, write: bool) -> Result<u64, Trap> {
        self.linear(seg::ES as u8, self.gpr[RDI] & addr_mask(op.addr_size), bytes, write)
    }

    /// Runs `element` under the op's REP prefix; `element` says whether to go on.
    #[inline(always)]
    fn repeat(
        &mut self,
        op: &Op,
        mut element: impl FnMut(&mut Self, u64) -> Result<(u64, bool), Trap>,
    ) -> Result<(), Trap> {
        if op.aux == NO_REP {
            return element(self, 1).map(|_| ());
        }
        let mask = addr_mask(op.addr_size);
        let mut burst = BURST;
        loop {
            let count = self.gpr[RCX] & mask;
            if count == 0 {
                return Ok(());
            }
            let (done, go_on) = element(self, count)?;
            let left = count - done;
            self.set_reg_sized(RCX as u8, op.addr_size, left);
            if self.io.is_active() {
                self.io.clear();
            }
            if left == 0 || !go_on {
                return Ok(());
            }
            // A bulk piece counts by its size: 64 elements like one.
            burst = burst.saturating_sub(1 + (done / 64) as u32);
            if burst == 0 || self.leave || self.poll.is_raised() {
                return Err(Trap::Pause);
            }
        }
    }

    /// Elements of `bytes` bytes that fit from `lin` to the end of its page.
    #[inline(always)]
    fn elements_in_page(lin: u64, bytes: u64) -> u64 {
        (4096 - (lin & 4095)) / bytes
    }

    /// Whether bulk copies may be used: forward, 64-bit mode, full addresses.
    #[inline(always)]
    fn bulk(&self, op: &Op, count: u64) -> bool {
        count > 1 && op.addr_size == 8 && self.is_long() && !self.flags.system_bit(Rflags::DF)
    }
}

pub(crate) fn movs<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bytes = u64::from(B / 8);
    cpu.repeat(op, |cpu, count| {
        let src = cpu.source_address(op, B / 8)?;
        let dst = cpu.target_address(op, B / 8, true)?;
        if cpu.bulk(op, count) {
            let n = count.min(Cpu::elements_in_page(src, bytes)).min(Cpu::elements_in_page(dst, bytes));
            let done = if n > 1 { cpu.copy_chunk(dst, src, (n * bytes) as usize) as u64 / bytes } else { 0 };
            if done > 0 {
                cpu.gpr[RSI] = cpu.gpr[RSI].wrapping_add(done * bytes);
                cpu.gpr[RDI] = cpu.gpr[RDI].wrapping_add(done * bytes);
                return Ok((done, true));
            }
        }
        let v = cpu.load::<B>(src)?;
        cpu.store::<B>(dst, v)?;
        let step = cpu.stride(bytes);
        cpu.advance(RSI, op.addr_size, step);
        cpu.advance(RDI, op.addr_size, step);
        Ok((1, true))
    })
}

pub(crate) fn stos<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bytes = u64::from(B / 8);
    cpu.repeat(op, |cpu, count| {
        let dst = cpu.target_address(op, B / 8, true)?;
        let v = cpu.reg::<B>(RAX as u8);
        if cpu.bulk(op, count) {
            let n = count.min(Cpu::elements_in_page(dst, bytes));
            let done = if n > 1 {
                cpu.fill_chunk(dst, v, bytes as usize, (n * bytes) as usize) as u64 / bytes
            } else {
                0
            };
            if done > 0 {
                cpu.gpr[RDI] = cpu.gpr[RDI].wrapping_add(done * bytes);
                return Ok((done, true));
            }
        }
        cpu.store::<B>(dst, v)?;
        let step = cpu.stride(bytes);
        cpu.advance(RDI, op.addr_size, step);
        Ok((1, true))
    })
}

pub(crate) fn lods<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.repeat(op, |cpu, _| {
        let src = cpu.source_address(op, B / 8)?;
        let v = cpu.load::<B>(src)?;
        cpu.set_reg::<B>(RAX as u8, v);
        let step = cpu.stride(u64::from(B / 8));
        cpu.advance(RSI, op.addr_size, step);
        Ok((1, true))
    })
}

pub(crate) fn scas<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.repeat(op, |cpu, _| {
        let dst = cpu.target_address(op, B / 8, false)?;
        let v = cpu.load::<B>(dst)?;
        let sum = sub::<B>(cpu.reg::<B>(RAX as u8), v, 0);
        cpu.flags.set_sum::<B>(sum);
        let step = cpu.stride(u64::from(B / 8));
        cpu.advance(RDI, op.addr_size, step);
        Ok((1, cpu.flags.zf() == (op.aux == REPE)))
    })
}

pub(crate) fn cmps<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.repeat(op, |cpu, _| {
        let src = cpu.source_address(op, B / 8)?;
        let dst = cpu.target_address(op, B / 8, false)?;
        let a = cpu.load::<B>(src)?;
        let b = cpu.load::<B>(dst)?;
        cpu.flags.set_sum::<B>(sub::<B>(a, b, 0));
        let step = cpu.stride(u64::from(B / 8));
        cpu.advance(RSI, op.addr_size, step);
        cpu.advance(RDI, op.addr_size, step);
        Ok((1, cpu.flags.zf() == (op.aux == REPE)))
    })
}

pub(crate) fn ins<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.repeat(op, |cpu, _| {
        let dst = cpu.target_address(op, B / 8, true)?;
        cpu.probe_write(dst, u64::from(B / 8))?;
        let v = cpu.pio_read(cpu.gpr[RDX] as u16, (B / 8) as u8)?;
        cpu.store::<B>(dst, u64::from(v))?;
        let step = cpu.stride(u64::from(B / 8));
        cpu.advance(RDI, op.addr_size, step);
        Ok((1, true))
    })
}

pub(crate) fn outs<const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.repeat(op, |cpu, _| {
        let src = cpu.source_address(op, B / 8)?;
        let v = cpu.load::<B>(src)?;
        cpu.pio_write(cpu.gpr[RDX] as u16, (B / 8) as u8, v as u32)?;
        let step = cpu.stride(u64::from(B / 8));
        cpu.advance(RSI, op.addr_size, step);
        Ok((1, true))
    })
}

/// IN: port in DX (`aux` = 1) or in `imm`.
pub(crate) fn port_in(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let port = if op.aux != 0 { cpu.gpr[RDX] as u16 } else { op.imm as u16 };
    let v = cpu.pio_read(port, op.size)?;
    cpu.set_reg_sized(RAX as u8, op.size, u64::from(v));
    Ok(())
}

/// OUT: port in DX (`aux` = 1) or in `imm`.
pub(crate) fn port_out(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let port = if op.aux != 0 { cpu.gpr[RDX] as u16 } else { op.imm as u16 };
    let v = cpu.reg_sized(RAX as u8, op.size) as u32;
    cpu.pio_write(port, op.size, v)
}

pub(crate) static MOVS: [Handler; 4] = by_size!(movs,);
pub(crate) static STOS: [Handler; 4] = by_size!(stos,);
pub(crate) static LODS: [Handler; 4] = by_size!(lods,);
pub(crate) static SCAS: [Handler; 4] = by_size!(scas,);
pub(crate) static CMPS: [Handler; 4] = by_size!(cmps,);
pub(crate) static INS: [Handler; 4] = by_size!(ins,);
pub(crate) static OUTS: [Handler; 4] = by_size!(outs,);
