//! The floating point and vector unit through its own seam, on any host: what SOFTCPU.md calls
//! pitfalls, the profile's own definitions, and a few known results. (`tests/oracle` has the breadth.)

use iced_x86::{Decoder, DecoderOptions};
use x86cpu::fpu::{self, F80, FpBus, FpContext, FpFault, Fpu};

/// 64 bytes of memory at address 0x1000.
struct Memory([u8; 64]);

impl Memory {
    fn slot(&mut self, ea: u64, len: usize) -> Result<&mut [u8], u64> {
        let from = ea.wrapping_sub(0x1000) as usize;
        self.0.get_mut(from..from.saturating_add(len)).ok_or(ea)
    }
}

impl FpBus for Memory {
    type Fault = u64;

    fn load(&mut self, ea: u64, buf: &mut [u8]) -> Result<(), u64> {
        buf.copy_from_slice(self.slot(ea, buf.len())?);
        Ok(())
    }

    fn store(&mut self, ea: u64, bytes: &[u8]) -> Result<(), u64> {
        self.slot(ea, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn check_write(&mut self, ea: u64, len: usize) -> Result<(), u64> {
        self.slot(ea, len).map(|_| ())
    }
}

struct Unit {
    fpu: Fpu,
    gpr: [u64; 16],
    rflags: u64,
    memory: Memory,
}

impl Unit {
    fn new() -> Unit {
        Unit { fpu: Fpu::default(), gpr: [0; 16], rflags: 2, memory: Memory([0; 64]) }
    }

    /// Runs one instruction whose memory operand is at `ea`.
    fn at(&mut self, code: &[u8], ea: u64) -> Result<(), FpFault<u64>> {
        let insn = Decoder::new(64, code, DecoderOptions::NONE).decode();
        assert_eq!(insn.len(), code.len(), "one whole instruction");
        let op = fpu::decode(&insn).expect("an instruction of this unit");
        let ctx =
            FpContext { fpu: &mut self.fpu, gpr: &mut self.gpr, rflags: &mut self.rflags, rip: 0x40_0000 };
        fpu::execute(&op, ctx, &mut self.memory, ea)
    }

    fn run(&mut self, code: &[u8]) -> Result<(), FpFault<u64>> {
        self.at(code, 0x1000)
    }

    fn all(&mut self, codes: &[&[u8]]) {
        for code in codes {
            self.run(code).expect("no fault");
        }
    }

    fn st0(&self) -> F80 {
        self.fpu.regs[usize::from(self.fpu.fsw >> 11 & 7)]
    }

    fn push_f64(&mut self, v: f64) {
        self.memory.0[..8].copy_from_slice(&v.to_bits().to_le_bytes());
        self.run(&FLD_M64).expect("a load");
    }

    fn push_f80(&mut self, se: u16, sig: u64) {
        self.memory.0[..8].copy_from_slice(&sig.to_le_bytes());
        self.memory.0[8..10].copy_from_slice(&se.to_le_bytes());
        self.run(&FLD_M80).expect("a load");
    }

    fn set_xmm(&mut self, i: usize, lanes: [u32; 4]) {
        for (d, s) in self.fpu.xmm[i].chunks_exact_mut(4).zip(lanes) {
            d.copy_from_slice(&s.to_le_bytes());
        }
    }

    fn xmm(&self, i: usize) -> [u32; 4] {
        let v = u128::from_le_bytes(self.fpu.xmm[i]);
        std::array::from_fn(|k| (v >> (32 * k)) as u32)
    }
}

const FLD_M64: [u8; 2] = [0xdd, 0x00];
const FLD_M80: [u8; 2] = [0xdb, 0x28];
const ADDPS: [u8; 3] = [0x0f, 0x58, 0xc1];
const ES: u16 = 0x80;
const C1: u16 = 0x200;

#[test]
fn sse_takes_the_first_nan_and_quiets_it() {
    let mut u = Unit::new();
    u.set_xmm(0, [0x7f80_0001, 0x7fc0_0002, 0x3f80_0000, 0x7f80_0000]);
    u.set_xmm(1, [0x7fc0_0003, 0x7f80_0004, 0xffc0_0005, 0xff80_0000]);
    u.run(&ADDPS).expect("masked");
    assert_eq!(u.xmm(0), [0x7fc0_0001, 0x7fc0_0002, 0xffc0_0005, 0xffc0_0000]);
    assert_eq!(u.fpu.mxcsr & 0x3f, 1, "invalid only");
}

#[test]
fn x87_takes_the_larger_nan_and_a_quiet_one_before_a_signalling_one() {
    let mut u = Unit::new();
    u.push_f80(0x7fff, 0xc000_0000_0000_0001);
    u.push_f80(0x7fff, 0xbfff_ffff_ffff_ffff);
    u.run(&[0xd8, 0xc1]).expect("masked");
    assert_eq!(u.st0(), F80 { sig: 0xc000_0000_0000_0001, se: 0x7fff });
}

#[test]
fn daz_and_ftz() {
    let mut u = Unit::new();
    u.set_xmm(0, [1, 0x0080_0000, 0, 0]);
    u.set_xmm(1, [1, 0x8080_0001, 0, 0]);
    u.run(&ADDPS).expect("masked");
    assert_eq!(u.xmm(0)[..2], [2, 0x8000_0001]);
    assert_eq!(u.fpu.mxcsr & 0x3f, 2, "a denormal operand; exact results do not underflow");
    let mut u = Unit::new();
    u.fpu.mxcsr |= 0x8040;
    u.set_xmm(0, [1, 0x0080_0000, 0, 0]);
    u.set_xmm(1, [1, 0x8080_0001, 0, 0]);
    u.run(&ADDPS).expect("masked");
    assert_eq!(u.xmm(0)[..2], [0, 0x8000_0000]);
    assert_eq!(u.fpu.mxcsr & 0x3f, 0x30, "flushed: underflow and inexact");
}

#[test]
fn tininess_is_found_after_rounding() {
    let mut u = Unit::new();
    // The largest float below one times the smallest normal: rounds up to normal in 24 bits unbounded.
    u.set_xmm(0, [0x3f7f_ffff, 0, 0, 0]);
    u.set_xmm(1, [0x0080_0000, 0, 0, 0]);
    u.run(&[0xf3, 0x0f, 0x59, 0xc1]).expect("masked");
    assert_eq!((u.xmm(0)[0], u.fpu.mxcsr & 0x3f), (0x0080_0000, 0x30));
    let mut u = Unit::new();
    u.set_xmm(0, [0x3f80_0001, 0, 0, 0]);
    u.set_xmm(1, [0x007f_ffff, 0, 0, 0]);
    u.run(&[0xf3, 0x0f, 0x59, 0xc1]).expect("masked");
    assert_eq!((u.xmm(0)[0], u.fpu.mxcsr & 0x3f), (0x0080_0000, 0x22), "a denormal operand, not tiny");
}

#[test]
fn an_unmasked_simd_exception_leaves_the_destination() {
    let mut u = Unit::new();
    u.fpu.mxcsr = 0x1f80 & !(1 << 9);
    u.set_xmm(0, [0x3f80_0000; 4]);
    u.set_xmm(1, [0x3f80_0000, 0, 0x4000_0000, 3]);
    assert_eq!(u.run(&[0x0f, 0x5e, 0xc1]), Err(FpFault::Simd));
    assert_eq!(u.xmm(0), [0x3f80_0000; 4]);
    assert_eq!(u.fpu.mxcsr & 0x3f, 6, "zero divide and denormal; nothing of rounding");
}

#[test]
fn sixteen_byte_operands_are_aligned_but_for_the_u_moves() {
    let mut u = Unit::new();
    assert_eq!(u.at(&[0x0f, 0x28, 0x00], 0x1008), Err(FpFault::Gp));
    assert_eq!(u.at(&[0x66, 0x0f, 0xfc, 0x00], 0x1001), Err(FpFault::Gp));
    assert_eq!(u.at(&[0x0f, 0x10, 0x00], 0x1001), Ok(()));
    assert_eq!(u.at(&[0x66, 0x0f, 0x3a, 0x63, 0x00, 0x0c], 0x1001), Ok(()));
}

#[test]
fn x87_keeps_64_bits_unless_precision_control_says_less() {
    let mut u = Unit::new();
    u.push_f64(3.0);
    u.push_f64(1.0);
    u.run(&[0xd8, 0xf1]).expect("masked");
    assert_eq!(u.st0(), F80 { sig: 0xaaaa_aaaa_aaaa_aaab, se: 0x3ffd });
    assert_eq!(u.fpu.fsw & (C1 | 0x20), C1 | 0x20, "inexact, rounded up");
    let mut u = Unit::new();
    u.fpu.fcw = 0x027f;
    u.push_f64(3.0);
    u.push_f64(1.0);
    u.run(&[0xd8, 0xf1]).expect("masked");
    assert_eq!(u.st0(), F80 { sig: 0xaaaa_aaaa_aaaa_a800, se: 0x3ffd });
}

#[test]
fn an_unmasked_x87_exception_waits_for_the_next_instruction() {
    let mut u = Unit::new();
    u.fpu.fcw &= !4;
    u.push_f64(0.0);
    u.push_f64(1.0);
    u.run(&[0xd8, 0xf1]).expect("1/0 itself completes");
    assert_eq!(u.st0(), F80 { sig: 1 << 63, se: 0x3fff }, "the operand stays");
    assert_ne!(u.fpu.fsw & ES, 0);
    assert_eq!(u.run(&[0xd9, 0xe8]), Err(FpFault::X87));
    assert_eq!(u.run(&[0x0f, 0xef, 0xc0]), Err(FpFault::X87), "MMX looks as well");
    assert_eq!(u.fpu.fip, 0x40_0000);
    u.run(&[0xdb, 0xe2]).expect("FNCLEX does not wait");
    u.run(&[0xd9, 0xe8]).expect("cleared");
}

#[test]
fn stack_faults_tell_their_direction_in_c1() {
    let mut u = Unit::new();
    u.run(&[0xd9, 0xe1]).expect("masked");
    assert_eq!(u.fpu.fsw & (0x41 | C1), 0x41, "underflow");
    assert_eq!(u.st0(), F80::INDEFINITE);
    let mut u = Unit::new();
    for _ in 0..9 {
        u.run(&[0xd9, 0xe8]).expect("masked");
    }
    assert_eq!(u.fpu.fsw & (0x41 | C1), 0x41 | C1, "overflow");
    assert_eq!(u.st0(), F80::INDEFINITE);
}

#[test]
fn odd_80_bit_patterns() {
    let mut u = Unit::new();
    // A pseudo-denormal is the number it looks like, and a denormal operand.
    u.push_f80(0, 1 << 63);
    u.push_f80(0, 0);
    u.run(&[0xd8, 0xc1]).expect("masked");
    assert_eq!(u.st0(), F80 { sig: 1 << 63, se: 1 });
    assert_eq!(u.fpu.fsw & 0x3f, 2);
    // An unnormal is invalid.
    let mut u = Unit::new();
    u.push_f80(0x3fff, 1 << 62);
    u.run(&[0xd9, 0xfa]).expect("masked");
    assert_eq!((u.st0(), u.fpu.fsw & 0x3f), (F80::INDEFINITE, 1));
}

#[test]
fn mmx_lies_in_the_x87_registers() {
    let mut u = Unit::new();
    u.push_f64(1.0);
    u.gpr[0] = 0x1122_3344_5566_7788;
    u.run(&[0x48, 0x0f, 0x6e, 0xd8]).expect("movq mm3, rax");
    assert_eq!(u.fpu.regs[3], F80 { sig: 0x1122_3344_5566_7788, se: 0xffff });
    assert_eq!((u.fpu.tags, u.fpu.fsw >> 11 & 7), (0xff, 0), "all valid, TOP 0");
    u.run(&[0x0f, 0x77]).expect("emms");
    assert_eq!(u.fpu.tags, 0);
}

#[test]
fn a_faulting_store_changes_nothing() {
    let mut u = Unit::new();
    u.push_f64(1.5);
    let before = u.fpu.clone();
    assert_eq!(u.at(&[0xdd, 0x18], 0x2000), Err(FpFault::Mem(0x2000)));
    assert_eq!(u.fpu, before);
}

#[test]
fn masked_bytes_touch_no_memory() {
    let mut u = Unit::new();
    u.at(&[0x66, 0x0f, 0xf7, 0xc1], 0x9000).expect("an empty mask");
    u.fpu.xmm[1][15] = 0x80;
    assert_eq!(u.at(&[0x66, 0x0f, 0xf7, 0xc1], 0x9000), Err(FpFault::Mem(0x900f)));
}

#[test]
fn images_round_trip_and_refuse_reserved_bits() {
    let mut u = Unit::new();
    u.push_f64(2.5);
    u.set_xmm(7, [1, 2, 3, 4]);
    let image = u.fpu.fxsave(true, 16);
    assert_eq!(image[28..32], [0xff, 0xff, 0, 0], "MXCSR_MASK of the profile");
    assert_eq!(image[4], 0x80, "physical register 7");
    let mut back = Fpu::default();
    back.fxrstor(&image, true, 16).expect("our own image");
    assert_eq!(back, u.fpu);
    let mut bad = image;
    bad[26] = 1;
    assert!(back.fxrstor(&bad, true, 16).is_err());
    assert_eq!(back, u.fpu, "nothing was loaded");
}

#[test]
fn decimals_and_remainders() {
    let mut u = Unit::new();
    u.push_f64(-1234567.6);
    u.run(&[0xdf, 0x30]).expect("fbstp");
    assert_eq!(u.memory.0[..10], [0x68, 0x45, 0x23, 0x01, 0, 0, 0, 0, 0, 0x80]);
    // 23 = 7·3 + 2: quotient bits 0 and 1 in C1 and C3, bit 2 in C0.
    u.push_f64(3.0);
    u.push_f64(23.0);
    u.run(&[0xd9, 0xf8]).expect("fprem");
    assert_eq!(u.st0(), F80 { sig: 1 << 63, se: 0x4000 });
    assert_eq!(u.fpu.fsw & 0x4700, 0x4300);
    // Exponents 100 apart: not complete.
    u.push_f64(3.0 * 2f64.powi(100));
    u.run(&[0xd9, 0xf8]).expect("fprem");
    assert_eq!(u.fpu.fsw & 0x400, 0x400);
}

#[test]
fn transcendentals() {
    let near = |u: &Unit, v: f64| {
        let s = u.st0();
        let got = s.sig as f64 * 2f64.powi(i32::from(s.se & 0x7fff) - 16383 - 63);
        assert!((got - v.abs()).abs() <= v.abs() * 1e-15, "{got} for {v}");
        assert_eq!(s.se >> 15 != 0, v < 0.0);
    };
    let mut u = Unit::new();
    u.push_f64(0.75);
    u.run(&[0xd9, 0xfe]).expect("fsin");
    near(&u, 0.75f64.sin());
    u.push_f64(100.0);
    u.run(&[0xd9, 0xfb]).expect("fsincos");
    near(&u, 100f64.cos());
    u.all(&[&[0xdd, 0xd8]]);
    near(&u, 100f64.sin());
    u.push_f64(-3.0);
    u.push_f64(10.0);
    u.run(&[0xd9, 0xf1]).expect("fyl2x");
    near(&u, -3.0 * 10f64.log2());
    u.push_f64(-0.3);
    u.run(&[0xd9, 0xf0]).expect("f2xm1");
    near(&u, 2f64.powf(-0.3) - 1.0);
    u.push_f64(-2.0);
    u.push_f64(-5.0);
    u.run(&[0xd9, 0xf3]).expect("fpatan");
    near(&u, (-2f64).atan2(-5.0));
    // Out of range: C2 and the operand as it was.
    u.push_f64(2f64.powi(63));
    u.run(&[0xd9, 0xf2]).expect("fptan");
    assert_eq!((u.fpu.fsw & 0x400, u.st0().se), (0x400, 0x3fff + 63));
}

#[test]
fn the_profiles_reciprocals_are_fixed() {
    let mut u = Unit::new();
    u.set_xmm(1, [0x4040_0000, 0x3f80_0000, 0x0000_0001, 0x7f80_0000]);
    u.run(&[0x0f, 0x53, 0xc1]).expect("rcpps");
    assert_eq!(u.xmm(0), [0x3eaa_a800, 0x3f80_0000, 0x7f80_0000, 0]);
    u.set_xmm(1, [0x4000_0000, 0x4080_0000, 0xbf80_0000, 0x8000_0000]);
    u.run(&[0x0f, 0x52, 0xc1]).expect("rsqrtps");
    assert_eq!(u.xmm(0), [0x3f35_0800, 0x3f00_0000, 0xffc0_0000, 0xff80_0000]);
    assert_eq!(u.fpu.mxcsr, 0x1f80, "no flags");
}

#[test]
fn string_compare_finds_the_end() {
    let mut u = Unit::new();
    u.fpu.xmm[0][..5].copy_from_slice(b"needl");
    u.fpu.xmm[1] = *b"hay needle stack";
    // Equal ordered, least significant index.
    u.run(&[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x0c]).expect("pcmpistri");
    assert_eq!(u.gpr[1], 4);
    assert_eq!(u.rflags & 0x8d5, 0x81, "found; the needle ends inside");
}
