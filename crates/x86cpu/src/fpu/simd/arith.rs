//! SSE floating point arithmetic and compares.
//!
//! Problem: every result and flag must be x86's on any host. Strategy: `soft` computes all of it;
//! the host's operators take the case that matters for speed. Under MXCSR with round to nearest,
//! everything masked and PE already sticky, an operation on normal numbers or zeros whose result is
//! normal too can only raise PE, so IEEE's own operators (f32, f64 in Rust) give the same state.

use std::array::from_fn;

use super::super::insn::FpContext;
use super::super::soft::{self, Env, F32, F64, Fmt, Num, Order};
use super::lanes::*;

/// A lane operation on two numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Sub,
    Mul,
    Div,
}

/// MXCSR allows the host's operators: RC nearest, all masked, PE set.
#[inline(always)]
pub(super) fn fast(c: &FpContext<'_>) -> bool {
    c.fpu.mxcsr & 0x7fa0 == 0x1fa0
}

pub(super) fn slow(c: &mut FpContext<'_>, f: impl FnOnce(&mut Env) -> Num) -> Num {
    let mut env = Env::sse(c.fpu.mxcsr);
    let r = f(&mut env);
    c.fpu.raised |= u32::from(env.flags);
    r
}

fn arith(env: &mut Env, fmt: &Fmt, op: Op, a: Num, b: Num) -> Num {
    match op {
        Op::Add => soft::add(env, fmt, a, b, false),
        Op::Sub => soft::add(env, fmt, a, b, true),
        Op::Mul => soft::mul(env, fmt, a, b),
        Op::Div => soft::div(env, fmt, a, b),
    }
}

macro_rules! width {
    ($t:ty, $f:ty, $fbits:expr, $emask:expr, $fmt:expr, $from:path, $to:path,
     $op:ident, $slow_op:ident, $usual:ident, $sqrt:ident, $minmax:ident, $cmp:ident, $order:ident) => {
        /// Zero or normal.
        #[inline(always)]
        fn $usual(x: $t) -> bool {
            let e = x >> $fbits & $emask;
            e.wrapping_sub(1) < $emask - 1 || x << 1 == 0
        }

        #[cold]
        #[inline(never)]
        fn $slow_op(c: &mut FpContext<'_>, op: Op, a: $t, b: $t) -> $t {
            $to(slow(c, |env| {
                let (a, b) = ($from(a, env.daz), $from(b, env.daz));
                arith(env, &$fmt, op, a, b)
            }))
        }

        #[inline(always)]
        pub(super) fn $op(c: &mut FpContext<'_>, op: Op, a: $t, b: $t) -> $t {
            if fast(c) && $usual(a) && $usual(b) {
                let (x, y) = (<$f>::from_bits(a), <$f>::from_bits(b));
                let (r, exact_zero) = match op {
                    Op::Add => (x + y, true),
                    Op::Sub => (x - y, true),
                    Op::Mul => (x * y, a << 1 == 0 || b << 1 == 0),
                    Op::Div => (x / y, a << 1 == 0 && b << 1 != 0),
                };
                let r = r.to_bits();
                // Not at the edge of the denormals either: tininess is found before packing.
                if (r >> $fbits & $emask).wrapping_sub(2) < $emask - 2 || r << 1 == 0 && exact_zero {
                    return r;
                }
            }
            $slow_op(c, op, a, b)
        }

        fn $sqrt(c: &mut FpContext<'_>, a: $t) -> $t {
            if fast(c) && $usual(a) && a >> (<$t>::BITS - 1) == 0 {
                return <$f>::from_bits(a).sqrt().to_bits();
            }
            $to(slow(c, |env| {
                let a = $from(a, env.daz);
                soft::sqrt(env, &$fmt, a)
            }))
        }

        fn $order(c: &mut FpContext<'_>, a: $t, b: $t, signalling: bool) -> Order {
            if $usual(a) && $usual(b) {
                let (x, y) = (<$f>::from_bits(a), <$f>::from_bits(b));
                return if x < y {
                    Order::Less
                } else if x > y {
                    Order::Greater
                } else {
                    Order::Equal
                };
            }
            let mut env = Env::sse(c.fpu.mxcsr);
            let (a, b) = ($from(a, env.daz), $from(b, env.daz));
            let r = soft::compare(&mut env, a, b, signalling);
            c.fpu.raised |= u32::from(env.flags);
            r
        }

        /// MINxx and MAXxx: the second operand for NaNs and for equal operands.
        fn $minmax(c: &mut FpContext<'_>, a: $t, b: $t, want: Order) -> $t {
            let chosen = if $order(c, a, b, true) == want { a } else { b };
            // DAZ makes a denormal a zero here too.
            let daz = c.fpu.mxcsr >> 6 & 1 != 0;
            if daz && chosen >> $fbits & $emask == 0 { chosen & 1 << (<$t>::BITS - 1) } else { chosen }
        }

        fn $cmp(c: &mut FpContext<'_>, a: $t, b: $t, imm: u8) -> $t {
            let order = $order(c, a, b, matches!(imm & 3, 1 | 2));
            let hit = match imm & 3 {
                0 => order == Order::Equal,
                1 => order == Order::Less,
                2 => matches!(order, Order::Less | Order::Equal),
                _ => order == Order::Unordered,
            };
            if hit != (imm & 4 != 0) { <$t>::MAX } else { 0 }
        }
    };
}

