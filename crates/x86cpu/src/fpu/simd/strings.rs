//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 2, 4.1): compare two short strings.

use std::array::from_fn;

use super::super::insn::FpContext;
use super::lanes::*;

/// Both operands as numbers, with how many of each are valid, and the width in elements.
struct Strings {
    a: [i32; 16],
    b: [i32; 16],
    len_a: usize,
    len_b: usize,
    n: usize,
}

fn elements(v: u128, imm: u8) -> [i32; 16] {
    let v = &v.to_le_bytes();
    match imm & 3 {
        0 => bytes(v).map(i32::from),
        1 => from_fn(|i| words(v)[i & 7].into()),
        2 => bytes(v).map(|x| (x as i8).into()),
        _ => from_fn(|i| (words(v)[i & 7] as i16).into()),
    }
}

/// The aggregation of imm[3:2] before polarity.
fn aggregate(s: &Strings, imm: u8) -> u32 {
    let hit = |j: usize| -> bool {
        let b_ok = j < s.len_b;
        match imm >> 2 & 3 {
            0 => b_ok && s.a[..s.len_a].contains(&s.b[j]),
            1 => b_ok && s.a[..s.len_a].chunks_exact(2).any(|r| r[0] <= s.b[j] && s.b[j] <= r[1]),
            2 => match (j < s.len_a, b_ok) {
                (true, true) => s.a[j] == s.b[j],
                (a_ok, b_ok) => a_ok == b_ok,
            },
            _ => (0..s.len_a.min(s.n - j)).all(|i| j + i < s.len_b && s.a[i] == s.b[j + i]),
        }
    };
    (0..s.n).fold(0, |r, j| r | u32::from(hit(j)) << j)
}

/// The whole comparison: IntRes2, and the flags go to RFLAGS.
fn compare(c: &mut FpContext<'_>, s: &Strings, imm: u8) -> u32 {
    let all = (1u32 << s.n) - 1;
    let r = aggregate(s, imm);
    let r = match imm >> 4 & 3 {
        1 => !r & all,
        3 => r ^ ((1u32 << s.len_b) - 1),
        _ => r,
    };
    let flags = u64::from(r != 0)
        | u64::from(s.len_b < s.n) << 6
        | u64::from(s.len_a < s.n) << 7
        | u64::from(r & 1) << 11;
    *c.rflags = *c.rflags & !0x8d5 | flags;
    r
}

fn index(r: u32, n: usize, imm: u8) -> u128 {
    match (r, imm >> 6 & 1) {
        (0, _) => n as u128,
        (r, 0) => r.trailing_zeros().into(),
        (r, _) => r.ilog2().into(),
    }
}

fn mask(r: u32, imm: u8) -> u128 {
    match (imm >> 6 & 1, imm & 1) {
        (0, _) => r.into(),
        (_, 0) => u128::from_le_bytes(from_fn(|i| (r >> i & 1) as u8 * 0xff)),
        _ => u128::from_le_bytes(from_words(from_fn(|i| (r >> i & 1) as u16 * 0xffff))),
    }
}

fn width(imm: u8) -> usize {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// Lengths end at the first zero element.
fn implicit(a: u128, b: u128, imm: u8) -> Strings {
    let n = width(imm);
    let (a, b) = (elements(a, imm), elements(b, imm));
    let len = |l: &[i32; 16]| l[..n].iter().position(|x| *x == 0).unwrap_or(n);
    Strings { a, b, len_a: len(&a), len_b: len(&b), n }
}

/// Lengths are the magnitudes of (E/R)AX and (E/R)DX, cut to the width.
fn explicit(c: &FpContext<'_>, a: u128, b: u128, imm: u8, wide: bool) -> Strings {
    let n = width(imm);
    let len = |r: u64| {
        let v = if wide { r as i64 } else { i64::from(r as i32) };
        v.unsigned_abs().min(n as u64) as usize
    };
    Strings { a: elements(a, imm), b: elements(b, imm), len_a: len(c.gpr[0]), len_b: len(c.gpr[2]), n }
}

pub fn pcmpistri(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let s = implicit(a, b, imm);
    index(compare(c, &s, imm), s.n, imm)
}

pub fn pcmpistrm(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let s = implicit(a, b, imm);
    mask(compare(c, &s, imm), imm)
}

pub fn pcmpestri(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let s = explicit(c, a, b, imm, false);
    index(compare(c, &s, imm), s.n, imm)
}

pub fn pcmpestrm(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let s = explicit(c, a, b, imm, false);
    mask(compare(c, &s, imm), imm)
}

/// With REX.W the lengths are RAX and RDX.
pub fn pcmpestri64(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let s = explicit(c, a, b, imm, true);
    index(compare(c, &s, imm), s.n, imm)
}

pub fn pcmpestrm64(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let s = explicit(c, a, b, imm, true);
    mask(compare(c, &s, imm), imm)
}
