//! Runs one decoded instruction: source in, kernel, result out, in an order that leaves nothing
//! half done when an access faults.

use std::convert::Infallible;

use super::insn::{Class, FlagsUse, Form, FpBus, FpContext, FpFault, FpInsn, Kernel, Loc, V};
use super::state::{FXSAVE_LEN, FXSAVE_USED, Fpu, fsw};

/// Set in `Fpu::raised` by an x87 kernel whose unmasked exception suppresses the result.
pub(super) const NO_RESULT: u32 = 1 << 31;

/// The arithmetic flags of RFLAGS: CF PF AF ZF SF OF.
const ARITHMETIC: u64 = 0x8d5;

/// Executes `insn`, whose memory operand (if any) is at linear address `ea`.
///
/// # Errors
/// See [`FpFault`]; but for exception flags in MXCSR nothing has changed then.
pub fn execute<B: FpBus>(
    insn: &FpInsn,
    mut ctx: FpContext<'_>,
    bus: &mut B,
    ea: u64,
) -> Result<(), FpFault<B::Fault>> {
    let c = &mut ctx;
    match insn.form {
        Form::Plain if !insn.mmx => plain(insn, c, bus, ea),
        Form::Plain => {
            pending(c.fpu)?;
            plain(insn, c, bus, ea)?;
            c.fpu.enter_mmx();
            Ok(())
        }
        Form::X87 => {
            pending(c.fpu)?;
            x87(insn, c, bus, ea)
        }
        Form::X87NoWait => x87(insn, c, bus, ea),
        _ => system(insn, c, bus, ea),
    }
}

/// The short way for [`super::Shape::Registers`], `Load` (`memory` is what was loaded, zero-extended)
/// and `Store` (the result is what to store; nothing else has changed).
///
/// # Errors
/// [`FpFault::Simd`]; but for exception flags in MXCSR nothing has changed then.
#[inline]
pub fn execute_value(
    insn: &FpInsn,
    mut ctx: FpContext<'_>,
    memory: u128,
) -> Result<u128, FpFault<Infallible>> {
    let c = &mut ctx;
    let value = |loc: Loc, c: &FpContext<'_>| match loc {
        Loc::Xmm(i) => u128::from_le_bytes(c.fpu.xmm[usize::from(i & 15)]),
        Loc::Mem(_) => memory,
        Loc::Mmx(i) => c.fpu.regs[usize::from(i & 7)].sig.into(),
        Loc::G32(i) => u128::from(c.gpr[usize::from(i & 15)] as u32),
        Loc::G64(i) => c.gpr[usize::from(i & 15)].into(),
        Loc::Imm => insn.imm.into(),
        Loc::None | Loc::Flags => 0,
    };
    let (a, b) = (value(insn.a, c), value(insn.b, c));
    let v = insn.kernel.run(c, a, b, insn.imm);
    if c.fpu.raised != 0 {
        take_raised(c.fpu, insn.mmx)?;
    }
    match insn.d {
        Loc::Xmm(i) => c.fpu.xmm[usize::from(i & 15)] = v.to_le_bytes(),
        Loc::G32(i) => c.gpr[usize::from(i & 15)] = u64::from(v as u32),
        Loc::G64(i) => c.gpr[usize::from(i & 15)] = v as u64,
        Loc::Flags => *c.rflags = v as u64 & ARITHMETIC,
        _ => {}
    }
    Ok(v)
}

/// The shortest way, for what [`FpInsn::as_binary`] knows: `xmm[to] = kernel(xmm[to], b)`.
///
/// # Errors
/// As [`execute_value`].
#[inline(always)]
pub fn execute_binary(
    insn: &FpInsn,
    mut ctx: FpContext<'_>,
    to: u8,
    b: &V,
) -> Result<(), FpFault<Infallible>> {
    let to = usize::from(to & 15);
    match insn.kernel {
        Kernel::Lanes(f) => ctx.fpu.xmm[to] = f(&ctx.fpu.xmm[to], b, insn.imm),
        Kernel::Value(f) => {
            let a = u128::from_le_bytes(ctx.fpu.xmm[to]);
            let v = f(&mut ctx, a, u128::from_le_bytes(*b), insn.imm);
            if ctx.fpu.raised != 0 {
                take_raised(ctx.fpu, insn.mmx)?;
            }
            ctx.fpu.xmm[to] = v.to_le_bytes();
        }
    }
    Ok(())
}

fn pending<F>(fpu: &Fpu) -> Result<(), FpFault<F>> {
    if fpu.fsw & fsw::ES != 0 { Err(FpFault::X87) } else { Ok(()) }
}

