//! Loads and stores of reals, integers and packed decimals; constants; register moves.

use super::super::insn::FpContext;
use super::super::soft::{self, Env, F32, F64, Fmt, Kind, Num, Round};
use super::super::state::F80;
use super::{commit_store, is_empty, pop, push_result, set_c1, set_st, st, stack_fault};

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident: |$c:ident, $b:ident, $i:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name($c: &mut FpContext<'_>, _: u128, $b: u128, $i: u8) -> u128 { $e }
    )*};
}

/// Widens a real that was loaded: a signalling NaN is invalid, a denormal is reported.
fn loaded(env: &mut Env, n: Num) -> Num {
    if let Some(nan) = env.nan1(n) {
        return nan;
    }
    env.denormals(n.denormal);
    n
}

/// Pushes 80 bits as they are.
fn push_raw(c: &mut FpContext<'_>, v: F80) {
    if is_empty(c.fpu, 7) {
        set_c1(c.fpu, false);
        super::push(c.fpu, v);
    } else if stack_fault(c, true) {
        super::push(c.fpu, F80::INDEFINITE);
    }
}

fn load_raw(c: &mut FpContext<'_>, v: F80) -> u128 {
    push_raw(c, v);
    0
}

/// A denormal is loaded even where DE is unmasked; only an invalid operand suppresses the push.
fn load(c: &mut FpContext<'_>, n: Num) -> u128 {
    let room = is_empty(c.fpu, 7);
    push_result(c, |env| loaded(env, n));
    if n.denormal && room && c.fpu.raised != 0 {
        c.fpu.raised = 0;
        super::push(c.fpu, soft::to_f80(n));
    }
    0
}

fn fld_st(c: &mut FpContext<'_>, i: u8) -> u128 {
    // An empty source is an underflow, even onto a full stack's overflow.
    if is_empty(c.fpu, i) {
        if stack_fault(c, false) {
            super::push(c.fpu, F80::INDEFINITE);
        }
        return 0;
    }
    let v = st(c.fpu, i);
    load_raw(c, v)
}

/// A constant: its significand cut off, and whether the rest is above one half.
fn constant(c: &mut FpContext<'_>, se: u16, sig: u64, nearest_up: bool) -> u128 {
    let up = match Round::from_bits(u32::from(c.fpu.fcw >> 10)) {
        Round::Nearest => nearest_up,
        Round::Up => true,
        Round::Down | Round::Zero => false,
    };
    load_raw(c, F80 { sig: sig + u64::from(up), se })
}

kernels! {
    fld_m32: |c, b, _i| load(c, soft::from_f32(b as u32, false));
    fld_m64: |c, b, _i| load(c, soft::from_f64(b as u64, false));
    fld_m80: |c, b, _i| load_raw(c, F80::from_bits(b));
    fld_sti: |c, _b, i| fld_st(c, i);
    fild_m16: |c, b, _i| load(c, soft::from_int((b as i16).into()));
    fild_m32: |c, b, _i| load(c, soft::from_int((b as i32).into()));
    fild_m64: |c, b, _i| load(c, soft::from_int(b as i64));
    fbld: |c, b, _i| load(c, from_bcd(b));
    fld1: |c, _b, _i| load_raw(c, F80 { sig: 1 << 63, se: 0x3fff });
    fldz: |c, _b, _i| load_raw(c, F80::ZERO);
    fldl2t: |c, _b, _i| constant(c, 0x4000, 0xd49a_784b_cd1b_8afe, false);
    fldl2e: |c, _b, _i| constant(c, 0x3fff, 0xb8aa_3b29_5c17_f0bb, true);
    fldpi: |c, _b, _i| constant(c, 0x4000, 0xc90f_daa2_2168_c234, true);
    fldlg2: |c, _b, _i| constant(c, 0x3ffd, 0x9a20_9a84_fbcf_f798, true);
    fldln2: |c, _b, _i| constant(c, 0x3ffe, 0xb172_17f7_d1cf_79ab, true);
    fst_m32: |c, _b, _i| store_real(c, &F32, false);
    fstp_m32: |c, _b, _i| store_real(c, &F32, true);
    fst_m64: |c, _b, _i| store_real(c, &F64, false);
    fstp_m64: |c, _b, _i| store_real(c, &F64, true);
    fstp_m80: |c, _b, _i| store_raw(c);
    fst_sti: |c, _b, i| move_to(c, i, false);
    fstp_sti: |c, _b, i| move_to(c, i, true);
    fist_m16: |c, _b, _i| store_int(c, 16, false, false);
    fistp_m16: |c, _b, _i| store_int(c, 16, false, true);
    fist_m32: |c, _b, _i| store_int(c, 32, false, false);
    fistp_m32: |c, _b, _i| store_int(c, 32, false, true);
    fistp_m64: |c, _b, _i| store_int(c, 64, false, true);
    fisttp_m16: |c, _b, _i| store_int(c, 16, true, true);
    fisttp_m32: |c, _b, _i| store_int(c, 32, true, true);
    fisttp_m64: |c, _b, _i| store_int(c, 64, true, true);
    fbstp: |c, _b, _i| store_bcd(c);
}

