//! The registers, and the memory images they travel in (FXSAVE, FSAVE, FSTENV).

use thiserror::Error;

use super::insn::V;

/// Bytes of an FXSAVE image (SDM vol. 1, table 10-2).
pub const FXSAVE_LEN: usize = 512;
/// Bytes of it that the instruction really writes: the rest is the system's to use.
pub(super) const FXSAVE_USED: usize = 416;
/// MXCSR bits that may be set: the portable profile's MXCSR_MASK (no misaligned-SSE bit).
pub(super) const MXCSR_VALID: u32 = 0xffff;
/// MXCSR after reset (SDM vol. 1, 10.2.3): all exceptions masked, round to nearest.
pub(super) const MXCSR_RESET: u32 = 0x1f80;
/// FCW after FNINIT: all exceptions masked, 64-bit precision, round to nearest.
pub(super) const FCW_INIT: u16 = 0x037f;

/// x87 status word bits (SDM vol. 1, 8.1.3).
pub(super) mod fsw {
    pub const IE: u16 = 1;
    pub const SF: u16 = 1 << 6;
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const C3: u16 = 1 << 14;
    pub const B: u16 = 1 << 15;
    pub const TOP_SHIFT: u16 = 11;
    pub const TOP: u16 = 7 << TOP_SHIFT;
    pub const CONDITION: u16 = C0 | C1 | C2 | C3;
}

/// An MXCSR value with reserved bits set: loading it is #GP (SDM vol. 1, 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("cannot load MXCSR {0:#x}: only the bits of {MXCSR_VALID:#x} exist; clear the others")]
pub struct BadMxcsr(pub u32);

/// One x87 register: double extended precision (SDM vol. 1, 4.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct F80 {
    /// Significand with its explicit integer bit 63.
    pub sig: u64,
    /// Sign (bit 15) and biased exponent (bits 14:0).
    pub se: u16,
}

impl F80 {
    pub const ZERO: F80 = F80 { sig: 0, se: 0 };
    /// The default NaN, "real indefinite" (SDM vol. 1, table 4-3).
    pub const INDEFINITE: F80 = F80 { sig: 0xc000_0000_0000_0000, se: 0xffff };

    /// From the low 80 bits of `v`.
    pub fn from_bits(v: u128) -> F80 {
        F80 { sig: v as u64, se: (v >> 64) as u16 }
    }

    /// The 80 bits.
    pub fn bits(self) -> u128 {
        u128::from(self.sig) | u128::from(self.se) << 64
    }
}

/// The floating point and vector state of one CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fpu {
    /// XMM0-15, little-endian: byte 0 of the register is bits 7:0.
    pub xmm: [V; 16],
    pub mxcsr: u32,
    /// Exceptions that the running SSE instruction met (MXCSR flag bits); zero in between.
    pub(super) raised: u32,
    /// R0-R7 by physical number; ST(i) is `regs[(top + i) & 7]`, MMi is `regs[i].sig`.
    pub regs: [F80; 8],
    pub fcw: u16,
    /// Status word with TOP in bits 13:11.
    pub fsw: u16,
    /// Bit i set: physical register i is not empty.
    pub tags: u8,
    /// Instruction and data pointer, recorded when an x87 exception goes unmasked (as AMD does;
    /// masked code pays nothing). The opcode is kept for images but never recorded.
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
}

impl Default for Fpu {
    fn default() -> Self {
        Fpu {
            xmm: [[0; 16]; 16],
            mxcsr: MXCSR_RESET,
            raised: 0,
            regs: [F80::ZERO; 8],
            fcw: FCW_INIT,
            fsw: 0,
            tags: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
        }
    }
}

/// Little-endian read of up to 16 bytes at `at`; bytes beyond the image count as zero.
fn get(image: &[u8], at: usize, len: usize) -> u128 {
    let mut b = [0u8; 16];
    if let Some(src) = image.get(at..at + len) {
        b[..len].copy_from_slice(src);
    }
    u128::from_le_bytes(b)
}

fn put(image: &mut [u8], at: usize, len: usize, v: u128) {
    image[at..at + len].copy_from_slice(&v.to_le_bytes()[..len]);
}

