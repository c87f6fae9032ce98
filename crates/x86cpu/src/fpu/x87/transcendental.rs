//! F2XM1, FYL2X, FYL2XP1, FPATAN, FPTAN, FSIN, FCOS, FSINCOS: special values per the manual's
//! tables, the rest by `soft::wide`.

use super::super::insn::FpContext;
use super::super::soft::wide::{self, Wide};
use super::super::soft::{self, EXT, Env, Kind, Num, PE, UE, ZE};
use super::super::state::{F80, fsw};
use super::special::two;
use super::{commit, is_empty, pop, push, set_st, st, stack_fault, unary};

pub fn f2xm1(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    unary(c, |env, _, n| {
        if let Some(nan) = env.nan1(n) {
            return nan;
        }
        env.denormals(n.denormal);
        match n.kind {
            Kind::Inf if n.sign => Num::one(true),
            Kind::Finite if n.exp == 0 && n.sig == 1 << 63 => {
                env.flags |= PE;
                if n.sign { Num::finite(true, -1, 1 << 63) } else { n }
            }
            // Outside ±1 the result is undefined: the operand stays.
            Kind::Finite if n.exp < 0 => wide::exp2m1(Wide::of(n)).round(env, &EXT),
            _ => n,
        }
    });
    0
}

/// y × l for a logarithm l that is a real, zero or infinite.
fn times(env: &mut Env, y: Num, l: Wide, l_inf: bool) -> Num {
    let sign = y.sign != l.sign;
    match y.kind {
        Kind::Inf if l.sig == 0 && !l_inf => env.invalid(),
        Kind::Zero if l_inf => env.invalid(),
        Kind::Inf => Num::inf(sign),
        Kind::Zero => Num::zero(sign),
        _ if l_inf => Num::inf(sign),
        _ if l.sig == 0 => Num::zero(sign),
        _ => {
            let v = Wide::of(y).mul(l);
            // An exact logarithm (of a power of two) times y: the product itself, PE as always.
            if l.sig << 40 == 0 {
                let r = soft::mul(env, &EXT, y, Num::finite(l.sign, l.exp, (l.sig >> 64) as u64));
                env.flags |= if r.kind == Kind::Finite && r.exp < EXT.emin { PE | UE } else { PE };
                return r;
            }
            v.round(env, &EXT)
        }
    }
}

fn yl2x(env: &mut Env, x: Num, y: Num) -> Num {
    if let Some(nan) = env.nan2(x, y) {
        return nan;
    }
    if x.sign && x.kind != Kind::Zero {
        return env.invalid();
    }
    match (x.kind, y.kind) {
        (Kind::Zero, Kind::Zero) => return env.invalid(),
        (Kind::Zero, Kind::Inf) => return Num::inf(!y.sign),
        (Kind::Zero, _) => {
            env.flags |= ZE;
            return Num::inf(!y.sign);
        }
        _ => {}
    }
    let infinite = x.kind == Kind::Inf;
    let l = if infinite { Wide::ZERO } else { wide::log2(Wide::of(x)) };
    env.denormals(x.denormal || y.denormal);
    times(env, y, l, infinite)
}

fn yl2xp1(env: &mut Env, x: Num, y: Num) -> Num {
    if let Some(nan) = env.nan2(x, y) {
        return nan;
    }
    match x.kind {
        Kind::Inf if x.sign => return env.invalid(),
        Kind::Inf => return times(env, y, Wide::ZERO, true),
        Kind::Zero => {
            let zero = Wide { sign: x.sign, ..Wide::ZERO };
            env.denormals(y.denormal);
            return times(env, y, zero, false);
        }
        // Below -1 the result is undefined.
        _ if x.sign && x.exp >= 0 => return env.invalid(),
        _ => {}
    }
    env.denormals(x.denormal || y.denormal);
    times(env, y, wide::log2p1(Wide::of(x)), false)
}