/// 18 decimal digits and a sign (SDM vol. 1, 4.7). Digits above nine are undefined; they count.
fn from_bcd(b: u128) -> Num {
    let mut v = 0u64;
    for i in (0..18).rev() {
        v = v.wrapping_mul(10).wrapping_add((b >> (4 * i)) as u64 & 15);
    }
    let n = soft::from_int(v as i64);
    Num { sign: b >> 79 & 1 != 0, ..n }
}

fn finish_store(c: &mut FpContext<'_>, env: &Env, pops: bool, v: u128) -> u128 {
    if commit_store(c, env) && pops {
        pop(c.fpu);
    }
    v
}

/// An empty ST(0) stores the indefinite when masked.
fn empty_store(c: &mut FpContext<'_>, pops: bool, indefinite: u128) -> u128 {
    if stack_fault(c, false) && pops {
        pop(c.fpu);
    }
    indefinite
}

fn store_real(c: &mut FpContext<'_>, fmt: &Fmt, pops: bool) -> u128 {
    let pack = |n: Num| -> u128 {
        if fmt.prec == F32.prec { soft::to_f32(n).into() } else { soft::to_f64(n).into() }
    };
    if is_empty(c.fpu, 0) {
        return empty_store(c, pops, pack(Num::indefinite()));
    }
    let mut env = Env::x87(c.fpu.fcw);
    let n = soft::from_f80(st(c.fpu, 0));
    let r = match env.nan1(n) {
        Some(nan) => nan,
        None if n.kind == Kind::Finite => soft::round(&mut env, fmt, n.sign, n.exp, u128::from(n.sig) << 64),
        None => n,
    };
    finish_store(c, &env, pops, pack(r))
}

fn store_raw(c: &mut FpContext<'_>) -> u128 {
    if is_empty(c.fpu, 0) {
        return empty_store(c, true, F80::INDEFINITE.bits());
    }
    set_c1(c.fpu, false);
    let v = st(c.fpu, 0).bits();
    pop(c.fpu);
    v
}

fn move_to(c: &mut FpContext<'_>, i: u8, pops: bool) -> u128 {
    let v = if !is_empty(c.fpu, 0) {
        set_c1(c.fpu, false);
        st(c.fpu, 0)
    } else if stack_fault(c, false) {
        F80::INDEFINITE
    } else {
        return 0;
    };
    set_st(c.fpu, i, v);
    if pops {
        pop(c.fpu);
    }
    0
}

fn store_int(c: &mut FpContext<'_>, bits: u32, truncate: bool, pops: bool) -> u128 {
    let indefinite = (i64::MIN >> (64 - bits)) as u64;
    if is_empty(c.fpu, 0) {
        return empty_store(c, pops, indefinite.into());
    }
    let mut env = Env::x87(c.fpu.fcw);
    if truncate {
        env.round = Round::Zero;
    }
    let n = soft::from_f80(st(c.fpu, 0));
    let v = soft::to_int(&mut env, n, bits).map_or(indefinite, |v| v as u64);
    finish_store(c, &env, pops, v.into())
}

fn store_bcd(c: &mut FpContext<'_>) -> u128 {
    const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
    if is_empty(c.fpu, 0) {
        return empty_store(c, true, INDEFINITE);
    }
    let mut env = Env::x87(c.fpu.fcw);
    let n = soft::from_f80(st(c.fpu, 0));
    let mut v = INDEFINITE;
    match soft::to_int(&mut env, n, 64) {
        Some(i) if i.unsigned_abs() < 1_000_000_000_000_000_000 => {
            let mut rest = i.unsigned_abs();
            v = u128::from(n.sign) << 79;
            for k in 0..18 {
                v |= u128::from(rest % 10) << (4 * k);
                rest /= 10;
            }
        }
        _ => {
            env.flags = soft::IE;
            env.up = false;
        }
    }
    finish_store(c, &env, true, v)
}
