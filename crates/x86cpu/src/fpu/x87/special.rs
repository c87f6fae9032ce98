//! Sign and class, stack management, control words, and the exact "partial" operations.

use super::super::insn::FpContext;
use super::super::soft::{self, EXT, Env, IE, Kind, Num, Round, ZE};
use super::super::state::{F80, fsw};
use super::{commit, is_empty, pop, push, set_c1, set_st, st, stack_fault, unary};

macro_rules! kernels {
    ($($name:ident: |$c:ident, $b:ident, $i:ident| $e:expr;)*) => {$(
        pub fn $name($c: &mut FpContext<'_>, _: u128, $b: u128, $i: u8) -> u128 { $e }
    )*};
}

kernels! {
    fabs: |c, _b, _i| sign(c, |se| se & 0x7fff);
    fchs: |c, _b, _i| sign(c, |se| se ^ 0x8000);
    fnop: |_c, _b, _i| 0;
    ffree: |c, _b, i| { let r = super::phys(c.fpu, i); c.fpu.tags &= !(1 << r); set_c1(c.fpu, false); 0 };
    ffreep: |c, _b, i| { let r = super::phys(c.fpu, i); c.fpu.tags &= !(1 << r); set_c1(c.fpu, false); pop(c.fpu); 0 };
    fstpnce: |c, _b, i| copy_pop(c, i);
    fincstp: |c, _b, _i| { let t = c.fpu.top(); c.fpu.set_top(t + 1); set_c1(c.fpu, false); 0 };
    fdecstp: |c, _b, _i| { let t = c.fpu.top(); c.fpu.set_top(t.wrapping_sub(1)); set_c1(c.fpu, false); 0 };
    fninit: |c, _b, _i| { c.fpu.init_x87(); 0 };
    fnclex: |c, _b, _i| { c.fpu.fsw &= 0x7f00; 0 };
    fnstsw: |c, _b, _i| c.fpu.fsw.into();
    fnstsw_ax: |c, _b, _i| { c.gpr[0] = c.gpr[0] & !0xffff | u64::from(c.fpu.fsw); 0 };
    fnstcw: |c, _b, _i| c.fpu.fcw.into();
    fldcw: |c, b, _i| { c.fpu.set_fcw(b as u16); c.fpu.refresh_summary(); 0 };
    frndint: |c, _b, _i| { unary(c, |env, _, n| integral(env, n)); 0 };
    fprem: |c, _b, _i| partial_remainder(c, false);
    fprem1: |c, _b, _i| partial_remainder(c, true);
}

fn sign(c: &mut FpContext<'_>, f: impl Fn(u16) -> u16) -> u128 {
    if is_empty(c.fpu, 0) {
        if stack_fault(c, false) {
            set_st(c.fpu, 0, F80::INDEFINITE);
        }
        return 0;
    }
    set_c1(c.fpu, false);
    let v = st(c.fpu, 0);
    set_st(c.fpu, 0, F80 { se: f(v.se), ..v });
    0
}

fn integral(env: &mut Env, n: Num) -> Num {
    if let Some(nan) = env.nan1(n) {
        return nan;
    }
    env.denormals(n.denormal);
    soft::round_to_integral(env, n)
}

/// D9 D8+i: FSTP without exceptions; an empty source is only popped.
fn copy_pop(c: &mut FpContext<'_>, i: u8) -> u128 {
    if !is_empty(c.fpu, 0) {
        let v = st(c.fpu, 0);
        set_st(c.fpu, i, v);
    }
    set_c1(c.fpu, false);
    pop(c.fpu);
    0
}

/// C3 C2 C0 by class, C1 the sign, also of an empty register.
pub fn fxam(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    let v = st(c.fpu, 0);
    let n = soft::from_f80(v);
    let class = match n.kind {
        _ if is_empty(c.fpu, 0) => fsw::C3 | fsw::C0,
        Kind::Unsupported => 0,
        Kind::Quiet | Kind::Signal => fsw::C0,
        Kind::Inf => fsw::C2 | fsw::C0,
        Kind::Zero => fsw::C3,
        Kind::Finite if n.denormal => fsw::C3 | fsw::C2,
        Kind::Finite => fsw::C2,
    };
    c.fpu.fsw = c.fpu.fsw & !fsw::CONDITION | class;
    set_c1(c.fpu, v.se >> 15 != 0);
    0
}

/// Empty operands of an exchange become the indefinite first.
pub fn fxch(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
    if is_empty(c.fpu, 0) || is_empty(c.fpu, i) {
        if !stack_fault(c, false) {
            return 0;
        }
        for k in [0, i] {
            if is_empty(c.fpu, k) {
                set_st(c.fpu, k, F80::INDEFINITE);
            }
        }
    } else {
        set_c1(c.fpu, false);
    }
    let (a, b) = (st(c.fpu, 0), st(c.fpu, i));
    set_st(c.fpu, 0, b);
    set_st(c.fpu, i, a);
    0
}

/// Both operands of ST(0) op ST(1), or the stack fault for them.
pub(super) fn two(c: &mut FpContext<'_>) -> Option<(Num, Num)> {
    if is_empty(c.fpu, 0) || is_empty(c.fpu, 1) {
        return None;
    }
    Some((soft::from_f80(st(c.fpu, 0)), soft::from_f80(st(c.fpu, 1))))
}

fn scaled(env: &mut Env, a: Num, b: Num) -> Num {
    if let Some(nan) = env.nan2(a, b) {
        return nan;
    }
    match (a.kind, b.kind) {
        (Kind::Zero, Kind::Inf) if !b.sign => return env.invalid(),
        (Kind::Inf, Kind::Inf) if b.sign => return env.invalid(),
        _ => env.denormals(a.denormal || b.denormal),
    }
    match (a.kind, b.kind) {
        (Kind::Zero | Kind::Inf, _) | (_, Kind::Zero) if a.kind != Kind::Finite => return a,
        (_, Kind::Inf) => return if b.sign { Num::zero(a.sign) } else { Num::inf(a.sign) },
        _ => {}
    }
    let mut cut = Env { round: Round::Zero, flags: 0, ..*env };
    let by = soft::to_int(&mut cut, b, 32).unwrap_or(if b.sign { -0x10000 } else { 0x10000 });
    let exp = a.exp + by.clamp(-0x10000, 0x10000) as i32;
    let r = soft::round(env, &EXT, a.sign, exp, u128::from(a.sig) << 64);
    // Unmasked and further out than the bias adjustment reaches.
    let (over, under) = (r.exp > EXT.emax, r.exp < EXT.emin - 64);
    if r.kind != Kind::Finite || !over && !under {
        return r;
    }
    env.flags |= soft::PE;
    env.up = over;
    if over { Num::inf(r.sign) } else { Num::zero(r.sign) }
}

pub fn fscale(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    let Some((a, b)) = two(c) else {
        if stack_fault(c, false) {
            set_st(c.fpu, 0, F80::INDEFINITE);
        }
        return 0;
    };
    let mut env = Env::x87(c.fpu.fcw);
    let r = scaled(&mut env, a, b);
    if commit(c, &env) {
        set_st(c.fpu, 0, soft::to_f80(r));
    }
    0
}

/// ST(0) = exponent, then push the significand.
pub fn fxtract(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    let underflow = is_empty(c.fpu, 0);
    if underflow || !is_empty(c.fpu, 7) {
        if stack_fault(c, !underflow) {
            set_st(c.fpu, 0, F80::INDEFINITE);
            push(c.fpu, F80::INDEFINITE);
        }
        return 0;
    }
    let mut env = Env::x87(c.fpu.fcw);
    let n = soft::from_f80(st(c.fpu, 0));
    let (exponent, significand) = match env.nan1(n) {
        Some(nan) => (nan, nan),
        None => match n.kind {
            Kind::Zero => {
                env.flags |= ZE;
                (Num::inf(true), n)
            }
            Kind::Inf => (Num::inf(false), n),
            _ => {
                env.denormals(n.denormal);
                (soft::from_int(n.exp.into()), Num { exp: 0, ..n })
            }
        },
    };
    if commit(c, &env) {
        set_st(c.fpu, 0, soft::to_f80(exponent));
        push(c.fpu, soft::to_f80(significand));
    }
    0
}

/// What FPREM tells of the quotient.
enum Quotient {
    /// Nothing: there is none.
    None,
    /// The reduction is not complete (C2).
    Partial,
    /// Its low bits.
    Bits(u64),
}

/// The remainder and the quotient's low bits.
fn remainder(env: &mut Env, a: Num, b: Num, nearest: bool) -> (Num, Quotient) {
    if let Some(nan) = env.nan2(a, b) {
        return (nan, Quotient::None);
    }
    if a.kind == Kind::Inf || b.kind == Kind::Zero {
        env.flags |= IE;
        return (Num::indefinite(), Quotient::None);
    }
    env.denormals(a.denormal || b.denormal);
    if a.kind == Kind::Zero {
        return (a, Quotient::Bits(0));
    }
    let d = a.exp - b.exp;
    let (r, q) = match b.kind {
        Kind::Inf => (a, Quotient::Bits(0)),
        _ if d < 64 => {
            let (r, q) = soft::remainder(a, b, nearest);
            (r, Quotient::Bits(q))
        }
        // Too far apart: take off between 32 and 63 bits of the quotient, and say "not done".
        _ => {
            let step = d & 31 | 32;
            let (r, _) = soft::remainder(a, Num { exp: b.exp + d - step, ..b }, false);
            (r, Quotient::Partial)
        }
    };
    if r.kind == Kind::Finite {
        return (soft::round(env, &EXT, r.sign, r.exp, u128::from(r.sig) << 64), q);
    }
    (r, q)
}

fn partial_remainder(c: &mut FpContext<'_>, nearest: bool) -> u128 {
    c.fpu.fsw &= !fsw::C2;
    let Some((a, b)) = two(c) else {
        if stack_fault(c, false) {
            set_st(c.fpu, 0, F80::INDEFINITE);
        }
        return 0;
    };
    let mut env = Env::x87(c.fpu.fcw);
    let (r, q) = remainder(&mut env, a, b, nearest);
    if !commit(c, &env) {
        return 0;
    }
    set_st(c.fpu, 0, soft::to_f80(r));
    let bit = |on: bool, flag: u16| if on { flag } else { 0 };
    match q {
        Quotient::None => {}
        Quotient::Partial => c.fpu.fsw = c.fpu.fsw & !fsw::CONDITION | fsw::C2,
        Quotient::Bits(q) => {
            c.fpu.fsw = c.fpu.fsw & !fsw::CONDITION
                | bit(q & 4 != 0, fsw::C0)
                | bit(q & 2 != 0, fsw::C3)
                | bit(q & 1 != 0, fsw::C1);
        }
    }
    0
}