width!(
    u32,
    f32,
    23,
    0xff,
    F32,
    soft::from_f32,
    soft::to_f32,
    op32,
    slow32,
    usual32,
    sqrt32,
    minmax32,
    cmp32,
    order32
);
width!(
    u64,
    f64,
    52,
    0x7ff,
    F64,
    soft::from_f64,
    soft::to_f64,
    op64,
    slow64,
    usual64,
    sqrt64,
    minmax64,
    cmp64,
    order64
);

macro_rules! lanes {
    ($($ps:ident $ss:ident $pd:ident $sd:ident: |$c:ident, $x:ident, $y:ident, $i:ident| $f32:expr, $f64:expr;)*) => {$(
        pub fn $ps($c: &mut FpContext<'_>, a: u128, b: u128, $i: u8) -> u128 {
            let (a, b) = (dwords_of(a), dwords_of(b));
            dwords_to(from_fn(|k| { let ($x, $y) = (a[k], b[k]); $f32 }))
        }
        pub fn $ss($c: &mut FpContext<'_>, a: u128, b: u128, $i: u8) -> u128 {
            let ($x, $y) = (a as u32, b as u32);
            a & !0xffff_ffff | u128::from($f32)
        }
        pub fn $pd($c: &mut FpContext<'_>, a: u128, b: u128, $i: u8) -> u128 {
            let (a, b) = (qwords_of(a), qwords_of(b));
            qwords_to(from_fn(|k| { let ($x, $y) = (a[k], b[k]); $f64 }))
        }
        pub fn $sd($c: &mut FpContext<'_>, a: u128, b: u128, $i: u8) -> u128 {
            let ($x, $y) = (a as u64, b as u64);
            a >> 64 << 64 | u128::from($f64)
        }
    )*};
}