fn load<B: FpBus>(bus: &mut B, ea: u64, len: usize) -> Result<u128, FpFault<B::Fault>> {
    let mut buf = [0u8; 16];
    bus.load(ea, &mut buf[..len]).map_err(FpFault::Mem)?;
    Ok(u128::from_le_bytes(buf))
}

#[inline(always)]
fn fetch<B: FpBus>(
    loc: Loc,
    insn: &FpInsn,
    c: &FpContext<'_>,
    bus: &mut B,
    ea: u64,
) -> Result<u128, FpFault<B::Fault>> {
    Ok(match loc {
        Loc::Xmm(i) => u128::from_le_bytes(c.fpu.xmm[usize::from(i & 15)]),
        Loc::Mem(len) => {
            if insn.aligned && ea & 15 != 0 {
                return Err(FpFault::Gp);
            }
            load(bus, ea, usize::from(len & 31).min(16))?
        }
        Loc::Mmx(i) => c.fpu.regs[usize::from(i & 7)].sig.into(),
        Loc::G32(i) => u128::from(c.gpr[usize::from(i & 15)] as u32),
        Loc::G64(i) => c.gpr[usize::from(i & 15)].into(),
        Loc::Imm => insn.imm.into(),
        Loc::None | Loc::Flags => 0,
    })
}

#[inline(always)]
fn deliver<B: FpBus>(
    insn: &FpInsn,
    c: &mut FpContext<'_>,
    bus: &mut B,
    ea: u64,
    v: u128,
) -> Result<(), FpFault<B::Fault>> {
    match insn.d {
        Loc::Xmm(i) => c.fpu.xmm[usize::from(i & 15)] = v.to_le_bytes(),
        Loc::Mem(len) => {
            if insn.aligned && ea & 15 != 0 {
                return Err(FpFault::Gp);
            }
            let bytes = v.to_le_bytes();
            bus.store(ea, &bytes[..usize::from(len & 31).min(16)]).map_err(FpFault::Mem)?;
        }
        Loc::Mmx(i) => c.fpu.write_mm(i.into(), v as u64),
        Loc::G32(i) => c.gpr[usize::from(i & 15)] = u64::from(v as u32),
        Loc::G64(i) => c.gpr[usize::from(i & 15)] = v as u64,
        Loc::Flags => *c.rflags = *c.rflags & !ARITHMETIC | v as u64 & ARITHMETIC,
        Loc::None | Loc::Imm => {}
    }
    Ok(())
}

fn plain<B: FpBus>(
    insn: &FpInsn,
    c: &mut FpContext<'_>,
    bus: &mut B,
    ea: u64,
) -> Result<(), FpFault<B::Fault>> {
    let a = fetch(insn.a, insn, c, bus, ea)?;
    let b = fetch(insn.b, insn, c, bus, ea)?;
    let v = insn.kernel.run(c, a, b, insn.imm);
    if c.fpu.raised != 0 {
        take_raised(c.fpu, insn.mmx)?;
    }
    deliver(insn, c, bus, ea, v)
}

/// MXCSR's sticky flags and #XM. With an unmasked invalid, denormal or divide exception the
/// results are not computed, so that nothing is reported of rounding (SDM vol. 1, 11.5.3.2).
#[cold]
#[inline(never)]
fn take_raised<F>(fpu: &mut Fpu, mmx: bool) -> Result<(), FpFault<F>> {
    let raised = std::mem::take(&mut fpu.raised) & 0x3f;
    let unmasked = raised & !(fpu.mxcsr >> 7);
    if mmx && unmasked != 0 {
        // CVTPS2PI, CVTPI2PS and kin have left the x87 state by then.
        fpu.enter_mmx();
    }
    if unmasked & 7 != 0 {
        fpu.mxcsr |= raised & 7;
        return Err(FpFault::Simd);
    }
    fpu.mxcsr |= raised;
    if unmasked != 0 { Err(FpFault::Simd) } else { Ok(()) }
}

fn x87<B: FpBus>(
    insn: &FpInsn,
    c: &mut FpContext<'_>,
    bus: &mut B,
    ea: u64,
) -> Result<(), FpFault<B::Fault>> {
    let b = fetch(insn.b, insn, c, bus, ea)?;
    let before = (c.fpu.fsw, c.fpu.tags);
    let v = insn.kernel.run(c, 0, b, insn.imm);
    let no_result = std::mem::take(&mut c.fpu.raised) & NO_RESULT != 0;
    let stored = match insn.d {
        Loc::None => Ok(()),
        // The address is checked also where an exception leaves nothing to store.
        Loc::Mem(len) if no_result => bus.check_write(ea, len.into()).map_err(FpFault::Mem),
        _ if no_result => Ok(()),
        _ => deliver(insn, c, bus, ea, v),
    };
    if let Err(fault) = stored {
        (c.fpu.fsw, c.fpu.tags) = before;
        return Err(fault);
    }
    if c.fpu.fsw & !before.0 & fsw::ES != 0 {
        c.fpu.fip = c.rip;
        c.fpu.fdp = if matches!(insn.b, Loc::Mem(_)) || matches!(insn.d, Loc::Mem(_)) { ea } else { 0 };
    }
    Ok(())
}

