//! The bridge to `fpu/`: enable checks, addresses, memory, faults.

use arch::x86_64::regs::{Cr0, Cr4};

use crate::cpu::{Cpu, Trap};
use crate::fpu::{self, Class, FlagsUse, FpBus, FpContext, FpFault, FpInsn, Move, Shape, V};
use crate::op::{Handler, Op};
use crate::ops::operand::{ANY, FLAT};

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
                let mut at = ea;
                let mut words = buf.chunks_exact_mut(8);
                for word in &mut words {
                    word.copy_from_slice(&self.0.read_u64(at)?.to_le_bytes());
                    at = at.wrapping_add(8);
                }
                for b in words.into_remainder() {
                    *b = self.0.read_u8(at)?;
                    at = at.wrapping_add(1);
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
        let mut at = ea;
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.0.write_u64(at, u64::from_le_bytes(*word))?;
            at = at.wrapping_add(8);
        }
        for b in rest {
            self.0.write_u8(at, *b)?;
            at = at.wrapping_add(1);
        }
        Ok(())
    }

    fn check_write(&mut self, ea: u64, len: usize) -> Result<(), Trap> {
        self.0.probe_write(ea, len as u64)
    }
}

/// For instructions without a memory operand.
struct NoBus;

impl FpBus for NoBus {
    type Fault = Trap;

    fn load(&mut self, _: u64, _: &mut [u8]) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    fn store(&mut self, _: u64, _: &[u8]) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    fn check_write(&mut self, _: u64, _: usize) -> Result<(), Trap> {
        Err(Trap::UD)
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

/// The handler for an instruction with this kind of address: the shorter, the plainer it is.
pub(crate) fn handler(insn: &FpInsn, kind: u8) -> Handler {
    let hot = insn.class() == Class::Sse;
    match (insn.shape(), insn.as_move()) {
        (Shape::Registers, Some(Move::Copy { .. })) if hot => copy,
        (Shape::Registers, _) if hot && insn.as_binary().is_some() => binary,
        (Shape::Registers, _) if hot => registers,
        (Shape::Load(16), Some(_)) if hot && kind == FLAT => move_load::<16>,
        (Shape::Load(8), Some(_)) if hot && kind == FLAT => move_load::<8>,
        (Shape::Load(4), Some(_)) if hot && kind == FLAT => move_load::<4>,
        (Shape::Store(16), Some(_)) if hot && kind == FLAT => move_store::<16>,
        (Shape::Store(8), Some(_)) if hot && kind == FLAT => move_store::<8>,
        (Shape::Store(4), Some(_)) if hot && kind == FLAT => move_store::<4>,
        (Shape::Load(n), _) if hot => match (n, kind) {
            (16, FLAT) if insn.as_binary().is_some() => binary_load::<16>,
            (8, FLAT) if insn.as_binary().is_some() => binary_load::<8>,
            (4, FLAT) if insn.as_binary().is_some() => binary_load::<4>,
            (2, _) => load::<2, ANY>,
            (1, _) => load::<1, ANY>,
            (16, _) => load::<16, ANY>,
            (8, _) => load::<8, ANY>,
            (4, _) => load::<4, ANY>,
            _ => any,
        },
        _ => any,
    }
}

/// What the moves need, in the op itself: registers in `dst` and `src`, `aux` = 1: aligned only.
pub(crate) fn prepare(insn: &FpInsn, op: Op) -> Op {
    let aux = u8::from(insn.needs_alignment());
    match insn.as_move() {
        Some(Move::Copy { to, from }) => Op { dst: to, src: from, aux, ..op },
        Some(Move::Load { to }) => Op { dst: to, aux, ..op },
        Some(Move::Store { from }) => Op { src: from, aux, ..op },
        None => match insn.as_binary() {
            Some((to, from)) => Op { dst: to, src: from, aux, ..op },
            None => Op { aux, ..op },
        },
    }
}

/// SSE is on: the three bits at once.
#[inline(always)]
fn sse_on(cpu: &Cpu) -> Result<(), Trap> {
    let off = cpu.cr0 & (Cr0::EM.bits() | Cr0::TS.bits()) | !cpu.cr4 & Cr4::OSFXSR.bits();
    if off == 0 { Ok(()) } else { check_enabled(cpu, Class::Sse) }
}

#[inline(always)]
fn aligned(op: &Op, ea: u64) -> Result<(), Trap> {
    if op.aux != 0 && ea & 15 != 0 { Err(Trap::gp(0)) } else { Ok(()) }
}

#[inline(always)]
fn read<const N: u8>(cpu: &mut Cpu, ea: u64) -> Result<u128, Trap> {
    Ok(match N {
        16 => cpu.read_u128(ea)?,
        8 => cpu.read_u64(ea)?.into(),
        4 => cpu.read_u32(ea)?.into(),
        2 => cpu.read_u16(ea)?.into(),
        _ => cpu.read_u8(ea)?.into(),
    })
}

fn copy(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    cpu.fpu.xmm[usize::from(op.dst & 15)] = cpu.fpu.xmm[usize::from(op.src & 15)];
    Ok(())
}

fn move_load<const N: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    let ea = cpu.address::<FLAT>(op, N.into(), false)?;
    if N == 16 {
        aligned(op, ea)?;
    }
    cpu.fpu.xmm[usize::from(op.dst & 15)] = read::<N>(cpu, ea)?.to_le_bytes();
    Ok(())
}

fn move_store<const N: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    let ea = cpu.address::<FLAT>(op, N.into(), true)?;
    if N == 16 {
        aligned(op, ea)?;
    }
    let v = u128::from_le_bytes(cpu.fpu.xmm[usize::from(op.src & 15)]);
    match N {
        16 => cpu.write_u128(ea, v),
        8 => cpu.write_u64(ea, v as u64),
        _ => cpu.write_u32(ea, v as u32),
    }
}

