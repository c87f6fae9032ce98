//! SSE conversions (SDM vol. 2, CVT*). None of those to integers reports DE.

use super::super::insn::FpContext;
use super::super::soft::{self, Env, F32, F64, Num, Round};
use super::arith::{fast, slow};
use super::lanes::*;

/// To a signed integer of `bits` bits; the indefinite value where it does not fit.
fn to_int(c: &mut FpContext<'_>, n: impl Fn(bool) -> Num, bits: u32, truncate: bool) -> u64 {
    let mut env = Env::sse(c.fpu.mxcsr);
    if truncate {
        env.round = Round::Zero;
    }
    let n = n(env.daz);
    let r = soft::to_int(&mut env, n, bits);
    c.fpu.raised |= u32::from(env.flags);
    r.unwrap_or(i64::MIN >> (64 - bits)) as u64
}

fn f32_to_int(c: &mut FpContext<'_>, v: u32, bits: u32, truncate: bool) -> u64 {
    to_int(c, |daz| soft::from_f32(v, daz), bits, truncate)
}

fn f64_to_int(c: &mut FpContext<'_>, v: u64, bits: u32, truncate: bool) -> u64 {
    if truncate {
        // The common case: it fits, and is whole or PE stands already, so that nothing is raised.
        let f = f64::from_bits(v);
        let limit = if bits == 32 { 2147483648.0 } else { 9223372036854775808.0 };
        if f.abs() < limit && ((f as i64) as f64 == f || fast(c) && f.abs() >= 1.0) {
            return f as i64 as u64;
        }
    }
    to_int(c, |daz| soft::from_f64(v, daz), bits, truncate)
}

fn int_to_f32(c: &mut FpContext<'_>, v: i64) -> u32 {
    soft::to_f32(slow(c, |env| rounded(env, &F32, soft::from_int(v))))
}

fn int_to_f64(c: &mut FpContext<'_>, v: i64) -> u64 {
    if v.unsigned_abs() < 1 << 53 {
        return (v as f64).to_bits();
    }
    soft::to_f64(slow(c, |env| rounded(env, &F64, soft::from_int(v))))
}

fn rounded(env: &mut Env, fmt: &soft::Fmt, n: Num) -> Num {
    match n.kind {
        soft::Kind::Finite => soft::round(env, fmt, n.sign, n.exp, u128::from(n.sig) << 64),
        _ => n,
    }
}

fn change(env: &mut Env, fmt: &soft::Fmt, n: Num) -> Num {
    if let Some(nan) = env.nan1(n) {
        return nan;
    }
    env.denormals(n.denormal);
    rounded(env, fmt, n)
}

fn f64_to_f32(c: &mut FpContext<'_>, v: u64) -> u32 {
    soft::to_f32(slow(c, |env| {
        let n = soft::from_f64(v, env.daz);
        change(env, &F32, n)
    }))
}

fn f32_to_f64(c: &mut FpContext<'_>, v: u32) -> u64 {
    let e = v >> 23 & 0xff;
    if e != 0 && e != 0xff {
        return f64::from(f32::from_bits(v)).to_bits();
    }
    soft::to_f64(slow(c, |env| {
        let n = soft::from_f32(v, env.daz);
        change(env, &F64, n)
    }))
}

macro_rules! kernels {
    ($($name:ident: |$c:ident, $a:ident, $b:ident| $e:expr;)*) => {$(
        pub fn $name($c: &mut FpContext<'_>, $a: u128, $b: u128, _: u8) -> u128 { $e }
    )*};
}

kernels! {
    cvtps2pd: |c, _a, b| qwords_to([b as u32, (b >> 32) as u32].map(|x| f32_to_f64(c, x)));
    cvtpd2ps: |c, _a, b| { let [x, y] = qwords_of(b).map(|x| f64_to_f32(c, x)); dwords_to([x, y, 0, 0]) };
    cvtss2sd: |c, a, b| merge(a, f32_to_f64(c, b as u32).into(), 64);
    cvtsd2ss: |c, a, b| merge(a, f64_to_f32(c, b as u64).into(), 32);
    cvtdq2ps: |c, _a, b| dwords_to(dwords_of(b).map(|x| int_to_f32(c, (x as i32).into())));
    cvtdq2pd: |c, _a, b| qwords_to([b as u32, (b >> 32) as u32].map(|x| int_to_f64(c, (x as i32).into())));
    cvtps2dq: |c, _a, b| dwords_to(dwords_of(b).map(|x| f32_to_int(c, x, 32, false) as u32));
    cvttps2dq: |c, _a, b| dwords_to(dwords_of(b).map(|x| f32_to_int(c, x, 32, true) as u32));
    cvtpd2dq: |c, _a, b| { let [x, y] = qwords_of(b).map(|x| f64_to_int(c, x, 32, false) as u32); dwords_to([x, y, 0, 0]) };
    cvttpd2dq: |c, _a, b| { let [x, y] = qwords_of(b).map(|x| f64_to_int(c, x, 32, true) as u32); dwords_to([x, y, 0, 0]) };
    cvtsi2ss_32: |c, a, b| merge(a, int_to_f32(c, (b as i32).into()).into(), 32);
    cvtsi2ss_64: |c, a, b| merge(a, int_to_f32(c, b as i64).into(), 32);
    cvtsi2sd_32: |c, a, b| merge(a, int_to_f64(c, (b as i32).into()).into(), 64);
    cvtsi2sd_64: |c, a, b| merge(a, int_to_f64(c, b as i64).into(), 64);
    cvtss2si_32: |c, _a, b| u128::from(f32_to_int(c, b as u32, 32, false));
    cvtss2si_64: |c, _a, b| u128::from(f32_to_int(c, b as u32, 64, false));
    cvttss2si_32: |c, _a, b| u128::from(f32_to_int(c, b as u32, 32, true));
    cvttss2si_64: |c, _a, b| u128::from(f32_to_int(c, b as u32, 64, true));
    cvtsd2si_32: |c, _a, b| u128::from(f64_to_int(c, b as u64, 32, false));
    cvtsd2si_64: |c, _a, b| u128::from(f64_to_int(c, b as u64, 64, false));
    cvttsd2si_32: |c, _a, b| u128::from(f64_to_int(c, b as u64, 32, true));
    cvttsd2si_64: |c, _a, b| u128::from(f64_to_int(c, b as u64, 64, true));
    cvtpi2ps: |c, a, b| {
        let [x, y] = [b as u32, (b >> 32) as u32].map(|x| int_to_f32(c, (x as i32).into()));
        merge(a, u128::from(x) | u128::from(y) << 32, 64)
    };
    cvtps2pi: |c, _a, b| pair([b as u32, (b >> 32) as u32].map(|x| f32_to_int(c, x, 32, false)));
    cvttps2pi: |c, _a, b| pair([b as u32, (b >> 32) as u32].map(|x| f32_to_int(c, x, 32, true)));
    cvtpd2pi: |c, _a, b| pair(qwords_of(b).map(|x| f64_to_int(c, x, 32, false)));
    cvttpd2pi: |c, _a, b| pair(qwords_of(b).map(|x| f64_to_int(c, x, 32, true)));
}

fn pair(v: [u64; 2]) -> u128 {
    u128::from(v[0] as u32) | u128::from(v[1] as u32) << 32
}
