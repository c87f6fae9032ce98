//! What differs between two outcomes, leaving out what the manual leaves undefined.

use std::fmt::Write as _;

use iced_x86::{Instruction, MemorySize as S, Mnemonic as M, OpKind};

use crate::case::{Case, End, Outcome, SCRATCH, hex};
use crate::native::Native;

/// Whether the whole result is undefined: F2XM1 outside ±1, FYL2XP1 outside ±(1 - √½).
fn undefined(case: &Case, insn: &Instruction) -> bool {
    let st0 = field(&case.before.fx, 32, 10);
    let (e, sig) = (st0 >> 64 & 0x7fff, st0 as u64);
    match insn.mnemonic() {
        M::F2xm1 => e >= 0x3fff && (e, sig) != (0x3fff, 1 << 63),
        M::Fyl2xp1 => e > 0x3ffd || e == 0x3ffd && sig > 0x95f6_1998_0c43_36f7,
        M::Shld | M::Shrd => shift_count(case, insn) > operand_bits(insn),
        _ => false,
    }
}

/// Differences as text, one a line; empty when equal.
pub fn differences(case: &Case, insn: &Instruction, host: &Outcome, ours: &Outcome) -> String {
    let mut out = String::new();
    if case.loose.is_none() && (undefined(case, insn) || by_vendor(case, insn)) {
        return out;
    }
    if host.end != ours.end {
        let _ = writeln!(out, "  end: host {:?}, ours {:?}", host.end, ours.end);
    }
    for i in 0..16 {
        let (h, o) = (host.after.gpr[i], ours.after.gpr[i]);
        if h != o && !undefined_gpr(insn, i) {
            let _ = writeln!(out, "  r{i}: host {h:#x}, ours {o:#x}");
        }
    }
    if host.rip != ours.rip {
        let _ = writeln!(out, "  rip: host {:#x}, ours {:#x}", host.rip, ours.rip);
    }
    let undefined = match case.loose {
        None => undefined_flags(case, insn),
        Some((at_end, _)) if host.end == End::Next => at_end,
        Some((_, ever)) => ever,
    };
    let mask = 0xcd5 & !undefined;
    let (h, o) = (host.after.rflags & mask, ours.after.rflags & mask);
    if h != o {
        let _ = writeln!(out, "  rflags: host {h:#x}, ours {o:#x}");
    }
    fx(&mut out, case, insn, host, ours);
    memory(&mut out, insn, host, ours);
    out
}

fn undefined_gpr(_: &Instruction, _: usize) -> bool {
    false
}

/// RFLAGS bits that the manual leaves undefined after this instruction.
fn undefined_flags(case: &Case, insn: &Instruction) -> u64 {
    const AF: u64 = 0x10;
    match insn.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => AF,
        M::Mul | M::Imul => 0xd4,
        M::Div | M::Idiv => 0x8d5,
        M::Bsf | M::Bsr => 0x895,
        M::Bt | M::Bts | M::Btr | M::Btc => 0x894,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => {
            shift_flags(case, insn)
        }
        _ => 0,
    }
}

fn operand_bits(insn: &Instruction) -> u32 {
    let bytes = match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    };
    bytes as u32 * 8
}

/// The masked count of a shift or rotate.
fn shift_count(case: &Case, insn: &Instruction) -> u32 {
    let op = insn.op_count() - 1;
    let raw = match insn.op_kind(op) {
        OpKind::Register => case.before.gpr[1] as u8,
        _ => insn.immediate(op) as u8,
    };
    u32::from(raw & if operand_bits(insn) == 64 { 63 } else { 31 })
}

/// OF is defined for single shifts only, CF not for shifts past the width.
fn shift_flags(case: &Case, insn: &Instruction) -> u64 {
    let n = shift_count(case, insn);
    let of = if n > 1 { 0x800 } else { 0 };
    let shift = matches!(insn.mnemonic(), M::Shl | M::Sal | M::Shr);
    let cf = if shift && n >= operand_bits(insn) { 1 } else { 0 };
    let af = match insn.mnemonic() {
        M::Rol | M::Ror | M::Rcl | M::Rcr => 0,
        _ if n == 0 => 0,
        _ => 0x10,
    };
    of | cf | af
}

fn field(fx: &[u8; 512], at: usize, len: usize) -> u128 {
    let mut b = [0u8; 16];
    b[..len].copy_from_slice(&fx[at..at + len]);
    u128::from_le_bytes(b)
}

fn fx(out: &mut String, case: &Case, insn: &Instruction, host: &Outcome, ours: &Outcome) {
    let names = [
        ("fcw", 0, 2, 0xffff),
        ("fsw", 2, 2, 0xffff & !undefined_fsw(insn)),
        ("tags", 4, 1, 0xff),
        ("mxcsr", 24, 4, 0xffff),
    ];
    for (name, at, len, mask) in names {
        let (h, o) = (field(&host.after.fx, at, len) & mask, field(&ours.after.fx, at, len) & mask);
        if h != o {
            let before = field(&case.before.fx, at, len);
            let _ = writeln!(out, "  {name}: host {h:#x}, ours {o:#x} (before {before:#x})");
        }
    }
    for i in 0..8 {
        let (h, o) = (field(&host.after.fx, 32 + 16 * i, 10), field(&ours.after.fx, 32 + 16 * i, 10));
        if h != o && !close80(insn, h, o) {
            let _ = writeln!(out, "  st{i}: host {h:020x}, ours {o:020x}");
        }
    }
    for i in 0..16 {
        let (h, o) = (field(&host.after.fx, 160 + 16 * i, 16), field(&ours.after.fx, 160 + 16 * i, 16));
        if h != o && !approximate(insn, h, o) {
            let _ = writeln!(out, "  xmm{i}: host {h:032x}, ours {o:032x}");
        }
    }
}

