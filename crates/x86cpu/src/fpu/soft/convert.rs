//! Between bit patterns, integers and unpacked numbers.

use super::super::state::F80;
use super::{Env, Fmt, IE, Kind, Num, PE, Round, round, shift_sticky};

/// Unpacks an interchange format of `ebits` exponent and `fbits` fraction bits.
fn unpack(bits: u64, ebits: u32, fbits: u32, daz: bool) -> Num {
    let sign = bits >> (ebits + fbits) & 1 != 0;
    let e = (bits >> fbits) as u32 & ((1 << ebits) - 1);
    let frac = bits & ((1 << fbits) - 1);
    let bias = (1i32 << (ebits - 1)) - 1;
    let left = frac << (63 - fbits);
    if e == (1 << ebits) - 1 {
        if frac == 0 {
            return Num::inf(sign);
        }
        let kind = if frac >> (fbits - 1) & 1 != 0 { Kind::Quiet } else { Kind::Signal };
        return Num { kind, sign, exp: 0, sig: left | 1 << 63, denormal: false };
    }
    if e != 0 {
        return Num::finite(sign, e as i32 - bias, left | 1 << 63);
    }
    if frac == 0 || daz {
        return Num::zero(sign);
    }
    let lz = left.leading_zeros();
    Num { denormal: true, ..Num::finite(sign, 1 - bias - lz as i32, left << lz) }
}

/// Packs a number that was rounded for this format.
fn pack(n: Num, ebits: u32, fbits: u32) -> u64 {
    let bias = (1i32 << (ebits - 1)) - 1;
    let top = ((1u64 << ebits) - 1) << fbits;
    let frac = |sig: u64| sig << 1 >> (64 - fbits);
    let body = match n.kind {
        Kind::Zero => 0,
        Kind::Inf => top,
        Kind::Finite if n.exp < 1 - bias => {
            (n.sig >> (63 - fbits)).checked_shr((1 - bias - n.exp) as u32).unwrap_or(0)
        }
        Kind::Finite => ((n.exp + bias) as u64) << fbits | frac(n.sig),
        Kind::Quiet | Kind::Signal | Kind::Unsupported => top | frac(n.sig),
    };
    u64::from(n.sign) << (ebits + fbits) | body
}

pub fn from_f32(bits: u32, daz: bool) -> Num {
    unpack(bits.into(), 8, 23, daz)
}

pub fn from_f64(bits: u64, daz: bool) -> Num {
    unpack(bits, 11, 52, daz)
}

pub fn to_f32(n: Num) -> u32 {
    pack(n, 8, 23) as u32
}

pub fn to_f64(n: Num) -> u64 {
    pack(n, 11, 52)
}

pub fn from_f80(v: F80) -> Num {
    let sign = v.se >> 15 != 0;
    let integer = v.sig >> 63 != 0;
    match v.se & 0x7fff {
        0x7fff if !integer => Num { kind: Kind::Unsupported, ..Num::indefinite() },
        0x7fff if v.sig << 1 == 0 => Num::inf(sign),
        0x7fff => {
            let kind = if v.sig >> 62 & 1 != 0 { Kind::Quiet } else { Kind::Signal };
            Num { kind, sign, exp: 0, sig: v.sig, denormal: false }
        }
        0 if v.sig == 0 => Num::zero(sign),
        0 => {
            // Denormals and pseudo-denormals alike.
            let lz = v.sig.leading_zeros();
            Num { denormal: true, ..Num::finite(sign, -16382 - lz as i32, v.sig << lz) }
        }
        _ if !integer => Num { kind: Kind::Unsupported, ..Num::indefinite() },
        e => Num::finite(sign, i32::from(e) - 16383, v.sig),
    }
}

pub fn to_f80(n: Num) -> F80 {
    let s = u16::from(n.sign) << 15;
    match n.kind {
        Kind::Zero => F80 { sig: 0, se: s },
        Kind::Finite if n.exp < -16382 => {
            F80 { sig: n.sig.checked_shr((-16382 - n.exp) as u32).unwrap_or(0), se: s }
        }
        Kind::Finite => F80 { sig: n.sig, se: s | ((n.exp + 16383) as u16 & 0x7fff) },
        _ => F80 { sig: n.sig, se: s | 0x7fff },
    }
}

/// A signed integer, exact (up to 64 bits of magnitude).
pub fn from_int(v: i64) -> Num {
    if v == 0 {
        return Num::zero(false);
    }
    let m = v.unsigned_abs();
    let lz = m.leading_zeros();
    Num::finite(v < 0, 63 - lz as i32, m << lz)
}

/// Rounds to an integral value, exact in `n`'s own precision. Raises PE where it changed.
pub fn round_to_integral(env: &mut Env, n: Num) -> Num {
    if n.kind != Kind::Finite || n.exp >= 63 {
        return n;
    }
    let wide = Fmt { prec: 64, emin: i32::MIN / 2, emax: i32::MAX / 2, bias_adjust: 0 };
    if n.exp < 0 {
        // Below one: zero or one, by the half.
        let up = match env.round {
            Round::Nearest => n.exp == -1 && n.sig > 1 << 63,
            Round::Down => n.sign,
            Round::Up => !n.sign,
            Round::Zero => false,
        };
        env.flags |= PE;
        env.up = up;
        return if up { Num::one(n.sign) } else { Num::zero(n.sign) };
    }
    let fmt = Fmt { prec: n.exp as u32 + 1, ..wide };
    round(env, &fmt, n.sign, n.exp, u128::from(n.sig) << 64)
}

/// To a signed integer of `bits` bits by the rounding mode; out of range or NaN: IE and `None`
/// (the integer indefinite).
pub fn to_int(env: &mut Env, n: Num, bits: u32) -> Option<i64> {
    let bad = |env: &mut Env| {
        env.flags |= IE;
        env.up = false;
        None
    };
    match n.kind {
        Kind::Zero => return Some(0),
        Kind::Finite if n.exp < 64 => {}
        _ => return bad(env),
    }
    // Integer part in the upper 64 bits, the rest below.
    let v = shift_sticky(u128::from(n.sig) << 64, (63 - n.exp) as u32);
    let whole = (v >> 64) as u64;
    let rest = v as u64;
    let up = rest != 0
        && match env.round {
            Round::Nearest => rest > 1 << 63 || rest == 1 << 63 && whole & 1 != 0,
            Round::Down => n.sign,
            Round::Up => !n.sign,
            Round::Zero => false,
        };
    let m = u128::from(whole) + u128::from(up);
    let limit = (1u128 << (bits - 1)) - u128::from(!n.sign);
    if m > limit {
        return bad(env);
    }
    if rest != 0 {
        env.flags |= PE;
    }
    env.up = up;
    Some(if n.sign { (m as u64).wrapping_neg() as i64 } else { m as i64 })
}
