//! Runs a case on x86cpu.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use x86cpu::fpu::{self, FpBus, FpContext, FpFault, Fpu};

use crate::case::{CODE, Case, End, GS_BASE, Outcome, SCRATCH, SCRATCH_LEN};

/// The case's instruction as iced reads it.
pub fn decode(case: &Case) -> Instruction {
    Decoder::with_ip(64, &case.bytes, CODE, DecoderOptions::NONE).decode()
}

/// The scratch page as an [`FpBus`]; everything else faults.
struct Scratch<'a>(&'a mut [u8; SCRATCH_LEN]);

impl Scratch<'_> {
    fn range(&self, ea: u64, len: usize) -> Result<std::ops::Range<usize>, ()> {
        let from = ea.wrapping_sub(SCRATCH);
        if from >= SCRATCH_LEN as u64 || from as usize + len > SCRATCH_LEN {
            return Err(());
        }
        Ok(from as usize..from as usize + len)
    }
}

impl FpBus for Scratch<'_> {
    type Fault = ();

    fn load(&mut self, ea: u64, buf: &mut [u8]) -> Result<(), ()> {
        buf.copy_from_slice(&self.0[self.range(ea, buf.len())?]);
        Ok(())
    }

    fn store(&mut self, ea: u64, bytes: &[u8]) -> Result<(), ()> {
        let range = self.range(ea, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }

    fn check_write(&mut self, ea: u64, len: usize) -> Result<(), ()> {
        self.range(ea, len).map(|_| ())
    }
}

pub(crate) fn effective_address(insn: &Instruction, gpr: &[u64; 16]) -> u64 {
    let memory = (0..insn.op_count())
        .find(|i| matches!(insn.op_kind(*i), OpKind::Memory | OpKind::MemorySegRDI | OpKind::MemoryESRDI));
    let Some(op) = memory else { return 0 };
    insn.virtual_address(op, 0, |r, _, _| Some(register_value(r, gpr))).unwrap_or(0)
}

/// What an address is made of: general registers of any width, and the base of GS.
pub(crate) fn register_value(r: Register, gpr: &[u64; 16]) -> u64 {
    let full = gpr[r.full_register().number() & 15];
    match r {
        Register::GS => GS_BASE,
        _ if r.is_gpr64() => full,
        _ if r.is_gpr32() => full & 0xffff_ffff,
        _ if r.is_gpr8() => full & 0xff,
        _ => 0,
    }
}

/// Runs it over `fpu` alone. `End::Unknown` where that does not know it.
pub fn run_fpu(case: &Case) -> Outcome {
    let insn = decode(case);
    let mut after = case.before.clone();
    let Some(op) = fpu::decode(&insn) else { return Outcome { end: End::Unknown, rip: 0, after } };
    let mut fpu = Fpu::default();
    if fpu.fxrstor(&after.fx, true, 16).is_err() {
        return Outcome { end: End::Unknown, rip: 0, after };
    }
    let ea = effective_address(&insn, &after.gpr);
    let ctx = FpContext { fpu: &mut fpu, gpr: &mut after.gpr, rflags: &mut after.rflags, rip: CODE };
    let end = match fpu::execute(&op, ctx, &mut Scratch(&mut after.mem), ea) {
        Ok(()) => End::Next,
        Err(FpFault::Mem(())) => End::Vector(14),
        Err(FpFault::Simd) => End::Vector(19),
        Err(FpFault::X87) => End::Vector(16),
        Err(FpFault::Gp) => End::Vector(13),
        Err(FpFault::Ud) => End::Vector(6),
    };
    after.fx = fpu.fxsave(true, 16);
    let rip = if end == End::Next { 0 } else { CODE };
    Outcome { end, rip, after }
}
