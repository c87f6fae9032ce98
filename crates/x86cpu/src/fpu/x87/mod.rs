//! x87: the register stack, its exceptions, and the kernels in `arith`, `memory`, `special` and
//! `transcendental`.
//!
//! Every kernel works in the same order (SDM vol. 1, 8.5): stack faults, then the other invalid
//! operations, then the operation itself, whose flags [`commit`] adds to FSW. An unmasked exception
//! found before the operation (IE, DE, ZE) leaves registers and stack as they were; the #MF comes
//! with the next waiting instruction.

mod arith;
mod memory;
mod special;
mod table;
mod transcendental;

pub(super) use table::decode;

use super::exec::NO_RESULT;
use super::insn::FpContext;
use super::soft::{self, DE, EXT, Env, Fmt, IE, Num, OE, PE, UE, ZE};
use super::state::{F80, Fpu, fsw};

/// EMMS: all registers empty and TOP 0 (SDM vol. 3, 13.2), after the check for a pending exception.
pub(super) fn emms(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    c.fpu.tags = 0;
    c.fpu.set_top(0);
    0
}

fn phys(fpu: &Fpu, i: u8) -> usize {
    (fpu.top() + usize::from(i)) & 7
}

fn is_empty(fpu: &Fpu, i: u8) -> bool {
    fpu.tags >> phys(fpu, i) & 1 == 0
}

fn st(fpu: &Fpu, i: u8) -> F80 {
    fpu.regs[phys(fpu, i)]
}

fn set_st(fpu: &mut Fpu, i: u8, v: F80) {
    let r = phys(fpu, i);
    fpu.regs[r] = v;
    fpu.tags |= 1 << r;
}

fn push(fpu: &mut Fpu, v: F80) {
    let top = fpu.top();
    fpu.set_top(top.wrapping_sub(1));
    set_st(fpu, 0, v);
}

fn pop(fpu: &mut Fpu) {
    let top = fpu.top();
    fpu.tags &= !(1 << top);
    fpu.set_top(top + 1);
}

/// The destination of arithmetic under precision control (FCW.PC; SDM vol. 1, 8.1.5.2).
fn precision(fpu: &Fpu) -> Fmt {
    match fpu.fcw >> 8 & 3 {
        0 => Fmt { prec: 24, ..EXT },
        2 => Fmt { prec: 53, ..EXT },
        _ => EXT,
    }
}

fn set_c1(fpu: &mut Fpu, on: bool) {
    fpu.fsw = fpu.fsw & !fsw::C1 | if on { fsw::C1 } else { 0 };
}

/// Adds an operation's flags to FSW. False: an unmasked exception suppresses the result.
fn commit(c: &mut FpContext<'_>, env: &Env) -> bool {
    let unmasked = env.flags & !env.masked;
    if unmasked & (IE | DE | ZE) != 0 {
        c.fpu.fsw |= u16::from(env.flags & (IE | DE | ZE)) | fsw::ES | fsw::B;
        set_c1(c.fpu, false);
        c.fpu.raised = NO_RESULT;
        return false;
    }
    c.fpu.fsw |= u16::from(env.flags);
    set_c1(c.fpu, env.up && env.flags & PE != 0);
    if unmasked != 0 {
        c.fpu.fsw |= fsw::ES | fsw::B;
    }
    true
}

/// The same for a result that goes to memory: unmasked overflow and underflow suppress it too.
fn commit_store(c: &mut FpContext<'_>, env: &Env) -> bool {
    let range = env.flags & !env.masked & (OE | UE) != 0;
    let told = if range { env.flags & !PE } else { env.flags };
    if !commit(c, &Env { flags: told, ..*env }) {
        return false;
    }
    if range {
        c.fpu.raised = NO_RESULT;
    }
    !range
}

/// Stack underflow (`overflow` false) or overflow. True: masked, the indefinite takes the result's
/// place.
fn stack_fault(c: &mut FpContext<'_>, overflow: bool) -> bool {
    c.fpu.fsw |= fsw::IE | fsw::SF;
    set_c1(c.fpu, overflow);
    if c.fpu.fcw & fsw::IE == 0 {
        c.fpu.fsw |= fsw::ES | fsw::B;
        c.fpu.raised = NO_RESULT;
        return false;
    }
    true
}

/// Pushes what `f` makes, with the stack overflow check first.
fn push_result(c: &mut FpContext<'_>, f: impl FnOnce(&mut Env) -> Num) {
    if !is_empty(c.fpu, 7) {
        if stack_fault(c, true) {
            push(c.fpu, F80::INDEFINITE);
        }
        return;
    }
    let mut env = Env::x87(c.fpu.fcw);
    let n = f(&mut env);
    if commit(c, &env) {
        push(c.fpu, soft::to_f80(n));
    }
}

/// ST(0) = f(ST(0)).
fn unary(c: &mut FpContext<'_>, f: impl FnOnce(&mut Env, &Fmt, Num) -> Num) {
    if is_empty(c.fpu, 0) {
        if stack_fault(c, false) {
            set_st(c.fpu, 0, F80::INDEFINITE);
        }
        return;
    }
    let mut env = Env::x87(c.fpu.fcw);
    let fmt = precision(c.fpu);
    let n = f(&mut env, &fmt, soft::from_f80(st(c.fpu, 0)));
    if commit(c, &env) {
        set_st(c.fpu, 0, soft::to_f80(n));
    }
}