fn binary(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    let b = cpu.fpu.xmm[usize::from(op.src & 15)];
    with_binary(cpu, op, &b)
}

fn binary_load<const N: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    let ea = cpu.address::<FLAT>(op, N.into(), false)?;
    if N == 16 {
        aligned(op, ea)?;
    }
    let b = read::<N>(cpu, ea)?.to_le_bytes();
    with_binary(cpu, op, &b)
}

#[inline(always)]
fn with_binary(cpu: &mut Cpu, op: &Op, b: &V) -> Result<(), Trap> {
    let Some(insn) = cpu.fp_ops.get(op.imm as usize) else { return Err(Trap::UD) };
    let Some(gpr) = cpu.gpr.first_chunk_mut::<16>() else { return Err(Trap::UD) };
    let context = FpContext { fpu: &mut cpu.fpu, gpr, rflags: &mut 0, rip: 0 };
    fpu::execute_binary(insn, context, op.dst, b).map_err(|_| simd_fault(cpu))
}

/// #XM, or #UD while the guest does not expect it.
#[cold]
fn simd_fault(cpu: &Cpu) -> Trap {
    if cpu.cr4 & Cr4::OSXMMEXCPT.bits() == 0 { Trap::UD } else { Trap::fault(19) }
}

fn registers(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    with_value(cpu, op, 0)
}

fn load<const N: u8, const A: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    sse_on(cpu)?;
    let ea = cpu.address::<A>(op, N.into(), false)?;
    if N == 16 {
        aligned(op, ea)?;
    }
    let v = read::<N>(cpu, ea)?;
    with_value(cpu, op, v)
}

/// Runs an SSE instruction whose memory operand, if any, has been read.
#[inline(always)]
fn with_value(cpu: &mut Cpu, op: &Op, memory: u128) -> Result<(), Trap> {
    let Some(insn) = cpu.fp_ops.get(op.imm as usize) else { return Err(Trap::UD) };
    let Some(gpr) = cpu.gpr.first_chunk_mut::<16>() else { return Err(Trap::UD) };
    let mut rflags = 0;
    let context = FpContext { fpu: &mut cpu.fpu, gpr, rflags: &mut rflags, rip: 0 };
    match fpu::execute_value(insn, context, memory) {
        Ok(_) => {
            if insn.flags_use() == FlagsUse::Writes {
                cpu.flags.set_arith(rflags);
            }
            Ok(())
        }
        Err(_) => Err(simd_fault(cpu)),
    }
}

/// Any x87, MMX or SSE instruction: `imm` indexes `Cpu::fp_ops`; `size` is the memory operand's
/// length (0: none), `aux` = 1 when it must be aligned.
pub(crate) fn any(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let Some(insn) = cpu.fp_ops.get(op.imm as usize).copied() else { return Err(Trap::UD) };
    check_enabled(cpu, insn.class())?;
    let rip = cpu.block_start().wrapping_add(u64::from(op.at));
    let flags_use = insn.flags_use();
    let mut rflags = if flags_use == FlagsUse::None { 0 } else { cpu.rflags() };
    if op.size == 0 {
        let Some(gpr) = cpu.gpr.first_chunk_mut::<16>() else { return Err(Trap::UD) };
        let context = FpContext { fpu: &mut cpu.fpu, gpr, rflags: &mut rflags, rip };
        let done = fpu::execute(&insn, context, &mut NoBus, 0);
        return finish(cpu, done, flags_use, rflags);
    }
    let ea = cpu.address::<ANY>(op, u32::from(op.size), insn.stores())?;
    // The bus needs the rest of the CPU meanwhile.
    let mut state = std::mem::take(&mut cpu.fpu);
    let mut gpr: [u64; 16] = [0; 16];
    gpr.copy_from_slice(&cpu.gpr[..16]);
    let context = FpContext { fpu: &mut state, gpr: &mut gpr, rflags: &mut rflags, rip };
    let done = fpu::execute(&insn, context, &mut Bus(cpu), ea);
    cpu.fpu = state;
    if done.is_ok() {
        cpu.gpr[..16].copy_from_slice(&gpr);
    }
    finish(cpu, done, flags_use, rflags)
}

fn finish(
    cpu: &mut Cpu,
    done: Result<(), FpFault<Trap>>,
    flags_use: FlagsUse,
    rflags: u64,
) -> Result<(), Trap> {
    match done {
        Ok(()) => {
            if flags_use == FlagsUse::Writes {
                cpu.flags.set_arith(rflags);
            }
            Ok(())
        }
        Err(FpFault::Mem(trap)) => Err(trap),
        Err(FpFault::Simd) => Err(simd_fault(cpu)),
        Err(FpFault::X87) => Err(Trap::fault(16)),
        Err(FpFault::Gp) => Err(Trap::gp(0)),
        Err(FpFault::Ud) => Err(Trap::UD),
    }
}
