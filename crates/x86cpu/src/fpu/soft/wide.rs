//! Reals of 128 significant bits, and the elementary functions of x87 on them.
//!
//! Everything truncates; each operation loses at most two units in the last place of 128 bits, and
//! no function chains more than about 150, so results are good to more than 110 bits: far inside
//! the one unit of 64 bits that the manual allows (SDM vol. 1, 8.3.10).

use super::{Env, Fmt, Kind, Num, round};

/// sig / 2^127 × 2^exp with bit 127 set, or zero when `sig` is zero.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    pub sign: bool,
    pub exp: i32,
    pub sig: u128,
}

const ONE: Wide = Wide { sign: false, exp: 0, sig: 1 << 127 };
const LN2: Wide = Wide { sign: false, exp: -1, sig: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af };
const LOG2E: Wide = Wide { sign: false, exp: 0, sig: 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88 };
pub const PI: Wide = Wide { sign: false, exp: 1, sig: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1 };
pub const PI_2: Wide = Wide { exp: 0, ..PI };
pub const PI_4: Wide = Wide { exp: -1, ..PI };
/// 3π/4.
pub const PI_34: Wide = Wide { sign: false, exp: 1, sig: 0x96cb_e3f9_990e_91a7_9394_c9e8_a0a5_159c };
/// x87's own π, 66 bits, in units of 2^-64 (SDM vol. 1, 8.3.8); half of it in units of 2^-65.
const PI_66: u128 = 0xc_90fd_aa22_168c_234c >> 2;

impl Wide {
    pub const ZERO: Wide = Wide { sign: false, exp: 0, sig: 0 };

    /// A finite or zero number.
    pub fn of(n: Num) -> Wide {
        match n.kind {
            Kind::Finite => Wide { sign: n.sign, exp: n.exp, sig: u128::from(n.sig) << 64 },
            _ => Wide::ZERO,
        }
    }

    /// Into a format; what this module made is never exact.
    pub fn round(self, env: &mut Env, fmt: &Fmt) -> Num {
        if self.sig == 0 { Num::zero(self.sign) } else { round(env, fmt, self.sign, self.exp, self.sig | 1) }
    }

    fn normal(sign: bool, exp: i32, v: u128) -> Wide {
        if v == 0 {
            return Wide::ZERO;
        }
        let lz = v.leading_zeros();
        Wide { sign, exp: exp - lz as i32, sig: v << lz }
    }

    fn int(v: i32) -> Wide {
        Wide::normal(v < 0, 127, v.unsigned_abs().into())
    }

    pub fn neg(self) -> Wide {
        Wide { sign: !self.sign, ..self }
    }

    pub fn signed(self, sign: bool) -> Wide {
        Wide { sign: self.sign != sign, ..self }
    }

    fn scaled(self, by: i32) -> Wide {
        Wide { exp: self.exp + by, ..self }
    }

    pub fn add(self, o: Wide) -> Wide {
        if self.sig == 0 || o.sig == 0 {
            return if self.sig == 0 { o } else { self };
        }
        let (big, small) = if (self.exp, self.sig) >= (o.exp, o.sig) { (self, o) } else { (o, self) };
        let shift = (big.exp - small.exp) as u32;
        // What is shifted out entirely still takes the last unit off a difference.
        let y = (small.sig >> 1).checked_shr(shift).unwrap_or(0).max(1);
        let x = big.sig >> 1;
        let v = if big.sign == small.sign { x + y } else { x - y };
        Wide::normal(big.sign, big.exp + 1, v)
    }

    pub fn sub(self, o: Wide) -> Wide {
        self.add(o.neg())
    }

    pub fn mul(self, o: Wide) -> Wide {
        if self.sig == 0 || o.sig == 0 {
            return Wide::ZERO;
        }
        let low = |v: u128| v & u128::from(u64::MAX);
        let (a1, a0) = (self.sig >> 64, low(self.sig));
        let (b1, b0) = (o.sig >> 64, low(o.sig));
        let (x, y) = (a1 * b0, a0 * b1);
        let mid = (x >> 64) + (y >> 64) + ((low(x) + low(y)) >> 64);
        Wide::normal(self.sign != o.sign, self.exp + o.exp + 1, a1 * b1 + mid)
    }

