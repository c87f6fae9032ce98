//! The bridge to `fpu/`: enable checks, addresses, memory, faults.

use arch::x86_64::regs::{Cr0, Cr4};

use crate::cpu::{Cpu, Trap};
use crate::fpu::{self, Class, FlagsUse, FpBus, FpContext, FpFault};
use crate::op::Op;
use crate::ops::operand::ANY;

/// The CPU as memory for `fpu::execute`, with the FPU and the registers taken out.
struct Bus<'a>(&'a mut Cpu);

impl FpBus for Bus<'_> {
    type Fault = Trap;

    #[inline]
    fn load(&mut self, ea: u64, buf: &mut [u8]) -> Result<(), Trap> {
        match buf.len() {
            16 => buf.copy_from_slice(&self.0.read_u128(ea)?.to_le_bytes()),
            8 => buf.copy_from_slice(&self.0.read_u64(ea)?.to_le_bytes()),
            4 => buf.copy_from_slice(&self.0.read_u32(ea)?.to_le_bytes()),
            2 => buf.copy_from_slice(&self.0.read_u16(ea)?.to_le_bytes()),
            _ => {
                for (i, b) in buf.iter_mut().enumerate() {
                    *b = self.0.read_u8(ea.wrapping_add(i as u64))?;
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn store(&mut self, ea: u64, bytes: &[u8]) -> Result<(), Trap> {
        if let Ok(raw) = <[u8; 16]>::try_from(bytes) {
            return self.0.write_u128(ea, u128::from_le_bytes(raw));
        }
        if let Ok(raw) = <[u8; 8]>::try_from(bytes) {
            return self.0.write_u64(ea, u64::from_le_bytes(raw));
        }
        if let Ok(raw) = <[u8; 4]>::try_from(bytes) {
            return self.0.write_u32(ea, u32::from_le_bytes(raw));
        }
        self.0.probe_write(ea, bytes.len() as u64)?;
        for (i, b) in bytes.iter().enumerate() {
            self.0.write_u8(ea.wrapping_add(i as u64), *b)?;
        }
        Ok(())
    }

    fn check_write(&mut self, ea: u64, len: usize) -> Result<(), Trap> {
        self.0.probe_write(ea, len as u64)
    }
}

/// CR0.EM, CR0.TS, CR0.MP and CR4.OSFXSR (SDM vol. 3, 2.5 and 14.1).
#[inline(always)]
fn check_enabled(cpu: &Cpu, class: Class) -> Result<(), Trap> {
    let cr0 = cpu.cr0;
    let (em, ts) = (cr0 & Cr0::EM.bits() != 0, cr0 & Cr0::TS.bits() != 0);
    match class {
        Class::Sse if em || cpu.cr4 & Cr4::OSFXSR.bits() == 0 => Err(Trap::UD),
        Class::Mmx if em => Err(Trap::UD),
        Class::X87 | Class::Fxsr if em => Err(Trap::NM),
        Class::Wait if ts && cr0 & Cr0::MP.bits() != 0 => Err(Trap::NM),
        Class::Wait => Ok(()),
        _ if ts => Err(Trap::NM),
        _ => Ok(()),
    }
}

/// Any x87, MMX or SSE instruction: `imm` indexes `Cpu::fp_ops`; `size` is the memory operand's
/// length (0: none), `aux` = 1 when it is stored to.
pub(crate) fn execute(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let Some(insn) = cpu.fp_ops.get(op.imm as usize).copied() else { return Err(Trap::UD) };
    check_enabled(cpu, insn.class())?;
    let ea = if op.size == 0 { 0 } else { cpu.address::<ANY>(op, u32::from(op.size), op.aux != 0)? };
    let rip = cpu.block_start().wrapping_add(u64::from(op.at));
    let flags_use = insn.flags_use();
    let mut rflags = if flags_use == FlagsUse::None { 0 } else { cpu.rflags() };
    let mut state = std::mem::take(&mut cpu.fpu);
    let mut gpr: [u64; 16] = [0; 16];
    gpr.copy_from_slice(&cpu.gpr[..16]);
    let context = FpContext { fpu: &mut state, gpr: &mut gpr, rflags: &mut rflags, rip };
    let done = fpu::execute(&insn, context, &mut Bus(cpu), ea);
    cpu.fpu = state;
    match done {
        Ok(()) => {
            cpu.gpr[..16].copy_from_slice(&gpr);
            if flags_use == FlagsUse::Writes {
                cpu.flags.set_arith(rflags);
            }
            Ok(())
        }
        Err(FpFault::Mem(trap)) => Err(trap),
        Err(FpFault::Simd) if cpu.cr4 & Cr4::OSXMMEXCPT.bits() == 0 => Err(Trap::UD),
        Err(FpFault::Simd) => Err(Trap::fault(19)),
        Err(FpFault::X87) => Err(Trap::fault(16)),
        Err(FpFault::Gp) => Err(Trap::gp(0)),
        Err(FpFault::Ud) => Err(Trap::UD),
    }
}
