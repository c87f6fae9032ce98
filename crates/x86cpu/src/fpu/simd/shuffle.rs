//! Shuffles, packs, unpacks, blends, widening moves (SDM vol. 2).

use std::array::from_fn;

use super::super::insn::{FpContext, V};
use super::lanes::*;

macro_rules! kernels {
    ($($name:ident: |$a:ident, $b:ident, $i:ident| $e:expr;)*) => {$(
        pub fn $name($a: &V, $b: &V, $i: u8) -> V { $e }
    )*};
}

/// Two bits of a shuffle immediate.
fn pick(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i) & 3)
}

fn shuffle_words(v: &V, base: usize, imm: u8) -> V {
    let w = words(v);
    from_words(from_fn(|i| if i / 4 == base / 4 { w[base + pick(imm, i & 3)] } else { w[i] }))
}

kernels! {
    pshufd: |_a, b, i| { let d = dwords(b); from_dwords(from_fn(|k| d[pick(i, k)])) };
    pshuflw: |_a, b, i| shuffle_words(b, 0, i);
    pshufhw: |_a, b, i| shuffle_words(b, 4, i);
    shufps: |a, b, i| {
        let (a, b) = (dwords(a), dwords(b));
        from_dwords(from_fn(|k| if k < 2 { a[pick(i, k)] } else { b[pick(i, k)] }))
    };
    shufpd: |a, b, i| from_qwords([qwords(a)[usize::from(i & 1)], qwords(b)[usize::from(i >> 1 & 1)]]);
    pshufb: |a, b, _i| {
        let (a, b) = (bytes(a), bytes(b));
        from_bytes(b.map(|m| if m & 0x80 != 0 { 0 } else { a[usize::from(m & 15)] }))
    };
    pshufb_mmx: |a, b, _i| {
        let (a, b) = (bytes(a), bytes(b));
        from_bytes(b.map(|m| if m & 0x80 != 0 { 0 } else { a[usize::from(m & 7)] }))
    };
    punpcklbw: |a, b, _i| { let (a, b) = (bytes(a), bytes(b)); from_bytes(from_fn(|i| if i & 1 == 0 { a[i / 2] } else { b[i / 2] })) };
    punpcklwd: |a, b, _i| { let (a, b) = (words(a), words(b)); from_words(from_fn(|i| if i & 1 == 0 { a[i / 2] } else { b[i / 2] })) };
    punpckldq: |a, b, _i| { let (a, b) = (dwords(a), dwords(b)); from_dwords([a[0], b[0], a[1], b[1]]) };
    punpcklqdq: |a, b, _i| from_qwords([qwords(a)[0], qwords(b)[0]]);
    punpckhbw: |a, b, _i| { let (a, b) = (bytes(a), bytes(b)); from_bytes(from_fn(|i| if i & 1 == 0 { a[8 + i / 2] } else { b[8 + i / 2] })) };
    punpckhwd: |a, b, _i| { let (a, b) = (words(a), words(b)); from_words(from_fn(|i| if i & 1 == 0 { a[4 + i / 2] } else { b[4 + i / 2] })) };
    punpckhdq: |a, b, _i| { let (a, b) = (dwords(a), dwords(b)); from_dwords([a[2], b[2], a[3], b[3]]) };
    punpckhqdq: |a, b, _i| from_qwords([qwords(a)[1], qwords(b)[1]]);
    packsswb: |a, b, _i| pack_bytes(a, b, |w| (w as i16).clamp(-128, 127) as u8);
    packuswb: |a, b, _i| pack_bytes(a, b, |w| (w as i16).clamp(0, 255) as u8);
    packssdw: |a, b, _i| pack_words(a, b, |d| (d as i32).clamp(-32768, 32767) as u16);
    packusdw: |a, b, _i| pack_words(a, b, |d| (d as i32).clamp(0, 65535) as u16);
    pmovsxbw: |_a, b, _i| from_words(from_fn(|i| bytes(b)[i] as i8 as u16));
    pmovsxbd: |_a, b, _i| from_dwords(from_fn(|i| bytes(b)[i] as i8 as u32));
    pmovsxbq: |_a, b, _i| from_qwords(from_fn(|i| bytes(b)[i] as i8 as u64));
    pmovsxwd: |_a, b, _i| from_dwords(from_fn(|i| words(b)[i] as i16 as u32));
    pmovsxwq: |_a, b, _i| from_qwords(from_fn(|i| words(b)[i] as i16 as u64));
    pmovsxdq: |_a, b, _i| from_qwords(from_fn(|i| dwords(b)[i] as i32 as u64));
    pmovzxbw: |_a, b, _i| from_words(from_fn(|i| bytes(b)[i].into()));
    pmovzxbd: |_a, b, _i| from_dwords(from_fn(|i| bytes(b)[i].into()));
    pmovzxbq: |_a, b, _i| from_qwords(from_fn(|i| bytes(b)[i].into()));
    pmovzxwd: |_a, b, _i| from_dwords(from_fn(|i| words(b)[i].into()));
    pmovzxwq: |_a, b, _i| from_qwords(from_fn(|i| words(b)[i].into()));
    pmovzxdq: |_a, b, _i| from_qwords(from_fn(|i| dwords(b)[i].into()));
    pblendw: |a, b, i| { let (a, b) = (words(a), words(b)); from_words(from_fn(|k| if i >> k & 1 != 0 { b[k] } else { a[k] })) };
    blendps: |a, b, i| { let (a, b) = (dwords(a), dwords(b)); from_dwords(from_fn(|k| if i >> k & 1 != 0 { b[k] } else { a[k] })) };
    blendpd: |a, b, i| { let (a, b) = (qwords(a), qwords(b)); from_qwords(from_fn(|k| if i >> k & 1 != 0 { b[k] } else { a[k] })) };
}

