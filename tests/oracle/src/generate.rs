//! Random operands for a form, and a random state that makes it interesting.

use iced_x86::{
    Code, Encoder, Instruction, MemorySize as S, Mnemonic as M, OpCodeOperandKind as K, OpKind, Register,
};

use crate::case::{CODE, Case, GS_BASE, SCRATCH, SCRATCH_LEN, State, TARGET};
use crate::rng::Rng;
use crate::soft::register_value;

/// A case of this form; `None` when the operands drawn cannot be encoded together.
pub fn case(rng: &mut Rng, code: Code) -> Option<Case> {
    let mut before = state(rng);
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut memory = None;
    for (i, kind) in code.op_code().op_kinds().iter().enumerate() {
        let i = i as u32;
        if operand(rng, &mut insn, i, *kind)? {
            memory = Some(i);
        }
    }
    prefixes(rng, &mut insn);
    let mut ea = 0;
    if memory.is_some() && insn.mnemonic() != M::Xlatb {
        ea = address(rng, &mut insn, &mut before);
    }
    special_state(rng, &insn, &mut before, ea, memory.is_some());
    if let Some(op) = memory {
        // Registers set meanwhile may have moved the operand: only into what both sides lack.
        ea = insn.virtual_address(op, 0, |r, _, _| Some(register_value(r, &before.gpr)))?;
        if !reachable(ea) || !reachable(ea.wrapping_add(bit_reach(&insn, &before.gpr))) {
            return None;
        }
        fill(rng, &insn, &mut before, ea);
    }
    if !reachable(before.gpr[4]) || !reachable(before.gpr[4].wrapping_sub(16)) {
        return None;
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, CODE).ok()?;
    let bytes = encoder.take_buffer();
    (bytes.len() <= 15).then_some(Case { bytes, before, loose: None })
}

/// How far from its operand in memory a bit test by a register reaches; 0 for everything else.
fn bit_reach(insn: &Instruction, gpr: &[u64; 16]) -> u64 {
    if !matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) || insn.op1_kind() != OpKind::Register {
        return 0;
    }
    let offset = gpr[insn.op1_register().full_register().number()];
    match insn.op1_register().size() {
        2 => ((i64::from(offset as i16) >> 4) as u64).wrapping_mul(2),
        4 => ((i64::from(offset as i32) >> 5) as u64).wrapping_mul(4),
        _ => (((offset as i64) >> 6) as u64).wrapping_mul(8),
    }
}

/// Addresses that are the same thing on both sides: the scratch page, the missing page after it, and
/// what no process can map. Elsewhere the host may have something.
fn reachable(ea: u64) -> bool {
    ea.wrapping_sub(SCRATCH) < 2 * SCRATCH_LEN as u64 || (ea as i64) << 16 >> 16 != ea as i64
}

/// An instruction of this form whose memory operand, if any, is absolute.
pub fn absolute(rng: &mut Rng, code: Code, s: &mut State) -> Option<Instruction> {
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut memory = false;
    for (i, kind) in code.op_code().op_kinds().iter().enumerate() {
        memory |= operand(rng, &mut insn, i as u32, *kind)?;
    }
    prefixes(rng, &mut insn);
    if memory {
        let size = insn.memory_size().size().max(1);
        let mut ea = SCRATCH + (0x100 + rng.below(0x40) * 16) as u64;
        if rng.one_in(16) {
            ea = SCRATCH + (SCRATCH_LEN - rng.below(size + 1)) as u64;
        }
        if insn.memory_displ_size() != 8 {
            insn.set_memory_displ_size(if rng.one_in(8) { 4 } else { 8 });
        }
        insn.set_memory_displacement64(ea);
        fill(rng, &insn, s, ea);
    }
    Some(insn)
}

fn register(rng: &mut Rng, from: Register, n: usize) -> Register {
    from + rng.below(n) as u32
}

fn gpr8(rng: &mut Rng) -> Register {
    // AL.. BH, then SPL.. R15L.
    register(rng, Register::AL, 20)
}

