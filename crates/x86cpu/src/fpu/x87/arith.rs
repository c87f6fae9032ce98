//! FADD, FSUB, FMUL, FDIV and their kin, FSQRT, compares, FCMOV.

use super::super::insn::FpContext;
use super::super::soft::{self, Env, Fmt, Num, Order};
use super::super::state::{F80, Fpu, fsw};
use super::{commit, is_empty, pop, precision, set_c1, set_st, st, stack_fault, unary};

type Op = fn(&mut Env, &Fmt, Num, Num) -> Num;

fn add(env: &mut Env, f: &Fmt, a: Num, b: Num) -> Num {
    soft::add(env, f, a, b, false)
}

fn sub(env: &mut Env, f: &Fmt, a: Num, b: Num) -> Num {
    soft::add(env, f, a, b, true)
}

fn subr(env: &mut Env, f: &Fmt, a: Num, b: Num) -> Num {
    soft::add(env, f, b, a, true)
}

fn divr(env: &mut Env, f: &Fmt, a: Num, b: Num) -> Num {
    soft::div(env, f, b, a)
}

/// ST(dst) = op(ST(dst), src); false: nothing was written and nothing may be popped.
fn binary(c: &mut FpContext<'_>, dst: u8, src: Option<Num>, op: Op) -> bool {
    let Some(src) = src.filter(|_| !is_empty(c.fpu, dst)) else {
        if !stack_fault(c, false) {
            return false;
        }
        set_st(c.fpu, dst, F80::INDEFINITE);
        return true;
    };
    let mut env = Env::x87(c.fpu.fcw);
    let fmt = precision(c.fpu);
    let n = op(&mut env, &fmt, soft::from_f80(st(c.fpu, dst)), src);
    if !commit(c, &env) {
        return false;
    }
    set_st(c.fpu, dst, soft::to_f80(n));
    true
}

fn reg(fpu: &Fpu, i: u8) -> Option<Num> {
    (!is_empty(fpu, i)).then(|| soft::from_f80(st(fpu, i)))
}

macro_rules! arithmetic {
    ($($op:path: $st0:ident $sti:ident $pop:ident $m32:ident $m64:ident $i16:ident $i32:ident;)*) => {$(
        pub fn $st0(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
            let src = reg(c.fpu, i);
            binary(c, 0, src, $op);
            0
        }
        pub fn $sti(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
            let src = reg(c.fpu, 0);
            binary(c, i, src, $op);
            0
        }
        pub fn $pop(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
            let src = reg(c.fpu, 0);
            if binary(c, i, src, $op) {
                pop(c.fpu);
            }
            0
        }
        pub fn $m32(c: &mut FpContext<'_>, _: u128, b: u128, _: u8) -> u128 {
            binary(c, 0, Some(soft::from_f32(b as u32, false)), $op);
            0
        }
        pub fn $m64(c: &mut FpContext<'_>, _: u128, b: u128, _: u8) -> u128 {
            binary(c, 0, Some(soft::from_f64(b as u64, false)), $op);
            0
        }
        pub fn $i16(c: &mut FpContext<'_>, _: u128, b: u128, _: u8) -> u128 {
            binary(c, 0, Some(soft::from_int((b as i16).into())), $op);
            0
        }
        pub fn $i32(c: &mut FpContext<'_>, _: u128, b: u128, _: u8) -> u128 {
            binary(c, 0, Some(soft::from_int((b as i32).into())), $op);
            0
        }
    )*};
}

arithmetic! {
    add: fadd fadd_sti faddp fadd_m32 fadd_m64 fiadd_m16 fiadd_m32;
    sub: fsub fsub_sti fsubp fsub_m32 fsub_m64 fisub_m16 fisub_m32;
    subr: fsubr fsubr_sti fsubrp fsubr_m32 fsubr_m64 fisubr_m16 fisubr_m32;
    soft::mul: fmul fmul_sti fmulp fmul_m32 fmul_m64 fimul_m16 fimul_m32;
    soft::div: fdiv fdiv_sti fdivp fdiv_m32 fdiv_m64 fidiv_m16 fidiv_m32;
    divr: fdivr fdivr_sti fdivrp fdivr_m32 fdivr_m64 fidivr_m16 fidivr_m32;
}

pub fn fsqrt(c: &mut FpContext<'_>, _: u128, _: u128, _: u8) -> u128 {
    unary(c, soft::sqrt);
    0
}

/// Compares ST(0) with `src`, and whether the instruction may pop. An unmasked exception still
/// tells the order (as AMD does; Intel's manual leaves the condition codes as they were then).
fn order(c: &mut FpContext<'_>, src: Option<Num>, signalling: bool) -> (Order, bool) {
    let (Some(a), Some(b)) = (reg(c.fpu, 0), src) else {
        return (Order::Unordered, stack_fault(c, false));
    };
    let mut env = Env::x87(c.fpu.fcw);
    let r = soft::compare(&mut env, a, b, signalling);
    (r, commit(c, &env))
}

