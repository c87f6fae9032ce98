//! Packed integer arithmetic, logic, compares and shifts (SDM vol. 2). Lane by lane, so the same
//! kernel serves MMX with its upper half zero.

use std::array::from_fn;

use super::super::insn::V;
use super::lanes::*;

macro_rules! lanewise {
    ($($name:ident: $get:ident, $put:ident, $t:ty, |$x:ident, $y:ident| $e:expr;)*) => {$(
        pub fn $name(a: &V, b: &V, _: u8) -> V {
            let (a, b) = ($get(a), $get(b));
            $put(from_fn(|i| { let ($x, $y) = (a[i] as $t, b[i] as $t); ($e) as _ }))
        }
    )*};
}

lanewise! {
    paddb: bytes, from_bytes, u8, |x, y| x.wrapping_add(y);
    paddw: words, from_words, u16, |x, y| x.wrapping_add(y);
    paddd: dwords, from_dwords, u32, |x, y| x.wrapping_add(y);
    paddq: qwords, from_qwords, u64, |x, y| x.wrapping_add(y);
    psubb: bytes, from_bytes, u8, |x, y| x.wrapping_sub(y);
    psubw: words, from_words, u16, |x, y| x.wrapping_sub(y);
    psubd: dwords, from_dwords, u32, |x, y| x.wrapping_sub(y);
    psubq: qwords, from_qwords, u64, |x, y| x.wrapping_sub(y);
    paddsb: bytes, from_bytes, i8, |x, y| x.saturating_add(y);
    paddsw: words, from_words, i16, |x, y| x.saturating_add(y);
    paddusb: bytes, from_bytes, u8, |x, y| x.saturating_add(y);
    paddusw: words, from_words, u16, |x, y| x.saturating_add(y);
    psubsb: bytes, from_bytes, i8, |x, y| x.saturating_sub(y);
    psubsw: words, from_words, i16, |x, y| x.saturating_sub(y);
    psubusb: bytes, from_bytes, u8, |x, y| x.saturating_sub(y);
    psubusw: words, from_words, u16, |x, y| x.saturating_sub(y);
    pmullw: words, from_words, u16, |x, y| x.wrapping_mul(y);
    pmulhw: words, from_words, i16, |x, y| (i32::from(x) * i32::from(y)) >> 16;
    pmulhuw: words, from_words, u16, |x, y| (u32::from(x) * u32::from(y)) >> 16;
    pmulhrsw: words, from_words, i16, |x, y| (((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1;
    pmulld: dwords, from_dwords, u32, |x, y| x.wrapping_mul(y);
    pmuludq: qwords, from_qwords, u64, |x, y| u64::from(x as u32) * u64::from(y as u32);
    pmuldq: qwords, from_qwords, u64, |x, y| i64::from(x as i32) * i64::from(y as i32);
    pcmpeqb: bytes, from_bytes, u8, |x, y| -i8::from(x == y);
    pcmpeqw: words, from_words, u16, |x, y| -i16::from(x == y);
    pcmpeqd: dwords, from_dwords, u32, |x, y| -i32::from(x == y);
    pcmpeqq: qwords, from_qwords, u64, |x, y| -i64::from(x == y);
    pcmpgtb: bytes, from_bytes, i8, |x, y| -i8::from(x > y);
    pcmpgtw: words, from_words, i16, |x, y| -i16::from(x > y);
    pcmpgtd: dwords, from_dwords, i32, |x, y| -i32::from(x > y);
    pcmpgtq: qwords, from_qwords, i64, |x, y| -i64::from(x > y);
    pminub: bytes, from_bytes, u8, |x, y| x.min(y);
    pmaxub: bytes, from_bytes, u8, |x, y| x.max(y);
    pminsb: bytes, from_bytes, i8, |x, y| x.min(y);
    pmaxsb: bytes, from_bytes, i8, |x, y| x.max(y);
    pminuw: words, from_words, u16, |x, y| x.min(y);
    pmaxuw: words, from_words, u16, |x, y| x.max(y);
    pminsw: words, from_words, i16, |x, y| x.min(y);
    pmaxsw: words, from_words, i16, |x, y| x.max(y);
    pminud: dwords, from_dwords, u32, |x, y| x.min(y);
    pmaxud: dwords, from_dwords, u32, |x, y| x.max(y);
    pminsd: dwords, from_dwords, i32, |x, y| x.min(y);
    pmaxsd: dwords, from_dwords, i32, |x, y| x.max(y);
    pavgb: bytes, from_bytes, u8, |x, y| (u16::from(x) + u16::from(y) + 1) >> 1;
    pavgw: words, from_words, u16, |x, y| (u32::from(x) + u32::from(y) + 1) >> 1;
    psignb: bytes, from_bytes, i8, |x, y| x.wrapping_mul(y.signum());
    psignw: words, from_words, i16, |x, y| x.wrapping_mul(y.signum());
    psignd: dwords, from_dwords, i32, |x, y| x.wrapping_mul(y.signum());
    pabsb: bytes, from_bytes, i8, |_x, y| y.wrapping_abs();
    pabsw: words, from_words, i16, |_x, y| y.wrapping_abs();
    pabsd: dwords, from_dwords, i32, |_x, y| y.wrapping_abs();
}

macro_rules! plain {
    ($($name:ident: |$a:ident, $b:ident| $e:expr;)*) => {$(
        pub fn $name($a: &V, $b: &V, _: u8) -> V {
            let ($a, $b) = (u128::from_le_bytes(*$a), u128::from_le_bytes(*$b));
            let r: u128 = $e;
            r.to_le_bytes()
        }
    )*};
}

plain! {
    pand: |a, b| a & b;
    pandn: |a, b| !a & b;
    por: |a, b| a | b;
    pxor: |a, b| a ^ b;
    pslldq: |a, b| if b > 15 { 0 } else { a << (8 * b as u32) };
    psrldq: |a, b| if b > 15 { 0 } else { a >> (8 * b as u32) };
}

macro_rules! shifts {
    ($($name:ident: $get:ident, $put:ident, |$n:ident| $count:expr, |$x:ident| $e:expr;)*) => {$(
        pub fn $name(a: &V, b: &V, _: u8) -> V {
            let $n = qwords(b)[0];
            let $n = $count;
            $put($get(a).map(|$x| $e))
        }
    )*};
}

shifts! {
    psllw: words, from_words, |n| count(n, 16), |x| shl(x.into(), n) as u16;
    pslld: dwords, from_dwords, |n| count(n, 32), |x| shl(x.into(), n) as u32;
    psllq: qwords, from_qwords, |n| count(n, 64), |x| shl(x, n);
    psrlw: words, from_words, |n| count(n, 16), |x| shr(x.into(), n) as u16;
    psrld: dwords, from_dwords, |n| count(n, 32), |x| shr(x.into(), n) as u32;
    psrlq: qwords, from_qwords, |n| count(n, 64), |x| shr(x, n);
    psraw: words, from_words, |n| count(n, 16).min(15), |x| (x as i16 >> n) as u16;
    psrad: dwords, from_dwords, |n| count(n, 32).min(31), |x| (x as i32 >> n) as u32;
}

/// A shift count: the low quadword of the operand, cut to `width` (which shifts everything out).
fn count(b: u64, width: u64) -> u32 {
    b.min(width) as u32
}

fn shl(x: u64, n: u32) -> u64 {
    x.checked_shl(n).unwrap_or(0)
}

fn shr(x: u64, n: u32) -> u64 {
    x.checked_shr(n).unwrap_or(0)
}

/// Sums of products of neighbours, 16 to 32 bits.
pub fn pmaddwd(a: &V, b: &V, _: u8) -> V {
    let (a, b) = (words(a), words(b));
    let product = |i: usize| i32::from(a[i] as i16) * i32::from(b[i] as i16);
    from_dwords(from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1)) as u32))
}

