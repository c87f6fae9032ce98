//! The arithmetic of IEEE 754 on unpacked numbers.

use super::{Env, Fmt, IE, Kind, Num, Round, ZE, round, shift_sticky};

/// Normalises a non-zero sum, difference or quotient (worth v / 2^127 × 2^exp) and rounds it.
fn finish(env: &mut Env, fmt: &Fmt, sign: bool, exp: i32, v: u128) -> Num {
    let lz = v.leading_zeros();
    round(env, fmt, sign, exp - lz as i32, v << lz)
}

/// Rounds an operand that an operation passes through unchanged (x + 0), as precision control asks.
fn pass(env: &mut Env, fmt: &Fmt, a: Num) -> Num {
    match a.kind {
        Kind::Finite => round(env, fmt, a.sign, a.exp, u128::from(a.sig) << 64),
        _ => a,
    }
}

/// a + b; the caller negates b to subtract, after [`Env::nan2`] would have seen its own sign.
pub fn add(env: &mut Env, fmt: &Fmt, a: Num, b: Num, subtract: bool) -> Num {
    if let Some(nan) = env.nan2(a, b) {
        return nan;
    }
    let b = if subtract { b.negated() } else { b };
    match (a.kind, b.kind) {
        (Kind::Inf, Kind::Inf) if a.sign != b.sign => return env.invalid(),
        (Kind::Inf, _) => {
            env.denormals(b.denormal);
            return Num::inf(a.sign);
        }
        (_, Kind::Inf) => {
            env.denormals(a.denormal);
            return Num::inf(b.sign);
        }
        (Kind::Zero, Kind::Zero) => {
            let sign = if a.sign == b.sign { a.sign } else { env.round == Round::Down };
            return Num::zero(sign);
        }
        _ => env.denormals(a.denormal || b.denormal),
    }
    if a.kind == Kind::Zero {
        return pass(env, fmt, b);
    }
    if b.kind == Kind::Zero {
        return pass(env, fmt, a);
    }
    let (big, small) = if (a.exp, a.sig) >= (b.exp, b.sig) { (a, b) } else { (b, a) };
    // One bit of headroom for the carry.
    let x = u128::from(big.sig) << 63;
    let y = shift_sticky(u128::from(small.sig) << 63, (big.exp - small.exp) as u32);
    let sum = if big.sign == small.sign { x + y } else { x - y };
    if sum == 0 {
        return Num::zero(env.round == Round::Down);
    }
    finish(env, fmt, big.sign, big.exp + 1, sum)
}

pub fn mul(env: &mut Env, fmt: &Fmt, a: Num, b: Num) -> Num {
    if let Some(nan) = env.nan2(a, b) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.kind, b.kind) {
        (Kind::Inf, Kind::Zero) | (Kind::Zero, Kind::Inf) => return env.invalid(),
        _ => env.denormals(a.denormal || b.denormal),
    }
    match (a.kind, b.kind) {
        (Kind::Inf, _) | (_, Kind::Inf) => Num::inf(sign),
        (Kind::Zero, _) | (_, Kind::Zero) => Num::zero(sign),
        _ => finish(env, fmt, sign, a.exp + b.exp + 1, u128::from(a.sig) * u128::from(b.sig)),
    }
}

pub fn div(env: &mut Env, fmt: &Fmt, a: Num, b: Num) -> Num {
    if let Some(nan) = env.nan2(a, b) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.kind, b.kind) {
        (Kind::Inf, Kind::Inf) | (Kind::Zero, Kind::Zero) => return env.invalid(),
        (Kind::Finite, Kind::Zero) => {
            env.flags |= ZE;
            return Num::inf(sign);
        }
        _ => env.denormals(a.denormal || b.denormal),
    }
    match (a.kind, b.kind) {
        (Kind::Inf, _) => Num::inf(sign),
        (Kind::Zero, _) | (_, Kind::Inf) => Num::zero(sign),
        _ => {
            let (quotient, exact) = quotient(a, b);
            finish(env, fmt, sign, a.exp - b.exp, quotient | u128::from(!exact))
        }
    }
}