/// FSW bits that the manual leaves undefined, or that differ by vendor.
fn undefined_fsw(insn: &Instruction) -> u128 {
    use M::*;
    let amd = Native::is_amd();
    match insn.mnemonic() {
        // C1 tells the rounding of a result that need not be equal.
        m if transcendental(m) && amd => 0x200,
        // AMD reports PE (and UE when tiny) also for exact results: ES and B follow.
        m if transcendental(m) => 0x82b0,
        Fcomi | Fcomip | Fucomi | Fucomip | Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne
        | Fcmovnbe | Fcmovnu
            if !amd =>
        {
            0x200
        }
        _ => 0,
    }
}

/// Cases that the vendors resolve differently, on a host that is not AMD's: compares with IE
/// unmasked (does the order come out?), the undocumented FSTPNCE, x87 state after #XM.
fn by_vendor(case: &Case, insn: &Instruction) -> bool {
    use M::*;
    let unmasked = case.before.fx[0] & 1 == 0;
    let simd = case.before.fx[25] & 0x1f != 0x1f || case.before.fx[24] & 0x80 == 0;
    let differs = match insn.mnemonic() {
        Fcom | Fcomp | Fcompp | Fucom | Fucomp | Fucompp | Ficom | Ficomp | Ftst | Fcomi | Fcomip
        | Fucomi | Fucomip => unmasked,
        Fstpnce => true,
        Cvtpi2ps | Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi => simd,
        _ => false,
    };
    differs && !Native::is_amd()
}

fn transcendental(m: M) -> bool {
    matches!(m, M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fpatan | M::Fptan | M::Fsin | M::Fcos | M::Fsincos)
}

/// Transcendental results within two units in the last place.
fn close80(insn: &Instruction, h: u128, o: u128) -> bool {
    transcendental(insn.mnemonic()) && h >> 79 == o >> 79 && {
        let lin = |v: u128| (v >> 64 & 0x7fff) << 63 | v & (u128::MAX >> 65);
        lin(h).abs_diff(lin(o)) <= 2
    }
}

/// RCPPS and RSQRTPS: each lane within 1.5 × 2^-11 of the host's (both are within 1.5 × 2^-12).
fn approximate(insn: &Instruction, h: u128, o: u128) -> bool {
    let m = insn.mnemonic();
    matches!(m, M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss)
        && (0..4).all(|i| {
            let (h, o) = (f32::from_bits((h >> (32 * i)) as u32), f32::from_bits((o >> (32 * i)) as u32));
            h.to_bits() == o.to_bits()
                || h.is_sign_positive() == o.is_sign_positive()
                    && (((h - o) / h).abs() < 1.5 / 2048.0
                        || h.abs().max(o.abs()) <= f32::MIN_POSITIVE * 1.01)
        })
}

fn memory(out: &mut String, insn: &Instruction, host: &Outcome, ours: &Outcome) {
    if host.after.mem == ours.after.mem {
        return;
    }
    let ignore = ignored_bytes(insn, host);
    let mut shown = 0;
    for (i, (h, o)) in host.after.mem.iter().zip(ours.after.mem.iter()).enumerate() {
        if h != o && !ignore.iter().any(|r| r.contains(&i)) && shown < 8 {
            shown += 1;
            let _ = writeln!(out, "  [{:#x}]: host {h:02x}, ours {o:02x}", SCRATCH + i as u64);
        }
    }
}

/// Offsets of stored instruction and data pointers, which differ by vendor.
fn ignored_bytes(insn: &Instruction, host: &Outcome) -> Vec<std::ops::Range<usize>> {
    let range = match (insn.mnemonic(), insn.memory_size()) {
        (M::Fnstenv | M::Fnsave, S::FpuEnv14 | S::FpuState94) => 6..14,
        (M::Fnstenv | M::Fnsave, _) => 12..28,
        (M::Fxsave | M::Fxsave64, _) => 6..24,
        _ => return Vec::new(),
    };
    // MXCSR_MASK is the host's; the profile's is 0xffff.
    let mask = if matches!(insn.mnemonic(), M::Fxsave | M::Fxsave64) { 28..32 } else { 0..0 };
    let ea = crate::soft::effective_address(insn, &host.after.gpr).wrapping_sub(SCRATCH) as usize;
    [range, mask].into_iter().map(|r| ea.wrapping_add(r.start)..ea.wrapping_add(r.end)).collect()
}

/// The case as one line: `bytes | registers that matter`.
pub fn line(case: &Case) -> String {
    let b = &case.before;
    let gpr: Vec<String> = b.gpr.iter().map(|r| format!("{r:x}")).collect();
    format!("{} gpr={} rflags={:x} fx={}", hex(&case.bytes), gpr.join(","), b.rflags, hex(&b.fx[..416]))
}
