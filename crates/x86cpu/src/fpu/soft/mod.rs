//! Floating point in integers: every format is unpacked to one form ([`Num`]), the operation is
//! done exactly (or with a sticky bit that stands for the rest), and [`round`] brings the result to
//! the precision and range of its destination, with x86's flags: tininess is found after rounding
//! (SDM vol. 1, 4.9.1.5).
//!
//! Flags use MXCSR's and FSW's common order (IE DE ZE OE UE PE in bits 0-5).

mod convert;
mod ops;
pub(super) mod wide;

pub(super) use convert::{
    from_f32, from_f64, from_f80, from_int, round_to_integral, to_f32, to_f64, to_f80, to_int,
};
pub(super) use ops::{Order, add, compare, div, div_below, mul, remainder, sqrt};

pub(super) const IE: u8 = 1;
pub(super) const DE: u8 = 2;
pub(super) const ZE: u8 = 4;
pub(super) const OE: u8 = 8;
pub(super) const UE: u8 = 16;
pub(super) const PE: u8 = 32;

/// Rounding modes in the encoding that MXCSR.RC, FCW.RC and ROUNDPS share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Round {
    pub fn from_bits(v: u32) -> Round {
        match v & 3 {
            0 => Round::Nearest,
            1 => Round::Down,
            2 => Round::Up,
            _ => Round::Zero,
        }
    }
}

/// Precision and exponent range of a destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fmt {
    pub prec: u32,
    pub emin: i32,
    pub emax: i32,
    /// What an unmasked overflow or underflow takes from or adds to the exponent.
    pub bias_adjust: i32,
}

pub(super) const F32: Fmt = Fmt { prec: 24, emin: -126, emax: 127, bias_adjust: 192 };
pub(super) const F64: Fmt = Fmt { prec: 53, emin: -1022, emax: 1023, bias_adjust: 1536 };
pub(super) const EXT: Fmt = Fmt { prec: 64, emin: -16382, emax: 16383, bias_adjust: 24576 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    Finite,
    Inf,
    Quiet,
    Signal,
    /// An 80-bit pattern that the 387 and later refuse (SDM vol. 1, 8.2.2).
    Unsupported,
}

/// A number of any format. Finite: `sig` has bit 63 set and stands for sig / 2^63 × 2^exp. NaN:
/// `sig` is the significand left-justified, bit 63 set, bit 62 the quiet bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Num {
    pub kind: Kind,
    pub sign: bool,
    pub exp: i32,
    pub sig: u64,
    /// Came from a denormal encoding.
    pub denormal: bool,
}

const QUIET: u64 = 1 << 62;

impl Num {
    pub fn zero(sign: bool) -> Num {
        Num { kind: Kind::Zero, sign, exp: 0, sig: 0, denormal: false }
    }

    pub fn inf(sign: bool) -> Num {
        Num { kind: Kind::Inf, sign, exp: 0, sig: 1 << 63, denormal: false }
    }

    pub fn finite(sign: bool, exp: i32, sig: u64) -> Num {
        Num { kind: Kind::Finite, sign, exp, sig, denormal: false }
    }

    /// The default NaN.
    pub fn indefinite() -> Num {
        Num { kind: Kind::Quiet, sign: true, exp: 0, sig: 3 << 62, denormal: false }
    }

    pub fn one(sign: bool) -> Num {
        Num::finite(sign, 0, 1 << 63)
    }

    pub fn is_nan(&self) -> bool {
        matches!(self.kind, Kind::Quiet | Kind::Signal)
    }

    pub fn quieted(self) -> Num {
        Num { kind: Kind::Quiet, sig: self.sig | QUIET, ..self }
    }

    pub fn negated(self) -> Num {
        Num { sign: !self.sign, ..self }
    }
}

/// Which operand's NaN comes out (SDM vol. 1, table 4-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NanRule {
    /// The first operand if it is a NaN.
    Sse,
    /// The larger significand; quiet before signalling.
    X87,
}

/// Control in, flags out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Env {
    pub round: Round,
    pub nan: NanRule,
    /// Exceptions that are masked, in flag order.
    pub masked: u8,
    pub ftz: bool,
    pub daz: bool,
    pub flags: u8,
    /// The last rounding went away from zero (x87's C1).
    pub up: bool,
}

impl Env {
    pub fn sse(mxcsr: u32) -> Env {
        Env {
            round: Round::from_bits(mxcsr >> 13),
            nan: NanRule::Sse,
            masked: (mxcsr >> 7 & 0x3f) as u8,
            ftz: mxcsr >> 15 & 1 != 0,
            daz: mxcsr >> 6 & 1 != 0,
            flags: 0,
            up: false,
        }
    }

    pub fn x87(fcw: u16) -> Env {
        Env {
            round: Round::from_bits(u32::from(fcw >> 10)),
            nan: NanRule::X87,
            masked: (fcw & 0x3f) as u8,
            ftz: false,
            daz: false,
            flags: 0,
            up: false,
        }
    }

