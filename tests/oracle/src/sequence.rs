//! Short runs of instructions: what single ones cannot show (flags kept as formulas, flags that
//! nobody reads, fused compare and branch, faults in the middle of a block).
//!
//! Memory operands are absolute, so that every instruction finds the scratch page whatever the ones
//! before computed. A flag that the manual leaves undefined is tainted: no later instruction may
//! read it before it is written again, and it is not compared while tainted.

use iced_x86::{CpuidFeature, Encoder, Instruction, Mnemonic as M, OpKind};

use crate::case::{CODE, Case, TARGET};
use crate::catalogue::Entry;
use crate::generate;
use crate::rng::Rng;

/// iced's flag bits to RFLAGS bits.
fn rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    let table = [(R::CF, 0), (R::PF, 2), (R::AF, 4), (R::ZF, 6), (R::SF, 7), (R::DF, 10), (R::OF, 11)];
    table.into_iter().filter(|(r, _)| bits & r != 0).fold(0, |m, (_, n)| m | 1 << n)
}

/// What sequences are made of.
pub struct Pool {
    all: Vec<Entry>,
    /// The usual producers of flags.
    setters: Vec<Entry>,
    /// Their consumers: conditional jumps, moves and sets, adc, sbb.
    readers: Vec<Entry>,
}

/// The pool of a catalogue: general registers, x87 and SSE, no stack, no string
/// instructions, no results of which the manual leaves more than flags undefined.
pub fn pool(entries: &[Entry]) -> Pool {
    let suits = |e: &Entry| {
        let features = e.code.cpuid_features();
        let info = e.code.op_code();
        let near = e.code.is_jcc_short_or_near();
        features.iter().all(|f| !matches!(f, CpuidFeature::MMX | CpuidFeature::SSE3))
            && !info.op_kinds().iter().any(|k| {
                use iced_x86::OpCodeOperandKind as K;
                matches!(k, K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al | K::br64_1 | K::br64_4)
                    && !near
            })
            && !excluded(e.code.mnemonic())
            && !reaches_far(e)
    };
    let all: Vec<Entry> = entries.iter().copied().filter(suits).collect();
    let chosen = |f: &dyn Fn(&Entry) -> bool| all.iter().copied().filter(f).collect();
    Pool {
        setters: chosen(&|e| sets_flags(e.code.mnemonic())),
        readers: chosen(&|e| e.code.is_jcc_short_or_near() || reads_condition(e.code.mnemonic())),
        all,
    }
}

/// Bit tests of memory by a register: with what instructions before left in it they reach the oracle's own
/// pages, which are not alike on both sides. Alone they are tested with offsets that stay near.
fn reaches_far(e: &Entry) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    matches!(e.code.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && e.code.op_code().op_kinds().iter().any(|k| matches!(k, K::r16_reg | K::r32_reg | K::r64_reg))
}

fn sets_flags(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Add | Sub | Cmp | Test | And | Or | Xor | Inc | Dec | Neg | Adc | Sbb | Shl | Shr | Sar | Imul | Bt
    )
}

fn excluded(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Push | Pushfq
            | Pushf
            | Pop
            | Leave
            | Ret
            | Call
            | Jmp
            | Loop
            | Loope
            | Loopne
            | Jrcxz
            | Jecxz
            | Shld
            | Shrd
            | Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Ldmxcsr
            | Std
            | Fnstenv
            | Fnsave
            | F2xm1
            | Fyl2x
            | Fyl2xp1
            | Fsin
            | Fcos
            | Fsincos
            | Fptan
            | Fpatan
            | Ud2
            | Cvtpi2ps
            | Cvtps2pi
            | Cvttps2pi
            | Lahf
    )
}

/// Flags that `insn` leaves undefined for some operand values.
fn undefined(insn: &Instruction) -> u64 {
    let by_count =
        matches!(insn.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr);
    let rotate = matches!(insn.mnemonic(), M::Rol | M::Ror | M::Rcl | M::Rcr);
    if !by_count {
        return rflags(insn.rflags_undefined());
    }
    match insn.op1_kind() {
        OpKind::Immediate8 if insn.immediate8() == 1 => {
            if rotate {
                0
            } else {
                0x10
            }
        }
        _ if rotate => 0x800,
        _ => 0x811,
    }
}

/// A run of two to eight instructions.
pub fn case(rng: &mut Rng, pool: &Pool) -> Option<Case> {
    if pool.setters.is_empty() || pool.readers.is_empty() {
        return None;
    }
    let mut before = generate::state(rng);
    let mut bytes = Vec::new();
    let (mut tainted, mut ever) = (0u64, 0u64);
    let wanted = 2 + rng.below(7);
    let mut made = 0;
    while made < wanted && bytes.len() < (TARGET - CODE) as usize - 34 {
        // What sets flags and what reads them is what it is about.
        let kind = match rng.below(4) {
            0 => pool.setters.as_slice(),
            1 => pool.readers.as_slice(),
            _ => pool.all.as_slice(),
        };
        let entry = rng.pick(kind);
        let Some(insn) = generate::absolute(rng, entry.code, &mut before) else { continue };
        let reads = rflags(insn.rflags_read());
        if reads & tainted != 0 || insn.op0_register().full_register() == iced_x86::Register::RSP {
            continue;
        }
        let mut encoder = Encoder::new(64);
        if encoder.encode(&insn, CODE + bytes.len() as u64).is_err() {
            continue;
        }
        bytes.extend(encoder.take_buffer());
        let by_cl = insn.op_count() > 1 && insn.op1_register() == iced_x86::Register::CL;
        let sure = if by_cl { 0 } else { rflags(insn.rflags_modified()) };
        let loose = undefined(&insn);
        tainted = tainted & !sure | loose;
        ever |= loose;
        made += 1;
    }
    Some(Case { bytes, before, loose: Some((tainted, ever)) })
}

fn reads_condition(m: M) -> bool {
    use M::*;
    matches!(m, Adc | Sbb | Rcl | Rcr | Cmc)
        || (Cmova as usize..=Cmovs as usize).contains(&(m as usize))
        || (Seta as usize..=Sets as usize).contains(&(m as usize))
}