/// Unsigned by signed bytes, sums of neighbours, saturated.
pub fn pmaddubsw(a: &V, b: &V, _: u8) -> V {
    let (a, b) = (bytes(a), bytes(b));
    let product = |i: usize| i32::from(a[i]) * i32::from(b[i] as i8);
    from_words(from_fn(|i| {
        (product(2 * i) + product(2 * i + 1)).clamp(i16::MIN.into(), i16::MAX.into()) as u16
    }))
}

pub fn psadbw(a: &V, b: &V, _: u8) -> V {
    let (a, b) = (bytes(a), bytes(b));
    from_qwords(from_fn(|h| (8 * h..8 * h + 8).map(|i| u64::from(a[i].abs_diff(b[i]))).sum()))
}

pub fn mpsadbw(a: &V, b: &V, imm: u8) -> V {
    let (a, b) = (bytes(a), bytes(b));
    let (from, block) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    from_words(from_fn(|i| (0..4).map(|k| u16::from(a[from + i + k].abs_diff(b[block + k]))).sum()))
}

pub fn phminposuw(_: &V, b: &V, _: u8) -> V {
    let mut best = (u16::MAX, 0u128);
    for (i, w) in words(b).into_iter().enumerate() {
        if w < best.0 {
            best = (w, i as u128);
        }
    }
    (u128::from(best.0) | best.1 << 16).to_le_bytes()
}

macro_rules! horizontal {
    ($($name:ident $mmx:ident: $get:ident, $put:ident, $n:expr, |$x:ident, $y:ident| $e:expr;)*) => {$(
        pub fn $name(a: &V, b: &V, _: u8) -> V {
            let (a, b) = ($get(a), $get(b));
            $put(from_fn(|i| {
                let (s, k) = if i < $n / 2 { (a, 2 * i) } else { (b, 2 * i - $n) };
                let ($x, $y) = (s[k], s[k + 1]);
                $e
            }))
        }
        pub fn $mmx(a: &V, b: &V, i: u8) -> V {
            // Both 64-bit operands side by side: the result's low half.
            $name(&from_qwords([qwords(a)[0], qwords(b)[0]]), &[0; 16], i)
        }
    )*};
}

fn sat(v: i32) -> u16 {
    v.clamp(i16::MIN.into(), i16::MAX.into()) as u16
}

horizontal! {
    phaddw phaddw_mmx: words, from_words, 8, |x, y| x.wrapping_add(y);
    phaddd phaddd_mmx: dwords, from_dwords, 4, |x, y| x.wrapping_add(y);
    phsubw phsubw_mmx: words, from_words, 8, |x, y| x.wrapping_sub(y);
    phsubd phsubd_mmx: dwords, from_dwords, 4, |x, y| x.wrapping_sub(y);
    phaddsw phaddsw_mmx: words, from_words, 8, |x, y| sat(i32::from(x as i16) + i32::from(y as i16));
    phsubsw phsubsw_mmx: words, from_words, 8, |x, y| sat(i32::from(x as i16) - i32::from(y as i16));
}

/// ZF: no common bit; CF: b has no bit outside a.
pub fn ptest(a: &V, b: &V, _: u8) -> V {
    let (a, b) = (u128::from_le_bytes(*a), u128::from_le_bytes(*b));
    (u128::from(a & b == 0) << 6 | u128::from(!a & b == 0)).to_le_bytes()
}