/// The quotient of two finite numbers, less than half a unit of 128 bits nearer to zero than it is: of a value that has it
/// as its bound.
pub fn div_below(env: &mut Env, fmt: &Fmt, a: Num, b: Num) -> Num {
    env.denormals(a.denormal || b.denormal);
    let (quotient, exact) = quotient(a, b);
    finish(env, fmt, a.sign != b.sign, a.exp - b.exp, (quotient - u128::from(exact)) | 1)
}

/// Of two significands: 127 bits or 128, and whether these are all.
fn quotient(a: Num, b: Num) -> (u128, bool) {
    let d = u128::from(b.sig);
    let n = u128::from(a.sig) << 63;
    let (q1, r1) = (n / d, n % d);
    let (q2, r2) = ((r1 << 64) / d, (r1 << 64) % d);
    (q1 << 64 | q2, r2 == 0)
}

pub fn sqrt(env: &mut Env, fmt: &Fmt, a: Num) -> Num {
    if let Some(nan) = env.nan1(a) {
        return nan;
    }
    if a.sign && a.kind != Kind::Zero {
        return env.invalid();
    }
    env.denormals(a.denormal);
    if a.kind != Kind::Finite {
        return a;
    }
    // An even exponent, the radicand in the top bits: the root has its bit 63 set.
    let odd = a.exp & 1 != 0;
    let n = u128::from(a.sig) << if odd { 64 } else { 63 };
    let root = n.isqrt();
    let rest = n - root * root;
    // (root + 1/2)² = root² + root + 1/4: the remainder tells the next bit.
    let low = u128::from(rest > root) << 63 | u128::from(rest != 0);
    round(env, fmt, false, a.exp >> 1, root << 64 | low)
}

/// How two numbers stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Less,
    Equal,
    Greater,
    Unordered,
}

/// Compares; a quiet NaN is invalid too where `signalling`.
pub fn compare(env: &mut Env, a: Num, b: Num, signalling: bool) -> Order {
    let bad = |k: Kind| k == Kind::Unsupported || k == Kind::Signal || signalling && k == Kind::Quiet;
    if bad(a.kind) || bad(b.kind) {
        env.flags |= IE;
        return Order::Unordered;
    }
    if a.is_nan() || b.is_nan() {
        return Order::Unordered;
    }
    env.denormals(a.denormal || b.denormal);
    let rank = |n: Num| -> (i32, i64, u64) {
        match n.kind {
            Kind::Zero => (0, 0, 0),
            Kind::Inf => (1, i64::MAX, 0),
            _ => (1, n.exp.into(), n.sig),
        }
    };
    let signed = |n: Num| if n.kind == Kind::Zero { 0 } else { 1 - 2 * i32::from(n.sign) };
    let order = match signed(a).cmp(&signed(b)) {
        std::cmp::Ordering::Equal if signed(a) < 0 => rank(b).cmp(&rank(a)),
        std::cmp::Ordering::Equal => rank(a).cmp(&rank(b)),
        o => o,
    };
    match order {
        std::cmp::Ordering::Less => Order::Less,
        std::cmp::Ordering::Equal => Order::Equal,
        std::cmp::Ordering::Greater => Order::Greater,
    }
}

/// a - b·q for finite non-zero operands with a.exp - b.exp < 64, q rounded to zero or nearest:
/// the exact remainder and the low bits of q.
pub fn remainder(a: Num, b: Num, nearest: bool) -> (Num, u64) {
    let d = a.exp - b.exp;
    if d < -1 || d < 0 && !nearest {
        return (a, 0);
    }
    // One more bit of scale, so that d == -1 and the comparison with half of b stay integral.
    let m = u128::from(b.sig) << 1;
    let n = u128::from(a.sig) << (d + 1) as u32;
    let (mut q, mut r) = (n / m, n % m);
    let mut sign = a.sign;
    if nearest && (2 * r > m || 2 * r == m && q & 1 != 0) {
        q += 1;
        r = m - r;
        sign = !sign;
    }
    if r == 0 {
        return (Num::zero(a.sign), q as u64);
    }
    let lz = r.leading_zeros();
    // r is worth r / 2^64 × 2^b.exp; its value fits 64 bits since it is below b and exact.
    let sig = ((r << lz) >> 64) as u64;
    (Num::finite(sign, b.exp - 1 + 64 - lz as i32, sig), q as u64)
}
