//! Arithmetic flags, kept lazily; the system flags, kept as they are.
//!
//! Every operation stores three words instead of six flags; no dispatch on the operation is needed
//! to read a flag back:
//! - `result`: the result, sign-extended to 64 bits. ZF is `result == 0`, SF its sign, PF its low byte.
//! - `carry`: the carries (borrows) out of each bit, shifted up so that the one out of the operand's
//!   top bit is bit 63. CF is bit 63, OF is bit 63 xor bit 62.
//! - `aux`: bit 4 is AF; bits 8..16 are xored into PF's byte and bit 63 into SF, so that any
//!   combination that POPF or SAHF loads can be said (ZF and SF both set, for example).

use arch::x86_64::regs::Rflags;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const OF: u64 = 1 << 11;
/// The six arithmetic flags.
pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

/// RFLAGS in two halves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) result: u64,
    pub(crate) carry: u64,
    pub(crate) aux: u64,
    /// Everything but the arithmetic flags; bit 1 is always set.
    pub(crate) system: u64,
}

impl Default for Flags {
    fn default() -> Self {
        let mut flags = Self { result: 0, carry: 0, aux: 0, system: 2 };
        flags.set_all(2);
        flags
    }
}

impl Flags {
    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        (self.carry as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        ((self.carry ^ (self.carry << 1)) as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        ((self.result ^ self.aux) as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        ((self.result ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }

    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.aux & AF != 0
    }

    /// SF != OF: the signed "less".
    #[inline(always)]
    pub(crate) fn less(&self) -> bool {
        ((self.result ^ self.aux ^ self.carry ^ (self.carry << 1)) as i64) < 0
    }

    /// The arithmetic flags at their RFLAGS places.
    #[inline]
    pub(crate) fn arith(&self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | (self.aux & AF)
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// All of RFLAGS.
    #[inline]
    pub(crate) fn all(&self) -> u64 {
        self.arith() | self.system
    }

    /// Loads the arithmetic flags from an RFLAGS image.
    #[inline]
    pub(crate) fn set_arith(&mut self, image: u64) {
        let (cf, of) = (image & 1, (image >> 11) & 1);
        self.carry = (cf << 63) | ((cf ^ of) << 62);
        // ZF decides the result; SF and PF are corrected through `aux`.
        self.result = u64::from(image & ZF == 0);
        let parity_now = self.result == 0;
        let parity_fix = u64::from(parity_now != (image & PF != 0));
        self.aux = (image & AF) | (parity_fix << 8) | ((image & SF) << 56);
    }

    /// Loads all of RFLAGS; the caller has decided which bits may change.
    #[inline]
    pub(crate) fn set_all(&mut self, image: u64) {
        self.set_arith(image);
        self.system = (image & SYSTEM) | 2;
    }

    /// Sets CF alone.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        let of = u64::from(self.of());
        let cf = u64::from(cf);
        self.carry = (cf << 63) | ((cf ^ of) << 62);
    }

    /// Sets CF and OF and leaves the others (rotates).
    #[inline(always)]
    pub(crate) fn set_cf_of(&mut self, cf: bool, of: bool) {
        let (cf, of) = (u64::from(cf), u64::from(of));
        self.carry = (cf << 63) | ((cf ^ of) << 62);
    }

    /// Flags of a result whose CF and OF were found otherwise; `result` is sign-extended.
    #[inline(always)]
    pub(crate) fn set_result(&mut self, result: u64, cf: bool, of: bool, af: bool) {
        self.result = result;
        self.set_cf_of(cf, of);
        self.aux = u64::from(af) << 4;
    }

    #[inline(always)]
    pub(crate) fn system_bit(&self, bit: Rflags) -> bool {
        self.system & bit.bits() != 0
    }

    #[inline(always)]
    pub(crate) fn set_system_bit(&mut self, bit: Rflags, on: bool) {
        if on {
            self.system |= bit.bits();
        } else {
            self.system &= !bit.bits();
        }
    }
}

/// RFLAGS bits that exist and are not arithmetic: TF IF DF IOPL NT RF VM AC VIF VIP ID.
pub(crate) const SYSTEM: u64 = 0x3f_7700;