/// Sets operand `i`; true when it is memory.
fn operand(rng: &mut Rng, insn: &mut Instruction, i: u32, kind: K) -> Option<bool> {
    let mem_too = matches!(
        kind,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem | K::mm_or_mem
    );
    if mem_too && rng.one_in(2) || matches!(kind, K::mem | K::mem_offs) {
        insn.try_set_op_kind(i, OpKind::Memory).ok()?;
        if kind == K::mem_offs {
            insn.set_memory_displ_size(8);
        }
        return Some(true);
    }
    let r = match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => gpr8(rng),
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => register(rng, Register::AX, 16),
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode => register(rng, Register::EAX, 16),
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode => register(rng, Register::RAX, 16),
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm => register(rng, Register::XMM0, 16),
        K::mm_or_mem | K::mm_reg | K::mm_rm => register(rng, Register::MM0, 8),
        K::sti_opcode => register(rng, Register::ST0, 8),
        K::st0 => Register::ST0,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        _ => return immediate(rng, insn, i, kind),
    };
    insn.try_set_op_kind(i, OpKind::Register).ok()?;
    insn.try_set_op_register(i, r).ok()?;
    Some(false)
}

fn immediate(rng: &mut Rng, insn: &mut Instruction, i: u32, kind: K) -> Option<bool> {
    let v = integer(rng);
    let set = |insn: &mut Instruction, k: OpKind| insn.try_set_op_kind(i, k).ok();
    match kind {
        K::imm8 => set(insn, OpKind::Immediate8).map(|()| insn.set_immediate8(v as u8))?,
        K::imm8_const_1 => set(insn, OpKind::Immediate8).map(|()| insn.set_immediate8(1))?,
        K::imm8sex16 => {
            set(insn, OpKind::Immediate8to16).map(|()| insn.set_immediate8to16(v as i8 as i16))?
        }
        K::imm8sex32 => {
            set(insn, OpKind::Immediate8to32).map(|()| insn.set_immediate8to32(v as i8 as i32))?
        }
        K::imm8sex64 => {
            set(insn, OpKind::Immediate8to64).map(|()| insn.set_immediate8to64(v as i8 as i64))?
        }
        K::imm16 => set(insn, OpKind::Immediate16).map(|()| insn.set_immediate16(v as u16))?,
        K::imm32 => set(insn, OpKind::Immediate32).map(|()| insn.set_immediate32(v as u32))?,
        K::imm32sex64 => {
            set(insn, OpKind::Immediate32to64).map(|()| insn.set_immediate32to64(v as i32 as i64))?
        }
        K::imm64 => set(insn, OpKind::Immediate64).map(|()| insn.set_immediate64(v))?,
        K::br64_1 | K::br64_4 => {
            set(insn, OpKind::NearBranch64)?;
            insn.set_near_branch64(TARGET);
        }
        K::seg_rSI => set(insn, OpKind::MemorySegRSI)?,
        K::es_rDI => set(insn, OpKind::MemoryESRDI)?,
        K::seg_rDI => set(insn, OpKind::MemorySegRDI)?,
        K::seg_rBX_al => {
            set(insn, OpKind::Memory)?;
            insn.set_memory_base(Register::RBX);
            insn.set_memory_index(Register::AL);
            return Some(true);
        }
        _ => return None,
    }
    Some(false)
}

fn prefixes(rng: &mut Rng, insn: &mut Instruction) {
    if insn.is_string_instruction() && rng.one_in(2) {
        if matches!(
            insn.mnemonic(),
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
        ) && rng.one_in(2)
        {
            insn.set_has_repne_prefix(true);
        } else {
            insn.set_has_rep_prefix(true);
        }
    }
    let lockable = insn.code().op_code().can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory;
    if lockable && rng.one_in(4) {
        insn.set_has_lock_prefix(true);
    }
}

/// Picks an effective address and a form for it, and sets base and index to meet it.
fn address(rng: &mut Rng, insn: &mut Instruction, s: &mut State) -> u64 {
    let size = insn.memory_size().size().max(1) as u64;
    let room = SCRATCH_LEN as u64 - 0x200 - size;
    let mut ea = SCRATCH + 0x100 + rng.draw() % room;
    match rng.below(32) {
        // Up to and over the end of what is mapped.
        0 => ea = SCRATCH + SCRATCH_LEN as u64 - rng.draw() % (size + 2),
        1..=7 => {}
        _ => ea &= !15,
    }
    if insn.memory_displ_size() == 8 {
        insn.set_memory_displacement64(ea);
        return ea;
    }
    if rng.one_in(12) {
        insn.set_segment_prefix(Register::GS);
        form(rng, insn, s, ea.wrapping_sub(GS_BASE));
    } else {
        form(rng, insn, s, ea);
    }
    ea
}