/// State images, MXCSR, and the byte-masked stores.
fn system<B: FpBus>(
    insn: &FpInsn,
    c: &mut FpContext<'_>,
    bus: &mut B,
    ea: u64,
) -> Result<(), FpFault<B::Fault>> {
    let (wide, xmms) = (insn.extra & 1 != 0, if insn.extra & 2 != 0 { 16 } else { 8 });
    let env = usize::from(insn.extra & 31).min(28);
    match insn.form {
        Form::Maskmov => maskmov(insn, c, bus, ea)?,
        Form::Ldmxcsr => {
            let v = load(bus, ea, 4)? as u32;
            c.fpu.set_mxcsr(v).map_err(|_| FpFault::Gp)?;
        }
        Form::Fxsave | Form::Fxrstor if ea & 15 != 0 => return Err(FpFault::Gp),
        Form::Fxsave => {
            let image = c.fpu.fxsave(wide, xmms);
            bus.check_write(ea, FXSAVE_LEN).map_err(FpFault::Mem)?;
            let len = if xmms == 16 { FXSAVE_USED } else { 288 };
            bus.store(ea, &image[..len]).map_err(FpFault::Mem)?;
        }
        Form::Fxrstor => {
            let mut image = [0u8; FXSAVE_LEN];
            bus.load(ea, &mut image).map_err(FpFault::Mem)?;
            c.fpu.fxrstor(&image, wide, xmms).map_err(|_| FpFault::Gp)?;
        }
        Form::Fnstenv => {
            let image = c.fpu.env_image(env);
            bus.store(ea, &image[..env]).map_err(FpFault::Mem)?;
            c.fpu.fcw |= 0x3f;
            c.fpu.refresh_summary();
        }
        Form::Fldenv => {
            pending(c.fpu)?;
            let mut image = [0u8; 28];
            bus.load(ea, &mut image[..env]).map_err(FpFault::Mem)?;
            c.fpu.load_env(&image, env);
        }
        Form::Fnsave => {
            let image = c.fpu.save_image(env);
            bus.store(ea, &image[..env + 80]).map_err(FpFault::Mem)?;
            c.fpu.init_x87();
        }
        Form::Frstor => {
            pending(c.fpu)?;
            let mut image = [0u8; 108];
            bus.load(ea, &mut image[..env + 80]).map_err(FpFault::Mem)?;
            c.fpu.load_image(&image, env);
        }
        Form::Plain | Form::X87 | Form::X87NoWait => return Err(FpFault::Ud),
    }
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU: `a` is the data, `b` the mask; only masked bytes touch memory.
fn maskmov<B: FpBus>(
    insn: &FpInsn,
    c: &mut FpContext<'_>,
    bus: &mut B,
    ea: u64,
) -> Result<(), FpFault<B::Fault>> {
    if insn.mmx {
        pending(c.fpu)?;
    }
    let data = fetch(insn.a, insn, c, bus, ea)?.to_le_bytes();
    let mask = fetch(insn.b, insn, c, bus, ea)?.to_le_bytes();
    let chosen = |i: usize| mask[i] & 0x80 != 0;
    for pass in 0..2 {
        let mut i = 0;
        while i < 16 {
            let from = i;
            while i < 16 && chosen(i) {
                i += 1;
            }
            let at = ea.wrapping_add(from as u64);
            if pass == 0 && i > from {
                bus.check_write(at, i - from).map_err(FpFault::Mem)?;
            } else if i > from {
                bus.store(at, &data[from..i]).map_err(FpFault::Mem)?;
            }
            i += usize::from(i == from);
        }
    }
    if insn.mmx {
        c.fpu.enter_mmx();
    }
    Ok(())
}

impl FpInsn {
    /// A plain instruction of `class` that moves nothing yet: the decoder fills in the operands.
    pub(super) fn new(kernel: super::insn::Kernel, class: Class) -> FpInsn {
        FpInsn {
            kernel,
            form: Form::Plain,
            class,
            d: Loc::None,
            a: Loc::None,
            b: Loc::None,
            imm: 0,
            aligned: false,
            mmx: false,
            flags: FlagsUse::None,
            extra: 0,
        }
    }
}