fn patan(env: &mut Env, x: Num, y: Num) -> Num {
    if let Some(nan) = env.nan2(x, y) {
        return nan;
    }
    env.denormals(x.denormal || y.denormal);
    let inf = |n: Num| n.kind == Kind::Inf;
    let zero = |n: Num| n.kind == Kind::Zero;
    let angle = match () {
        _ if inf(x) && inf(y) => {
            if x.sign {
                wide::PI_34
            } else {
                wide::PI_4
            }
        }
        _ if inf(y) => wide::PI_2,
        _ if zero(y) || inf(x) => {
            if !x.sign {
                return Num::zero(y.sign);
            }
            wide::PI
        }
        _ if zero(x) => wide::PI_2,
        _ => return far(env, x, y).unwrap_or_else(|| wide::atan2(Wide::of(y), Wide::of(x)).round(env, &EXT)),
    };
    angle.signed(y.sign).round(env, &EXT)
}

/// y / x so small that the angle is the quotient, but for what is too little to see: it is never exact, and below an exact
/// quotient.
fn far(env: &mut Env, x: Num, y: Num) -> Option<Num> {
    if x.sign || y.exp - x.exp > -16000 {
        return None;
    }
    Some(soft::div_below(env, &EXT, y, x))
}

/// ST(1) = f(ST(0), ST(1)), pop.
fn binary_pop(c: &mut FpContext<'_>, f: fn(&mut Env, Num, Num) -> Num) -> u128 {
    let Some((a, b)) = two(c) else {
        if stack_fault(c, false) {
            set_st(c.fpu, 1, F80::INDEFINITE);
            pop(c.fpu);
        }
        return 0;
    };
    let mut env = Env::x87(c.fpu.fcw);
    let r = f(&mut env, a, b);
    if commit(c, &env) {
        set_st(c.fpu, 1, soft::to_f80(r));
        pop(c.fpu);
    }
    0
}

pub fn fyl2x(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    binary_pop(c, yl2x)
}

pub fn fyl2xp1(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    binary_pop(c, yl2xp1)
}

pub fn fpatan(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    binary_pop(c, patan)
}

/// Which of the circular functions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Circular {
    Sin,
    Cos,
    SinCos,
    Tan,
}

/// (what stays in ST(0), what is pushed), before rounding of the special cases is needed.
fn circular(env: &mut Env, n: Num, what: Circular) -> (Num, Num) {
    if let Some(nan) = env.nan1(n) {
        return (nan, nan);
    }
    if n.kind == Kind::Inf {
        let nan = env.invalid();
        return (nan, nan);
    }
    env.denormals(n.denormal);
    if n.kind == Kind::Zero {
        let one = Num::one(false);
        return if what == Circular::Cos { (one, one) } else { (n, one) };
    }
    let (s, c) = wide::sin_cos(Wide::of(n));
    match what {
        Circular::Sin => (s.round(env, &EXT), n),
        Circular::Cos => (c.round(env, &EXT), n),
        Circular::SinCos => {
            let (s, c) = (s.round(env, &EXT), c.round(env, &EXT));
            (s, c)
        }
        Circular::Tan => (s.div(c).round(env, &EXT), Num::one(false)),
    }
}

fn trigonometric(c: &mut FpContext<'_>, what: Circular) -> u128 {
    let pushes = matches!(what, Circular::SinCos | Circular::Tan);
    c.fpu.fsw &= !fsw::C2;
    let underflow = is_empty(c.fpu, 0);
    if underflow || pushes && !is_empty(c.fpu, 7) {
        if stack_fault(c, !underflow) {
            set_st(c.fpu, 0, F80::INDEFINITE);
            if pushes {
                push(c.fpu, F80::INDEFINITE);
            }
        }
        return 0;
    }
    let n = soft::from_f80(st(c.fpu, 0));
    if n.kind == Kind::Finite && n.exp >= 63 {
        // Out of range: C2, and nothing else (SDM vol. 1, 8.3.8).
        c.fpu.fsw = c.fpu.fsw & !fsw::C1 | fsw::C2;
        return 0;
    }
    let mut env = Env::x87(c.fpu.fcw);
    let (stays, pushed) = circular(&mut env, n, what);
    if commit(c, &env) {
        set_st(c.fpu, 0, soft::to_f80(stays));
        if pushes {
            push(c.fpu, soft::to_f80(pushed));
        }
    }
    0
}

pub fn fsin(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    trigonometric(c, Circular::Sin)
}

pub fn fcos(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    trigonometric(c, Circular::Cos)
}

pub fn fsincos(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    trigonometric(c, Circular::SinCos)
}

pub fn fptan(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    trigonometric(c, Circular::Tan)
}