/// A way to say `offset`: absolute, or by base, index and displacement, of 64 or 32 bits.
fn form(rng: &mut Rng, insn: &mut Instruction, s: &mut State, offset: u64) {
    let narrow = rng.one_in(8);
    let wide_size = if narrow { 4 } else { 8 };
    let form = rng.below(4);
    if form == 0 {
        insn.set_memory_displ_size(wide_size);
        insn.set_memory_displacement64(offset);
        return;
    }
    let first = if narrow { Register::EAX } else { Register::RAX };
    let base = first + rng.below(16) as u32;
    let index = first + rng.below(16) as u32;
    let scale = rng.pick(&[1u64, 2, 4, 8]);
    let disp = match form {
        1 => 0,
        2 => i64::from(rng.draw() as i8),
        _ => i64::from(rng.draw() as i32),
    };
    insn.set_memory_base(base);
    if disp != 0 {
        insn.set_memory_displ_size(if form == 2 { 1 } else { wide_size });
        insn.set_memory_displacement64(if narrow { u64::from(disp as u32) } else { disp as u64 });
    }
    let mut rest = offset.wrapping_sub(disp as u64);
    if rng.one_in(2) && index.number() != 4 && index != base {
        insn.set_memory_index(index);
        insn.set_memory_index_scale(scale as u32);
        rest = rest.wrapping_sub(s.gpr[index.number()].wrapping_mul(scale));
    }
    // RSP stays an address: PUSH and POP use it whole.
    let high = if narrow && base != Register::ESP { rng.draw() << 32 } else { 0 };
    s.gpr[base.number()] = if narrow { rest & 0xffff_ffff | high } else { rest };
}

/// Registers that an instruction uses as pointers or counts by itself.
fn special_state(rng: &mut Rng, insn: &Instruction, s: &mut State, ea: u64, memory: bool) {
    use M::*;
    let m = insn.mnemonic();
    let at = |rng: &mut Rng| SCRATCH + 0x200 + rng.draw() % 0xc00;
    let kinds: Vec<OpKind> = insn.op_kinds().collect();
    if kinds.contains(&OpKind::MemorySegRSI) {
        s.gpr[6] = at(rng);
    }
    if kinds.contains(&OpKind::MemoryESRDI) || kinds.contains(&OpKind::MemorySegRDI) {
        s.gpr[7] = if rng.one_in(4) { s.gpr[6].wrapping_add(rng.draw() % 16) } else { at(rng) };
        if s.gpr[7].wrapping_sub(SCRATCH) > 0xf00 {
            s.gpr[7] = at(rng);
        }
    }
    if insn.has_rep_prefix() || insn.has_repne_prefix() {
        s.gpr[1] = rng.draw() % 24;
        s.rflags |= if rng.one_in(4) { 0x400 } else { 0 };
    }
    if matches!(m, Loop | Loope | Loopne | Jrcxz | Jecxz) {
        s.gpr[1] = rng.draw() % 3;
    }
    if matches!(m, Bt | Bts | Btr | Btc) && memory && insn.op1_kind() == OpKind::Register {
        let offset = insn.op1_register().full_register();
        // (No base is a register, too, whose number is RAX's.)
        if insn.memory_base().full_register() != offset && insn.memory_index().full_register() != offset {
            s.gpr[offset.number()] = (rng.draw() % 0x400).wrapping_sub(0x200);
        }
    }
    if matches!(m, Xlatb) {
        s.gpr[3] = at(rng);
    }
    if matches!(m, Leave) {
        s.gpr[5] = SCRATCH + 0x600;
    }
    // Near divisors: a dividend that mostly does not overflow.
    if matches!(m, Div | Idiv) && rng.one_in(2) {
        s.gpr[2] = if rng.one_in(2) { 0 } else { (s.gpr[0] as i64 >> 63) as u64 };
    }
    let target = TARGET.to_le_bytes();
    if insn.is_call_near_indirect() || insn.is_jmp_near_indirect() {
        if memory {
            poke(s, ea, &target);
        } else {
            s.gpr[insn.op0_register().full_register().number()] = TARGET;
        }
    }
    if matches!(m, Ret) {
        let rsp = s.gpr[4];
        poke(s, rsp, &target);
    }
    if matches!(m, F2xm1 | Fyl2x | Fyl2xp1 | Fsin | Fcos | Fsincos | Fptan | Fpatan) && !rng.one_in(4) {
        for i in 0..2 {
            let e = 0x3fff - 20 + rng.below(22) as u16;
            let tame = f80(rng, e);
            s.fx[32 + 16 * i..42 + 16 * i].copy_from_slice(&tame.to_le_bytes()[..10]);
        }
    }
}

