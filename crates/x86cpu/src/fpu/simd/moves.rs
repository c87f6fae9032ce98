//! Moves, sign masks, inserts and extracts.

use super::super::insn::FpContext;
use super::lanes::*;

macro_rules! moves {
    ($($(#[$doc:meta])* $name:ident: |$a:ident, $b:ident, $i:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(_: &mut FpContext<'_>, $a: u128, $b: u128, $i: u8) -> u128 { $e }
    )*};
}

moves! {
    /// The source as it is; widths are the operands' matter.
    mov: |_a, b, _i| b;
    low64: |_a, b, _i| u128::from(b as u64);
    merge32: |a, b, _i| merge(a, b, 32);
    merge64: |a, b, _i| merge(a, b, 64);
    /// MOVHPS load and MOVLHPS: low half of the source into the high half.
    low_to_high: |a, b, _i| u128::from(a as u64) | b << 64;
    /// MOVHPS store: the high half.
    high: |_a, b, _i| b >> 64;
    /// MOVHLPS: high half of the source into the low half.
    high_to_low: |a, b, _i| merge(a, b >> 64, 64);
    movddup: |_a, b, _i| qwords_to([b as u64; 2]);
    movsldup: |_a, b, _i| { let d = dwords_of(b); dwords_to([d[0], d[0], d[2], d[2]]) };
    movshdup: |_a, b, _i| { let d = dwords_of(b); dwords_to([d[1], d[1], d[3], d[3]]) };
    pmovmskb: |_a, b, _i| u128::from(byte_signs(b as u64) | byte_signs((b >> 64) as u64) << 8);
    movmskps: |_a, b, _i| signs(dwords_of(b).iter().map(|x| (x >> 31) as u8));
    movmskpd: |_a, b, _i| signs(qwords_of(b).iter().map(|x| (x >> 63) as u8));
    pinsrb: |a, b, i| { let mut l = a.to_le_bytes(); l[usize::from(i & 15)] = b as u8; u128::from_le_bytes(l) };
    pinsrw: |a, b, i| { let mut l = words(&a.to_le_bytes()); l[usize::from(i & 7)] = b as u16; u128::from_le_bytes(from_words(l)) };
    pinsrw_mmx: |a, b, i| { let mut l = words(&a.to_le_bytes()); l[usize::from(i & 3)] = b as u16; u128::from_le_bytes(from_words(l)) };
    pinsrd: |a, b, i| { let mut l = dwords_of(a); l[usize::from(i & 3)] = b as u32; dwords_to(l) };
    pinsrq: |a, b, i| { let mut l = qwords_of(a); l[usize::from(i & 1)] = b as u64; qwords_to(l) };
    pextrb: |_a, b, i| b.to_le_bytes()[usize::from(i & 15)].into();
    pextrw: |_a, b, i| words(&b.to_le_bytes())[usize::from(i & 7)].into();
    pextrw_mmx: |_a, b, i| words(&b.to_le_bytes())[usize::from(i & 3)].into();
    pextrd: |_a, b, i| dwords_of(b)[usize::from(i & 3)].into();
    pextrq: |_a, b, i| qwords_of(b)[usize::from(i & 1)].into();
    insertps_reg: |a, b, i| insertps(a, dwords_of(b)[usize::from(i >> 6)], i);
    insertps_mem: |a, b, i| insertps(a, b as u32, i);
}

fn signs(bits: impl Iterator<Item = u8>) -> u128 {
    bits.enumerate().fold(0, |m, (i, s)| m | u128::from(s) << i)
}

/// Bit 7 of each byte, gathered by a multiplication.
fn byte_signs(v: u64) -> u64 {
    (v >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

fn insertps(a: u128, v: u32, imm: u8) -> u128 {
    let mut l = dwords_of(a);
    l[usize::from(imm >> 4 & 3)] = v;
    for (i, x) in l.iter_mut().enumerate() {
        if imm >> i & 1 != 0 {
            *x = 0;
        }
    }
    dwords_to(l)
}

/// STMXCSR.
pub fn stmxcsr(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    c.fpu.mxcsr.into()
}