lanes! {
    addps addss addpd addsd: |c, x, y, _i| op32(c, Op::Add, x, y), op64(c, Op::Add, x, y);
    subps subss subpd subsd: |c, x, y, _i| op32(c, Op::Sub, x, y), op64(c, Op::Sub, x, y);
    mulps mulss mulpd mulsd: |c, x, y, _i| op32(c, Op::Mul, x, y), op64(c, Op::Mul, x, y);
    divps divss divpd divsd: |c, x, y, _i| op32(c, Op::Div, x, y), op64(c, Op::Div, x, y);
    sqrtps sqrtss sqrtpd sqrtsd: |c, _x, y, _i| sqrt32(c, y), sqrt64(c, y);
    minps minss minpd minsd: |c, x, y, _i| minmax32(c, x, y, Order::Less), minmax64(c, x, y, Order::Less);
    maxps maxss maxpd maxsd: |c, x, y, _i| minmax32(c, x, y, Order::Greater), minmax64(c, x, y, Order::Greater);
    cmpps cmpss cmppd cmpsd: |c, x, y, i| cmp32(c, x, y, i), cmp64(c, x, y, i);
    roundps roundss roundpd roundsd: |c, _x, y, i| round32(c, y, i), round64(c, y, i);
}

/// RFLAGS of an ordered compare: ZF PF CF.
fn flags(order: Order) -> u128 {
    match order {
        Order::Unordered => 0x45,
        Order::Greater => 0,
        Order::Less => 1,
        Order::Equal => 0x40,
    }
}

macro_rules! compares {
    ($($name:ident: $order:ident, $t:ty, $signalling:expr;)*) => {$(
        pub fn $name(c: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
            flags($order(c, a as $t, b as $t, $signalling))
        }
    )*};
}

compares! {
    comiss: order32, u32, true;
    ucomiss: order32, u32, false;
    comisd: order64, u64, true;
    ucomisd: order64, u64, false;
}

macro_rules! pairs {
    ($($name:ident: $get:ident, $put:ident, $op:ident, |$c:ident, $a:ident, $b:ident| [$($lane:expr),*];)*) => {$(
        pub fn $name($c: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
            let ($a, $b) = ($get(a), $get(b));
            $put([$($lane),*])
        }
    )*};
}

pairs! {
    addsubps: dwords_of, dwords_to, op32, |c, a, b| [op32(c, Op::Sub, a[0], b[0]), op32(c, Op::Add, a[1], b[1]), op32(c, Op::Sub, a[2], b[2]), op32(c, Op::Add, a[3], b[3])];
    addsubpd: qwords_of, qwords_to, op64, |c, a, b| [op64(c, Op::Sub, a[0], b[0]), op64(c, Op::Add, a[1], b[1])];
    haddps: dwords_of, dwords_to, op32, |c, a, b| [op32(c, Op::Add, a[0], a[1]), op32(c, Op::Add, a[2], a[3]), op32(c, Op::Add, b[0], b[1]), op32(c, Op::Add, b[2], b[3])];
    hsubps: dwords_of, dwords_to, op32, |c, a, b| [op32(c, Op::Sub, a[0], a[1]), op32(c, Op::Sub, a[2], a[3]), op32(c, Op::Sub, b[0], b[1]), op32(c, Op::Sub, b[2], b[3])];
    haddpd: qwords_of, qwords_to, op64, |c, a, b| [op64(c, Op::Add, a[0], a[1]), op64(c, Op::Add, b[0], b[1])];
    hsubpd: qwords_of, qwords_to, op64, |c, a, b| [op64(c, Op::Sub, a[0], a[1]), op64(c, Op::Sub, b[0], b[1])];
}

/// Whether the exceptions of a stage stop the instruction. Masked ones are final: a later stage that
/// faults does not take them back.
fn stopped(c: &mut FpContext<'_>) -> bool {
    if c.fpu.raised & !(c.fpu.mxcsr >> 7) & 0x3f != 0 {
        return true;
    }
    c.fpu.mxcsr |= std::mem::take(&mut c.fpu.raised) & 0x3f;
    false
}