/// Writes into the scratch area where it lies inside.
fn poke(s: &mut State, at: u64, bytes: &[u8]) {
    for (i, b) in bytes.iter().enumerate() {
        let off = at.wrapping_add(i as u64).wrapping_sub(SCRATCH);
        if let Some(slot) = s.mem.get_mut(off as usize) {
            *slot = *b;
        }
    }
}

/// An MXCSR bit of AMD's that the profile does not have.
const MISALIGNED_SSE: u32 = 1 << 17;

/// The memory operand's contents, by its type.
fn fill(rng: &mut Rng, insn: &Instruction, s: &mut State, ea: u64) {
    if insn.is_call_near_indirect() || insn.is_jmp_near_indirect() {
        return;
    }
    match insn.mnemonic() {
        M::Fxrstor | M::Fxrstor64 => {
            let image = state(rng).fx;
            poke(s, ea, &image);
            if rng.one_in(16) {
                poke(s, ea + 24, &(rng.draw() as u32 & !MISALIGNED_SSE).to_le_bytes());
            }
            return;
        }
        M::Ldmxcsr => {
            let v =
                if rng.one_in(8) { rng.draw() as u32 & !MISALIGNED_SSE } else { rng.draw() as u32 & 0xffff };
            return poke(s, ea, &v.to_le_bytes());
        }
        _ => {}
    }
    match insn.memory_size() {
        S::Float80 => {
            let e = exponent(rng, 0x7fff) as u16;
            poke(s, ea, &f80(rng, e).to_le_bytes()[..10]);
        }
        S::Bcd => {
            let mut v = [0u8; 10];
            v.iter_mut().for_each(|b| *b = (rng.below(10) << 4 | rng.below(10)) as u8);
            v[9] = if rng.one_in(2) { 0x80 } else { 0 };
            poke(s, ea, &v);
        }
        S::FpuEnv14 | S::FpuEnv28 | S::FpuState94 | S::FpuState108 => {
            for i in 0..14 {
                poke(s, ea + 8 * i, &rng.draw().to_le_bytes());
            }
            poke(s, ea, &(rng.draw() as u16 & 0x1f3f | 0x40).to_le_bytes());
        }
        _ => {
            let v = vector(rng);
            poke(s, ea, &v.to_le_bytes());
        }
    }
}

/// An integer that likes edges.
pub fn integer(rng: &mut Rng) -> u64 {
    let v = rng.draw();
    match rng.below(10) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << (v & 63),
        4 => (1u64 << (v & 63)).wrapping_sub(1),
        5 => v & 0xff,
        6 => v as i8 as u64,
        7 => v as i32 as u64,
        _ => v,
    }
}

/// A biased exponent that likes both ends and the middle.
fn exponent(rng: &mut Rng, max: u64) -> u64 {
    let mid = max / 2;
    match rng.below(12) {
        0 => 0,
        1 => max,
        2 => 1 + rng.draw() % 3,
        3 => max - 1 - rng.draw() % 3,
        4 => rng.draw() % (max + 1),
        5 => mid + rng.draw() % 70.min(mid),
        6 => mid.saturating_sub(rng.draw() % 70).max(1),
        _ => mid + rng.draw() % 5 - 2,
    }
}

fn fraction(rng: &mut Rng, bits: u32) -> u64 {
    let mask = (1u64 << bits) - 1;
    let v = rng.draw() & mask;
    match rng.below(8) {
        0 => 0,
        1 => 1,
        2 => mask,
        3 => 1 << (bits - 1),
        4 => v & !(mask >> 8),
        5 => 1 << (v % u64::from(bits)),
        _ => v,
    }
}