    pub fn invalid(&mut self) -> Num {
        self.flags |= IE;
        Num::indefinite()
    }

    /// The result of a one-operand operation on a NaN or unsupported pattern.
    pub fn nan1(&mut self, a: Num) -> Option<Num> {
        match a.kind {
            Kind::Unsupported => Some(self.invalid()),
            Kind::Signal => {
                self.flags |= IE;
                Some(a.quieted())
            }
            Kind::Quiet => Some(a),
            _ => None,
        }
    }

    /// The same for two operands.
    pub fn nan2(&mut self, a: Num, b: Num) -> Option<Num> {
        if a.kind == Kind::Unsupported || b.kind == Kind::Unsupported {
            return Some(self.invalid());
        }
        if !a.is_nan() && !b.is_nan() {
            return None;
        }
        if a.kind == Kind::Signal || b.kind == Kind::Signal {
            self.flags |= IE;
        }
        let first = match (a.is_nan(), b.is_nan()) {
            (true, false) => true,
            (false, _) => false,
            _ if self.nan == NanRule::Sse => true,
            _ if a.kind != b.kind => a.kind == Kind::Quiet,
            _ if a.sig != b.sig => a.sig > b.sig,
            _ => !a.sign,
        };
        Some(if first { a.quieted() } else { b.quieted() })
    }

    /// DE for denormal operands (after the exceptions that go before it).
    pub fn denormals(&mut self, any: bool) {
        if any {
            self.flags |= DE;
        }
    }
}

/// `sig` (bit 127 set) cut to `prec` bits: kept bits left-justified in 64, carry out of the top,
/// inexact, and whether the magnitude grew.
fn cut(mode: Round, sign: bool, sig: u128, prec: u32) -> (u64, bool, bool, bool) {
    let keep = (sig >> 64) as u64 & (!0u64 << (64 - prec));
    let rest = sig - (u128::from(keep) << 64);
    let unit = 1u64 << (64 - prec);
    let half = 1u128 << (127 - prec);
    let up = rest != 0
        && match mode {
            Round::Nearest => rest > half || rest == half && keep & unit != 0,
            Round::Down => sign,
            Round::Up => !sign,
            Round::Zero => false,
        };
    if !up {
        return (keep, false, rest != 0, false);
    }
    match keep.checked_add(unit) {
        Some(v) => (v, false, true, true),
        None => (1 << 63, true, true, true),
    }
}

/// `v >> n` with everything shifted out kept as a sticky lowest bit.
pub(super) fn shift_sticky(v: u128, n: u32) -> u128 {
    match n {
        0 => v,
        1..=127 => v >> n | u128::from(v << (128 - n) != 0),
        _ => u128::from(v != 0),
    }
}

/// Rounds sig / 2^127 × 2^exp (bit 127 set, lowest bit sticky) into `fmt`. A result below the
/// normal range keeps its small exponent: packing shifts it into place.
pub(super) fn round(env: &mut Env, fmt: &Fmt, sign: bool, exp: i32, sig: u128) -> Num {
    let (keep, carry, inexact, up) = cut(env.round, sign, sig, fmt.prec);
    let e = exp + i32::from(carry);
    if e < fmt.emin {
        return tiny(env, fmt, sign, exp, sig);
    }
    env.up = up;
    if e > fmt.emax {
        env.flags |= OE;
        if env.masked & OE == 0 {
            env.flags |= if inexact { PE } else { 0 };
            return Num::finite(sign, e - fmt.bias_adjust, keep);
        }
        env.flags |= PE;
        let to_inf = match env.round {
            Round::Nearest => true,
            Round::Down => sign,
            Round::Up => !sign,
            Round::Zero => false,
        };
        env.up = to_inf;
        if to_inf {
            return Num::inf(sign);
        }
        return Num::finite(sign, fmt.emax, !0u64 << (64 - fmt.prec));
    }
    env.flags |= if inexact { PE } else { 0 };
    Num::finite(sign, e, keep)
}

fn tiny(env: &mut Env, fmt: &Fmt, sign: bool, exp: i32, sig: u128) -> Num {
    if env.masked & UE == 0 {
        let (keep, carry, inexact, up) = cut(env.round, sign, sig, fmt.prec);
        env.flags |= UE | if inexact { PE } else { 0 };
        env.up = up;
        return Num::finite(sign, exp + i32::from(carry) + fmt.bias_adjust, keep);
    }
    if env.ftz {
        env.flags |= UE | PE;
        return Num::zero(sign);
    }
    let shift = (fmt.emin - exp) as u32;
    // Denormalised to emin, then rounded at the place the format ends; bit 127 is clear now.
    let sig = shift_sticky(sig, shift);
    let (keep, _, inexact, up) = cut(env.round, sign, sig, fmt.prec);
    env.up = up;
    if inexact {
        env.flags |= UE | PE;
    }
    if keep == 0 {
        return Num::zero(sign);
    }
    let lz = keep.leading_zeros();
    Num::finite(sign, fmt.emin - lz as i32, keep << lz)
}