fn pack_bytes(a: &V, b: &V, f: impl Fn(u16) -> u8) -> V {
    let (a, b) = (words(a), words(b));
    from_bytes(from_fn(|i| f(if i < 8 { a[i] } else { b[i - 8] })))
}

fn pack_words(a: &V, b: &V, f: impl Fn(u32) -> u16) -> V {
    let (a, b) = (dwords(a), dwords(b));
    from_words(from_fn(|i| f(if i < 4 { a[i] } else { b[i - 4] })))
}

macro_rules! mmx_unpack {
    // The high halves of 64-bit registers lie in the middle of what the low unpack makes.
    ($($name:ident $low:ident;)*) => {$(
        pub fn $name(a: &V, b: &V, i: u8) -> V {
            from_qwords([qwords(&$low(a, b, i))[1], 0])
        }
    )*};
}

mmx_unpack! {
    punpckhbw_mmx punpcklbw;
    punpckhwd_mmx punpcklwd;
    punpckhdq_mmx punpckldq;
}

macro_rules! mmx_pack {
    // Both sources side by side: the low half of the wide pack.
    ($($name:ident $wide:ident;)*) => {$(
        pub fn $name(a: &V, b: &V, i: u8) -> V {
            $wide(&from_qwords([qwords(a)[0], qwords(b)[0]]), &[0; 16], i)
        }
    )*};
}

mmx_pack! {
    packsswb_mmx packsswb;
    packuswb_mmx packuswb;
    packssdw_mmx packssdw;
}

pub fn palignr(a: &V, b: &V, imm: u8) -> V {
    let (a, b) = (u128::from_le_bytes(*a), u128::from_le_bytes(*b));
    let v = match u32::from(imm) {
        0 => b,
        n @ 1..=15 => b >> (8 * n) | a << (128 - 8 * n),
        n @ 16..=31 => a >> (8 * (n - 16)),
        _ => 0,
    };
    v.to_le_bytes()
}

pub fn palignr_mmx(a: &V, b: &V, imm: u8) -> V {
    let both = u128::from_le_bytes(from_qwords([qwords(b)[0], qwords(a)[0]]));
    both.checked_shr(8 * u32::from(imm)).unwrap_or(0).to_le_bytes()
}

/// PBLENDVB: the mask is XMM0.
pub fn pblendvb(c: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
    let (a, b, m) = (bytes(&a.to_le_bytes()), bytes(&b.to_le_bytes()), bytes(&c.fpu.xmm[0]));
    u128::from_le_bytes(from_bytes(from_fn(|i| if m[i] >> 7 != 0 { b[i] } else { a[i] })))
}

pub fn blendvps(c: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
    let (a, b, m) = (dwords(&a.to_le_bytes()), dwords(&b.to_le_bytes()), dwords(&c.fpu.xmm[0]));
    u128::from_le_bytes(from_dwords(from_fn(|i| if m[i] >> 31 != 0 { b[i] } else { a[i] })))
}

pub fn blendvpd(c: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
    let (a, b, m) = (qwords(&a.to_le_bytes()), qwords(&b.to_le_bytes()), qwords(&c.fpu.xmm[0]));
    u128::from_le_bytes(from_qwords(from_fn(|i| if m[i] >> 63 != 0 { b[i] } else { a[i] })))
}