/// DPPS: products of the chosen lanes, summed in pairs (SDM vol. 2).
pub fn dpps(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (dwords_of(a), dwords_of(b));
    let p: [u32; 4] = from_fn(|i| if imm >> (4 + i) & 1 != 0 { op32(c, Op::Mul, a[i], b[i]) } else { 0 });
    if stopped(c) {
        return 0;
    }
    let (lo, hi) = (op32(c, Op::Add, p[0], p[1]), op32(c, Op::Add, p[2], p[3]));
    if stopped(c) {
        return 0;
    }
    let sum = op32(c, Op::Add, lo, hi);
    dwords_to(from_fn(|i| if imm >> i & 1 != 0 { sum } else { 0 }))
}

pub fn dppd(c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (qwords_of(a), qwords_of(b));
    let p: [u64; 2] = from_fn(|i| if imm >> (4 + i) & 1 != 0 { op64(c, Op::Mul, a[i], b[i]) } else { 0 });
    if stopped(c) {
        return 0;
    }
    let sum = op64(c, Op::Add, p[0], p[1]);
    qwords_to(from_fn(|i| if imm >> i & 1 != 0 { sum } else { 0 }))
}

/// ROUNDxx: imm bit 2 takes MXCSR's mode, bit 3 silences PE. Never DE.
fn integral(c: &mut FpContext<'_>, n: impl Fn(bool) -> Num, imm: u8) -> Num {
    slow(c, |env| {
        let n = n(env.daz);
        if let Some(nan) = env.nan1(n) {
            return nan;
        }
        if imm & 4 == 0 {
            env.round = soft::Round::from_bits(imm.into());
        }
        let r = soft::round_to_integral(env, n);
        if imm & 8 != 0 {
            env.flags &= !soft::PE;
        }
        r
    })
}

fn round32(c: &mut FpContext<'_>, a: u32, imm: u8) -> u32 {
    soft::to_f32(integral(c, |daz| soft::from_f32(a, daz), imm))
}

fn round64(c: &mut FpContext<'_>, a: u64, imm: u8) -> u64 {
    soft::to_f64(integral(c, |daz| soft::from_f64(a, daz), imm))
}

/// An approximation as the portable profile defines it: the correctly rounded double, its
/// significand rounded to 12 bits; denormals in and out are zeros. (Silicon differs by vendor; the
/// manual asks for a relative error below 1.5 × 2^-12.)
fn approximate(sign: u32, exact: f64) -> u32 {
    let bits = exact.to_bits();
    let cut = (bits + (1 << 39)) & !((1u64 << 40) - 1);
    if exact < f64::from(f32::MIN_POSITIVE) { sign } else { sign | (f64::from_bits(cut) as f32).to_bits() }
}

fn rcp(x: u32) -> u32 {
    let (sign, mag) = (x & 1 << 31, x & !(1 << 31));
    match mag {
        0..0x0080_0000 => sign | 0x7f80_0000,
        0x7f80_0000 => sign,
        0x7f80_0001.. => x | 0x0040_0000,
        _ => approximate(sign, 1.0 / f64::from(f32::from_bits(mag))),
    }
}

fn rsqrt(x: u32) -> u32 {
    let (sign, mag) = (x & 1 << 31, x & !(1 << 31));
    match mag {
        0..0x0080_0000 => sign | 0x7f80_0000,
        0x7f80_0001.. => x | 0x0040_0000,
        _ if sign != 0 => 0xffc0_0000,
        0x7f80_0000 => 0,
        _ => approximate(0, 1.0 / f64::from(f32::from_bits(mag)).sqrt()),
    }
}

pub fn rcpps(_: &mut FpContext<'_>, _: u128, b: u128, _: u8) -> u128 {
    dwords_to(dwords_of(b).map(rcp))
}

pub fn rcpss(_: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
    merge(a, rcp(b as u32).into(), 32)
}

pub fn rsqrtps(_: &mut FpContext<'_>, _: u128, b: u128, _: u8) -> u128 {
    dwords_to(dwords_of(b).map(rsqrt))
}

pub fn rsqrtss(_: &mut FpContext<'_>, a: u128, b: u128, _: u8) -> u128 {
    merge(a, rsqrt(b as u32).into(), 32)
}