impl Fpu {
    /// FNINIT (SDM vol. 2): the registers keep their contents but become empty.
    pub fn init_x87(&mut self) {
        self.fcw = FCW_INIT;
        self.fsw = 0;
        self.tags = 0;
        (self.fop, self.fip, self.fdp) = (0, 0, 0);
    }

    pub(super) fn top(&self) -> usize {
        usize::from(self.fsw >> fsw::TOP_SHIFT & 7)
    }

    pub(super) fn set_top(&mut self, top: usize) {
        self.fsw = self.fsw & !fsw::TOP | ((top & 7) as u16) << fsw::TOP_SHIFT;
    }

    /// ES and B follow from the flags that FCW leaves unmasked (SDM vol. 1, 8.1.3.3).
    pub(super) fn refresh_summary(&mut self) {
        self.fsw &= !(fsw::ES | fsw::B);
        if self.fsw & !self.fcw & 0x3f != 0 {
            self.fsw |= fsw::ES | fsw::B;
        }
    }

    /// FCW as written by software: bit 6 reads as one, bits 7 and 13-15 as zero.
    pub(super) fn set_fcw(&mut self, v: u16) {
        self.fcw = v & 0x1f3f | 0x40;
    }

    /// LDMXCSR and its kin.
    pub fn set_mxcsr(&mut self, v: u32) -> Result<(), BadMxcsr> {
        if v & !MXCSR_VALID != 0 {
            return Err(BadMxcsr(v));
        }
        self.mxcsr = v;
        Ok(())
    }

    /// MMX aliasing (SDM vol. 1, 9.5): any MMX instruction makes all registers valid, TOP 0.
    pub(super) fn enter_mmx(&mut self) {
        self.fsw &= !fsw::TOP;
        self.tags = 0xff;
    }

    pub(super) fn write_mm(&mut self, i: usize, v: u64) {
        self.regs[i & 7] = F80 { sig: v, se: 0xffff };
    }

    /// The image of FXSAVE64 (`wide`) or FXSAVE, with `xmms` vector registers (16 in 64-bit mode,
    /// else 8). Bytes that the instruction does not write are zero.
    pub fn fxsave(&self, wide: bool, xmms: usize) -> [u8; FXSAVE_LEN] {
        let mut im = [0u8; FXSAVE_LEN];
        put(&mut im, 0, 2, self.fcw.into());
        put(&mut im, 2, 2, self.fsw.into());
        im[4] = self.tags;
        put(&mut im, 6, 2, self.fop.into());
        let ptr = if wide { 8 } else { 4 };
        put(&mut im, 8, ptr, self.fip.into());
        put(&mut im, 16, ptr, self.fdp.into());
        put(&mut im, 24, 4, self.mxcsr.into());
        put(&mut im, 28, 4, MXCSR_VALID.into());
        for i in 0..8 {
            put(&mut im, 32 + 16 * i, 10, self.regs[(self.top() + i) & 7].bits());
        }
        for (i, v) in self.xmm.iter().take(xmms).enumerate() {
            im[160 + 16 * i..176 + 16 * i].copy_from_slice(v);
        }
        im
    }

    /// FXRSTOR64 (`wide`) or FXRSTOR of an image of at least 416 bytes. Nothing changes on error.
    pub fn fxrstor(&mut self, image: &[u8], wide: bool, xmms: usize) -> Result<(), BadMxcsr> {
        self.set_mxcsr(get(image, 24, 4) as u32)?;
        self.set_fcw(get(image, 0, 2) as u16);
        self.fsw = get(image, 2, 2) as u16;
        self.refresh_summary();
        self.tags = get(image, 4, 1) as u8;
        self.fop = get(image, 6, 2) as u16 & 0x7ff;
        let ptr = if wide { 8 } else { 4 };
        self.fip = get(image, 8, ptr) as u64;
        self.fdp = get(image, 16, ptr) as u64;
        for i in 0..8 {
            self.regs[(self.top() + i) & 7] = F80::from_bits(get(image, 32 + 16 * i, 10));
        }
        for (i, v) in self.xmm.iter_mut().take(xmms).enumerate() {
            *v = get(image, 160 + 16 * i, 16).to_le_bytes();
        }
        Ok(())
    }