fn float(rng: &mut Rng, ebits: u32, fbits: u32) -> u64 {
    let sign = rng.draw() & 1;
    let e = exponent(rng, (1 << ebits) - 1);
    sign << (ebits + fbits) | e << fbits | fraction(rng, fbits)
}

/// 80 bits with this biased exponent, now and then of a kind that the 387 refuses.
fn f80(rng: &mut Rng, e: u16) -> u128 {
    let integer = if rng.one_in(16) { e == 0 } else { e != 0 };
    let sig = u64::from(integer) << 63 | fraction(rng, 63);
    let se = (rng.draw() as u16 & 0x8000) | e;
    u128::from(se) << 64 | u128::from(sig)
}

/// A vector register's contents.
fn vector(rng: &mut Rng) -> u128 {
    let two = |a: u64, b: u64| u128::from(a) | u128::from(b) << 64;
    match rng.below(10) {
        0..=3 => two(float(rng, 11, 52), float(rng, 11, 52)),
        4..=6 => (0..4).fold(0, |v, _| v << 32 | u128::from(float(rng, 8, 23))),
        7 => two(integer(rng), integer(rng)),
        // Few different bytes: matches for the string compares.
        8 => (0..16).fold(0, |v, _| v << 8 | u128::from(rng.draw() & 3 | (rng.draw() & 1) << 7)),
        _ => two(rng.draw(), rng.draw()),
    }
}

fn mxcsr(rng: &mut Rng) -> u32 {
    match rng.below(8) {
        0..=2 => 0x1f80 | 0x20,
        3..=4 => 0x1f80,
        5..=6 => 0x1f80 | rng.draw() as u32 & 0xe07f,
        _ => rng.draw() as u32 & 0xffff,
    }
}

/// A whole state without regard to an instruction.
pub fn state(rng: &mut Rng) -> State {
    let mut gpr = [0; 16];
    gpr.iter_mut().for_each(|r| *r = integer(rng));
    gpr[4] = SCRATCH + 0x800 - 8 * (rng.draw() % 16);
    let mut fx = [0u8; 512];
    let fcw: u16 = match rng.below(4) {
        0 | 1 => 0x037f,
        2 => 0x007f | rng.draw() as u16 & 0xf00,
        _ => rng.draw() as u16 & 0xf3f | 0x40,
    };
    let mut fsw = rng.draw() as u16 & 0x7f7f;
    if !rng.one_in(16) {
        fsw &= !0x3f | fcw;
    }
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    fx[0..2].copy_from_slice(&fcw.to_le_bytes());
    fx[2..4].copy_from_slice(&fsw.to_le_bytes());
    fx[4] = if rng.one_in(3) { rng.draw() as u8 } else { 0xff };
    if rng.one_in(3) {
        // Room for a push.
        fx[4] &= !(1 << ((fsw >> 11) as u8 & 7).wrapping_sub(1).wrapping_rem(8).min(7));
    }
    fx[24..28].copy_from_slice(&mxcsr(rng).to_le_bytes());
    fx[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    for i in 0..8 {
        let e = exponent(rng, 0x7fff) as u16;
        let v = f80(rng, e);
        fx[32 + 16 * i..42 + 16 * i].copy_from_slice(&v.to_le_bytes()[..10]);
    }
    let mut last = 0;
    for i in 0..16 {
        // Near relatives meet cancellation and equality.
        let v = match rng.below(6) {
            0 => last,
            1 => last ^ 1 << (rng.draw() & 127),
            _ => vector(rng),
        };
        last = v;
        fx[160 + 16 * i..176 + 16 * i].copy_from_slice(&v.to_le_bytes());
    }
    if rng.one_in(6) {
        let st0: [u8; 10] = fx[32..42].try_into().unwrap_or_default();
        fx[48..58].copy_from_slice(&st0);
        fx[48] ^= (rng.draw() & 1) as u8;
    }
    let mut mem = Box::new([0u8; SCRATCH_LEN]);
    for chunk in mem.chunks_exact_mut(64) {
        chunk[..8].copy_from_slice(&rng.draw().to_le_bytes());
    }
    State { gpr, rflags: 0x202 | rng.draw() & 0x8d5 | if rng.one_in(8) { 0x400 } else { 0 }, fx, mem }
}