fn to_fsw(c: &mut FpContext<'_>, src: Option<Num>, signalling: bool, pops: u8) {
    let (order, go_on) = order(c, src, signalling);
    c.fpu.fsw = c.fpu.fsw & !(fsw::C0 | fsw::C2 | fsw::C3)
        | match order {
            Order::Greater => 0,
            Order::Less => fsw::C0,
            Order::Equal => fsw::C3,
            Order::Unordered => fsw::C0 | fsw::C2 | fsw::C3,
        };
    for _ in 0..if go_on { pops } else { 0 } {
        pop(c.fpu);
    }
}

macro_rules! compares {
    ($($name:ident: |$c:ident, $b:ident, $i:ident| $src:expr, $signalling:expr, $pops:expr;)*) => {$(
        pub fn $name($c: &mut FpContext<'_>, _: u128, $b: u128, $i: u8) -> u128 {
            let src = $src;
            to_fsw($c, src, $signalling, $pops);
            0
        }
    )*};
}

compares! {
    fcom: |c, _b, i| reg(c.fpu, i), true, 0;
    fcomp: |c, _b, i| reg(c.fpu, i), true, 1;
    fcompp: |c, _b, _i| reg(c.fpu, 1), true, 2;
    fucom: |c, _b, i| reg(c.fpu, i), false, 0;
    fucomp: |c, _b, i| reg(c.fpu, i), false, 1;
    fucompp: |c, _b, _i| reg(c.fpu, 1), false, 2;
    fcom_m32: |c, b, _i| Some(soft::from_f32(b as u32, false)), true, 0;
    fcomp_m32: |c, b, _i| Some(soft::from_f32(b as u32, false)), true, 1;
    fcom_m64: |c, b, _i| Some(soft::from_f64(b as u64, false)), true, 0;
    fcomp_m64: |c, b, _i| Some(soft::from_f64(b as u64, false)), true, 1;
    ficom_m16: |c, b, _i| Some(soft::from_int((b as i16).into())), true, 0;
    ficomp_m16: |c, b, _i| Some(soft::from_int((b as i16).into())), true, 1;
    ficom_m32: |c, b, _i| Some(soft::from_int((b as i32).into())), true, 0;
    ficomp_m32: |c, b, _i| Some(soft::from_int((b as i32).into())), true, 1;
    ftst: |c, _b, _i| Some(Num::zero(false)), true, 0;
}

/// FCOMI and kin: ZF PF CF, the other arithmetic flags zero.
fn to_rflags(c: &mut FpContext<'_>, i: u8, signalling: bool, pops: u8) -> u128 {
    let (src, c1) = (reg(c.fpu, i), c.fpu.fsw & fsw::C1 != 0);
    let underflow = is_empty(c.fpu, 0) || src.is_none();
    let (order, go_on) = order(c, src, signalling);
    if !underflow {
        // Only a stack fault touches C1 here.
        set_c1(c.fpu, c1);
    }
    // The result goes to RFLAGS in any case.
    c.fpu.raised = 0;
    for _ in 0..if go_on { pops } else { 0 } {
        pop(c.fpu);
    }
    match order {
        Order::Greater => 0,
        Order::Less => 1,
        Order::Equal => 0x40,
        Order::Unordered => 0x45,
    }
}

pub fn fcomi(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
    to_rflags(c, i, true, 0)
}

pub fn fcomip(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
    to_rflags(c, i, true, 1)
}

pub fn fucomi(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
    to_rflags(c, i, false, 0)
}

pub fn fucomip(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
    to_rflags(c, i, false, 1)
}

fn cmov(c: &mut FpContext<'_>, i: u8, taken: bool) {
    if is_empty(c.fpu, 0) || is_empty(c.fpu, i) {
        if stack_fault(c, false) {
            set_st(c.fpu, 0, F80::INDEFINITE);
        }
        return;
    }
    if taken {
        let v = st(c.fpu, i);
        set_st(c.fpu, 0, v);
    }
}

macro_rules! fcmov {
    ($($name:ident: $mask:expr, $set:expr;)*) => {$(
        pub fn $name(c: &mut FpContext<'_>, _: u128, _: u128, i: u8) -> u128 {
            let taken = (*c.rflags & $mask != 0) == $set;
            cmov(c, i, taken);
            0
        }
    )*};
}

fcmov! {
    fcmovb: 1, true;
    fcmove: 0x40, true;
    fcmovbe: 0x41, true;
    fcmovu: 4, true;
    fcmovnb: 1, false;
    fcmovne: 0x40, false;
    fcmovnbe: 0x41, false;
    fcmovnu: 4, false;
}