    /// The full tag word: 00 valid, 01 zero, 10 special, 11 empty, two bits a physical register
    /// (SDM vol. 1, 8.1.7).
    pub(super) fn full_tags(&self) -> u16 {
        (0..8).fold(0, |w, i| {
            let r = self.regs[i];
            let tag = match r.se & 0x7fff {
                _ if self.tags >> i & 1 == 0 => 3,
                0 if r.sig == 0 => 1,
                0 | 0x7fff => 2,
                _ if r.sig >> 63 == 0 => 2,
                _ => 0,
            };
            w | tag << (2 * i)
        })
    }

    /// FNSTENV's image in its first 14 or 28 bytes, protected-mode format (SDM vol. 1, 8.1.10).
    pub(super) fn env_image(&self, len: usize) -> [u8; 28] {
        let mut im = [0u8; 28];
        let words = [self.fcw, self.fsw, self.full_tags()];
        if len == 14 {
            for (i, w) in words.into_iter().chain([self.fip as u16, 0, self.fdp as u16, 0]).enumerate() {
                put(&mut im, 2 * i, 2, w.into());
            }
            return im;
        }
        for (i, w) in words.into_iter().enumerate() {
            put(&mut im, 4 * i, 4, u128::from(w) | 0xffff_0000);
        }
        put(&mut im, 12, 4, u128::from(self.fip as u32));
        put(&mut im, 16, 4, u128::from(self.fop) << 16);
        put(&mut im, 20, 4, u128::from(self.fdp as u32));
        put(&mut im, 24, 4, 0xffff_0000);
        im
    }

    /// FNSAVE's image in its first `env` + 80 bytes; `env` is 14 or 28.
    pub(super) fn save_image(&self, env: usize) -> [u8; 108] {
        let mut image = [0u8; 108];
        image[..env].copy_from_slice(&self.env_image(env)[..env]);
        for i in 0..8 {
            put(&mut image, env + 10 * i, 10, self.regs[(self.top() + i) & 7].bits());
        }
        image
    }

    /// FRSTOR of such an image.
    pub(super) fn load_image(&mut self, image: &[u8; 108], env: usize) {
        self.load_env(image, env);
        for i in 0..8 {
            let r = (self.top() + i) & 7;
            self.regs[r] = F80::from_bits(get(image, env + 10 * i, 10));
        }
    }

    /// The x87 state as the host's FRSTOR takes it; all exceptions are masked.
    pub(crate) fn to_host(&self) -> [u8; 108] {
        self.save_image(28)
    }

    /// The x87 state as the host's FNSAVE has left it; all exceptions are masked, so that none of the
    /// instructions has recorded where it was.
    pub(crate) fn take_host(&mut self, image: &[u8; 108]) {
        let (fop, fip, fdp) = (self.fop, self.fip, self.fdp);
        self.load_image(image, 28);
        (self.fop, self.fip, self.fdp) = (fop, fip, fdp);
    }

    /// Whether translated code may have the x87 state in the host's registers: nothing in it raises.
    pub(crate) fn is_masked(&self) -> bool {
        self.fcw & 0x3f == 0x3f && self.fsw & fsw::ES == 0
    }

    /// FLDENV of 14 or 28 bytes.
    pub(super) fn load_env(&mut self, image: &[u8], len: usize) {
        let step = len / 7;
        self.set_fcw(get(image, 0, 2) as u16);
        self.fsw = get(image, step, 2) as u16;
        self.refresh_summary();
        let full = get(image, 2 * step, 2) as u16;
        self.tags = (0..8).fold(0, |t, i| t | u8::from(full >> (2 * i) & 3 != 3) << i);
        let ptr = if step == 4 { 4 } else { 2 };
        self.fip = get(image, 3 * step, ptr) as u64;
        self.fop = if step == 4 { get(image, 18, 2) as u16 & 0x7ff } else { 0 };
        self.fdp = get(image, 5 * step, ptr) as u64;
    }
}
