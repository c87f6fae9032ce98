//! SSE to SSE4.2: the guest's instruction itself, on the host's registers of the same numbers.
//!
//! Only the operand that is not an XMM register is replaced: memory by what the look-up found, general
//! registers by where they live. MXCSR is the guest's meanwhile; its exceptions are all masked (else the
//! translation is not entered).

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::super::emit::{Emit, Rm, Sse};
use super::super::plan::{bit, has_memory, sse_writes_flags};
use super::super::regs::{T1, home, pinned};
use super::super::scan::Item;
use super::Gen;
use crate::fpu::{self, Class};

/// Whether the instruction means the same on the host.
pub(in super::super) fn is_plain(insn: &Instruction) -> bool {
    let op = |i: u32| (insn.op_kind(i) == OpKind::Register).then(|| insn.op_register(i));
    let registers = || (0..insn.op_count()).filter_map(op);
    let xmm = registers().any(|r| r.is_xmm());
    if !xmm || registers().any(|r| r.is_mm()) || !super::super::host_has_sse42() {
        return false;
    }
    use M::*;
    let odd = matches!(
        insn.mnemonic(),
        Rcpps | Rcpss | Rsqrtps | Rsqrtss | Maskmovdqu | Pcmpestri | Pcmpestrm | Pcmpestri64 | Pcmpestrm64
    );
    !odd && fpu::decode(insn).is_some_and(|f| f.class() == Class::Sse)
}

/// Whether a general register operand is in the `reg` field.
fn gpr_is_reg_field(insn: &Instruction, opcode: &[u8]) -> bool {
    use M::*;
    match insn.mnemonic() {
        Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si | Pmovmskb | Movmskps | Movmskpd => true,
        Pextrw => opcode == [0x0f, 0xc5],
        _ => false,
    }
}

/// The parts of an encoding.
struct Encoding {
    prefix: u8,
    rex: u8,
    opcode: [u8; 3],
    opcode_len: usize,
    modrm: u8,
}

/// Takes a legacy SSE encoding apart. The bytes were decoded before, so that they are whole.
fn take_apart(bytes: &[u8]) -> Option<Encoding> {
    let mut e = Encoding { prefix: 0, rex: 0, opcode: [0; 3], opcode_len: 2, modrm: 0 };
    let mut at = 0;
    loop {
        // A REX prefix counts only right before the opcode.
        let rex = std::mem::take(&mut e.rex);
        match *bytes.get(at)? {
            // F2 and F3 win over 66.
            0x66 if e.prefix == 0 => e.prefix = 0x66,
            p @ (0xf2 | 0xf3) => e.prefix = p,
            0x66 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 => {}
            p @ 0x40..=0x4f => e.rex = p,
            _ => {
                e.rex = rex;
                break;
            }
        }
        at += 1;
    }
    let rest = bytes.get(at..)?;
    e.opcode_len = if matches!(rest.get(1)?, 0x38 | 0x3a) { 3 } else { 2 };
    e.opcode[..e.opcode_len].copy_from_slice(rest.get(..e.opcode_len)?);
    e.modrm = *rest.get(e.opcode_len)?;
    Some(e)
}

impl<E: Emit> Gen<E> {
    pub(super) fn sse(&mut self, item: &Item) {
        let insn = &item.insn;
        let Some(e) = take_apart(&item.bytes) else { return self.step_always() };
        let opcode = &e.opcode[..e.opcode_len];
        let xmm_field = (e.modrm >> 3 & 7) | (e.rex << 1 & 8);
        let general = (0..insn.op_count())
            .find(|i| insn.op_kind(*i) == OpKind::Register && insn.op_register(*i).is_gpr())
            .map(|i| (i, insn.op_register(i).number() as u8 & 15));
        let mut reg = xmm_field;
        let mut rm = Rm::Reg((e.modrm & 7) | (e.rex << 3 & 8));
        let mut result = None;
        if has_memory(insn) {
            let size = insn.memory_size().size() as u8;
            let aligned = fpu::decode(insn).is_some_and(|f| f.needs_alignment());
            let write = insn.op_kind(0) == OpKind::Memory;
            rm = self.operand_memory(insn, size, write, aligned);
        } else if let Some((i, g)) = general
            && !gpr_is_reg_field(insn, opcode)
        {
            rm = self.operand(g);
            if i == 0 && pinned(g).is_none() {
                (rm, result) = (Rm::Reg(T1), Some(g));
            }
        }
        if let Some((0, g)) = general
            && gpr_is_reg_field(insn, opcode)
        {
            reg = pinned(g).unwrap_or(T1);
            result = (reg == T1).then_some(g);
        }
        let imm = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Immediate8);
        let kept = Sse { prefix: e.prefix, wide: e.rex & 8 != 0, opcode };
        self.a.sse(&kept, reg, rm, imm.then(|| insn.immediate8()));
        if let Some(g) = result {
            self.a.store(8, T1, home(g));
        }
        if sse_writes_flags(insn.mnemonic()) {
            self.host = bit::ALL;
            if item.need {
                self.save_image();
            }
        }
    }

    /// The interpreter does it.
    pub(super) fn step_always(&mut self) {
        self.a.alu(4, 7, T1, Rm::Reg(T1));
        self.step_if(super::cc::E);
        self.host = bit::NONE;
    }
}