    /// By long division; `o` is not zero.
    pub fn div(self, o: Wide) -> Wide {
        if self.sig == 0 {
            return Wide::ZERO;
        }
        let (mut rest, mut q) = (self.sig, 0u128);
        let mut carry = false;
        for _ in 0..128 {
            q <<= 1;
            if carry || rest >= o.sig {
                rest = rest.wrapping_sub(o.sig);
                q |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        Wide::normal(self.sign != o.sign, self.exp - o.exp, q)
    }

    fn div_int(self, n: u32) -> Wide {
        Wide::normal(self.sign, self.exp, self.sig / u128::from(n))
    }

    /// Too small against `o` to count.
    fn negligible(self, o: Wide) -> bool {
        self.sig == 0 || self.exp < o.exp - 130
    }
}

/// x - x³/3·(…): Σ (±1)^k x^(2k+1) / (2k+1), the series of atan (`alternate`) and atanh.
fn arc_series(x: Wide, alternate: bool) -> Wide {
    let square = x.mul(x).signed(alternate);
    let (mut sum, mut power) = (x, x);
    for k in 1..80 {
        power = power.mul(square);
        let term = power.div_int(2 * k + 1);
        if term.negligible(sum) {
            // Keep the side of the last unit on which the rest lies.
            return if k == 1 { sum.add(term) } else { sum };
        }
        sum = sum.add(term);
    }
    sum
}

/// e^x - 1 for |x| < 1.
fn expm1(x: Wide) -> Wide {
    let (mut sum, mut term) = (x, x);
    for k in 2..60 {
        term = term.mul(x).div_int(k);
        if term.negligible(sum) && k > 2 {
            break;
        }
        sum = sum.add(term);
    }
    sum
}

/// 2^x - 1 for |x| ≤ 1.
pub fn exp2m1(x: Wide) -> Wide {
    expm1(x.mul(LN2))
}

/// log2(x) for x > 0.
pub fn log2(x: Wide) -> Wide {
    // m in [√½, √2): the sum of exponent and log2(m) never cancels.
    let up = x.sig > 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let m = Wide { sign: false, exp: if up { -1 } else { 0 }, sig: x.sig };
    let e = x.exp + i32::from(up);
    let s = m.sub(ONE).div(m.add(ONE));
    let ln = if s.sig == 0 { Wide::ZERO } else { arc_series(s, false).scaled(1) };
    Wide::int(e).add(ln.mul(LOG2E))
}

/// log2(1 + x) for x > -1.
pub fn log2p1(x: Wide) -> Wide {
    if x.exp >= -1 {
        return log2(ONE.add(x));
    }
    arc_series(x.div(x.add(ONE.scaled(1))), false).scaled(1).mul(LOG2E)
}

/// The angle of (x, y), both finite and not zero, with its sign.
pub fn atan2(y: Wide, x: Wide) -> Wide {
    let (ay, ax) = (y.signed(y.sign), x.signed(x.sign));
    let steep = (ay.exp, ay.sig) > (ax.exp, ax.sig);
    let t = if steep { ax.div(ay) } else { ay.div(ax) };
    // tan(π/8) ≈ 0.414 keeps the series short.
    let a = if t.exp < -2 || t.exp == -2 && t.sig < 0xd413_cccf_e779_9211_65f6_26cd_d52a_fa7c {
        arc_series(t, true)
    } else {
        let u = t.sub(ONE).div(t.add(ONE));
        if u.sig == 0 { PI_4 } else { PI_4.add(arc_series(u, true)) }
    };
    let a = if steep { PI_2.sub(a) } else { a };
    let a = if x.sign { PI.sub(a) } else { a };
    a.signed(y.sign)
}

/// |x| = q·π/2 + r with |r| ≤ π/4, by x87's π. For |x| < 2^63.
fn reduce(x: Wide) -> (u32, Wide) {
    let x = x.signed(x.sign);
    if x.exp < -1 {
        return (0, x);
    }
    let (mut r, mut q) = ((x.sig >> 64) % PI_66, ((x.sig >> 64) / PI_66) as u32);
    for _ in 0..x.exp + 2 {
        r <<= 1;
        q = q.wrapping_shl(1);
        if r >= PI_66 {
            r -= PI_66;
            q |= 1;
        }
    }
    // r is in units of 2^-65.
    if 2 * r > PI_66 {
        return (q.wrapping_add(1), Wide::normal(true, 62, PI_66 - r));
    }
    (q, Wide::normal(false, 62, r))
}

/// Σ of the sine (from x) or cosine (from 1) series for |r| ≤ π/4.
fn circular(first: Wide, r: Wide, mut n: u32) -> Wide {
    let square = r.mul(r).neg();
    let (mut sum, mut term) = (first, first);
    for k in 0..40 {
        term = term.mul(square).div_int(n * (n + 1));
        if term.sig == 0 || term.negligible(sum) && k > 0 {
            break;
        }
        sum = sum.add(term);
        n += 2;
    }
    sum
}

/// Sine and cosine for |x| < 2^63, x not zero.
pub fn sin_cos(x: Wide) -> (Wide, Wide) {
    let (q, r) = reduce(x);
    let (s, c) = (circular(r, r, 2), circular(ONE, r, 1));
    let (s, c) = match q & 3 {
        0 => (s, c),
        1 => (c, s.neg()),
        2 => (s.neg(), c.neg()),
        _ => (c.neg(), s),
    };
    (s.signed(x.sign), c)
}
