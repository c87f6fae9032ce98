//! From iced's x87 forms to kernels.

use iced_x86::{Instruction, MemorySize as S, Mnemonic as M, OpKind, Register};

use super::super::insn::{Class, FlagsUse, Form, FpInsn, Kernel, Loc, Value};
use super::{arith as a, memory as m, special as s, transcendental as t};

/// Decodes an x87 instruction; `None` for every other.
pub fn decode(insn: &Instruction) -> Option<FpInsn> {
    if let Some(op) = system(insn) {
        return Some(op);
    }
    let memory = insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory;
    let mut op = if memory { memory_form(insn)? } else { register_form(insn)? };
    if !matches!(op.form, Form::X87NoWait) {
        op.form = Form::X87;
    }
    op.class = if insn.mnemonic() == M::Wait { Class::Wait } else { Class::X87 };
    Some(op)
}

fn sized(insn: &Instruction) -> u16 {
    match insn.memory_size() {
        S::FpuEnv14 | S::FpuState94 => 14,
        _ => 28,
    }
}

fn system(insn: &Instruction) -> Option<FpInsn> {
    let form = match insn.mnemonic() {
        M::Fnstenv => Form::Fnstenv,
        M::Fldenv => Form::Fldenv,
        M::Fnsave => Form::Fnsave,
        M::Frstor => Form::Frstor,
        _ => return None,
    };
    let mut op = FpInsn::new(Kernel::Value(s::fnop), Class::X87);
    op.form = form;
    op.extra = sized(insn);
    Some(op)
}

fn memory_form(insn: &Instruction) -> Option<FpInsn> {
    let size = insn.memory_size();
    let load = |kernel: Value| {
        let mut op = FpInsn::new(Kernel::Value(kernel), Class::X87);
        op.b = Loc::Mem(size.size() as u8);
        op
    };
    if let Some(kernel) = loads(insn.mnemonic(), size) {
        return Some(load(kernel));
    }
    let kernel = stores(insn.mnemonic(), size)?;
    let mut op = FpInsn::new(Kernel::Value(kernel), Class::X87);
    op.d = Loc::Mem(size.size() as u8);
    if matches!(insn.mnemonic(), M::Fnstsw | M::Fnstcw) {
        op.form = Form::X87NoWait;
    }
    Some(op)
}

fn loads(mnemonic: M, size: S) -> Option<Value> {
    use M::*;
    let pick = |f32: Value, f64: Value| match size {
        S::Float32 | S::Int16 => Some(f32),
        S::Float64 | S::Int32 => Some(f64),
        _ => None,
    };
    match mnemonic {
        Fadd => pick(a::fadd_m32, a::fadd_m64),
        Fsub => pick(a::fsub_m32, a::fsub_m64),
        Fsubr => pick(a::fsubr_m32, a::fsubr_m64),
        Fmul => pick(a::fmul_m32, a::fmul_m64),
        Fdiv => pick(a::fdiv_m32, a::fdiv_m64),
        Fdivr => pick(a::fdivr_m32, a::fdivr_m64),
        Fcom => pick(a::fcom_m32, a::fcom_m64),
        Fcomp => pick(a::fcomp_m32, a::fcomp_m64),
        Fiadd => pick(a::fiadd_m16, a::fiadd_m32),
        Fisub => pick(a::fisub_m16, a::fisub_m32),
        Fisubr => pick(a::fisubr_m16, a::fisubr_m32),
        Fimul => pick(a::fimul_m16, a::fimul_m32),
        Fidiv => pick(a::fidiv_m16, a::fidiv_m32),
        Fidivr => pick(a::fidivr_m16, a::fidivr_m32),
        Ficom => pick(a::ficom_m16, a::ficom_m32),
        Ficomp => pick(a::ficomp_m16, a::ficomp_m32),
        Fld if size == S::Float80 => Some(m::fld_m80),
        Fld => pick(m::fld_m32, m::fld_m64),
        Fild if size == S::Int64 => Some(m::fild_m64),
        Fild => pick(m::fild_m16, m::fild_m32),
        Fbld => Some(m::fbld),
        Fldcw => Some(s::fldcw),
        _ => None,
    }
}

fn stores(mnemonic: M, size: S) -> Option<Value> {
    use M::*;
    let pick = |small: Value, middle: Value, large: Option<Value>| match size {
        S::Float32 | S::Int16 => Some(small),
        S::Float64 | S::Int32 => Some(middle),
        S::Float80 | S::Int64 => large,
        _ => None,
    };
    match mnemonic {
        Fst => pick(m::fst_m32, m::fst_m64, None),
        Fstp => pick(m::fstp_m32, m::fstp_m64, Some(m::fstp_m80)),
        Fist => pick(m::fist_m16, m::fist_m32, None),
        Fistp => pick(m::fistp_m16, m::fistp_m32, Some(m::fistp_m64)),
        Fisttp => pick(m::fisttp_m16, m::fisttp_m32, Some(m::fisttp_m64)),
        Fbstp => Some(m::fbstp),
        Fnstsw => Some(s::fnstsw),
        Fnstcw => Some(s::fnstcw),
        _ => None,
    }
}

fn register_form(insn: &Instruction) -> Option<FpInsn> {
    let number = |k: u32| {
        let r = insn.op_register(k);
        if r.is_st() { r.number() as u8 } else { 0 }
    };
    // ST(i) is operand 0 where the result goes there, else operand 1 (or 0 when it is alone).
    let to_sti = insn.op_count() == 2 && number(0) != 0;
    let i = number(0).max(if insn.op_count() == 2 { number(1) } else { 0 });
    // `fadd st0, st0` reads the same both ways.
    let kernel = if insn.op_count() == 0 || insn.op0_register() == Register::AX {
        implied(insn.mnemonic())
    } else {
        with_sti(insn.mnemonic(), to_sti)
    }?;
    let mut op = FpInsn::new(Kernel::Value(kernel), Class::X87);
    op.imm = i;
    use M::*;
    match insn.mnemonic() {
        Fninit | Fnclex | Fnstsw | Fndisi | Fneni | Fnsetpm => op.form = Form::X87NoWait,
        Fcomi | Fcomip | Fucomi | Fucomip => {
            op.d = Loc::Flags;
            op.flags = FlagsUse::Writes;
        }
        Fcmovb | Fcmovbe | Fcmove | Fcmovu | Fcmovnb | Fcmovnbe | Fcmovne | Fcmovnu => {
            op.flags = FlagsUse::Reads;
        }
        _ => {}
    }
    Some(op)
}

fn with_sti(mnemonic: M, to_sti: bool) -> Option<Value> {
    use M::*;
    let pick = |st0: Value, sti: Value| if to_sti { sti } else { st0 };
    Some(match mnemonic {
        Fadd => pick(a::fadd, a::fadd_sti),
        Fsub => pick(a::fsub, a::fsub_sti),
        Fsubr => pick(a::fsubr, a::fsubr_sti),
        Fmul => pick(a::fmul, a::fmul_sti),
        Fdiv => pick(a::fdiv, a::fdiv_sti),
        Fdivr => pick(a::fdivr, a::fdivr_sti),
        Faddp => a::faddp,
        Fsubp => a::fsubp,
        Fsubrp => a::fsubrp,
        Fmulp => a::fmulp,
        Fdivp => a::fdivp,
        Fdivrp => a::fdivrp,
        Fcom => a::fcom,
        Fcomp => a::fcomp,
        Fucom => a::fucom,
        Fucomp => a::fucomp,
        Fcomi => a::fcomi,
        Fcomip => a::fcomip,
        Fucomi => a::fucomi,
        Fucomip => a::fucomip,
        Fcmovb => a::fcmovb,
        Fcmovbe => a::fcmovbe,
        Fcmove => a::fcmove,
        Fcmovu => a::fcmovu,
        Fcmovnb => a::fcmovnb,
        Fcmovnbe => a::fcmovnbe,
        Fcmovne => a::fcmovne,
        Fcmovnu => a::fcmovnu,
        Fld => m::fld_sti,
        Fst => m::fst_sti,
        Fstp => m::fstp_sti,
        Fstpnce => s::fstpnce,
        Fxch => s::fxch,
        Ffree => s::ffree,
        Ffreep => s::ffreep,
        _ => return None,
    })
}

fn implied(mnemonic: M) -> Option<Value> {
    use M::*;
    Some(match mnemonic {
        Fabs => s::fabs,
        Fchs => s::fchs,
        Fxam => s::fxam,
        Ftst => a::ftst,
        Fsqrt => a::fsqrt,
        Fcompp => a::fcompp,
        Fucompp => a::fucompp,
        Fld1 => m::fld1,
        Fldz => m::fldz,
        Fldl2t => m::fldl2t,
        Fldl2e => m::fldl2e,
        Fldpi => m::fldpi,
        Fldlg2 => m::fldlg2,
        Fldln2 => m::fldln2,
        Frndint => s::frndint,
        Fscale => s::fscale,
        Fxtract => s::fxtract,
        Fprem => s::fprem,
        Fprem1 => s::fprem1,
        Fincstp => s::fincstp,
        Fdecstp => s::fdecstp,
        Fninit => s::fninit,
        Fnclex => s::fnclex,
        Fnstsw => s::fnstsw_ax,
        // The 387 and later ignore the 8087's and 287's own controls.
        Fnop | Wait | Fneni | Fndisi | Fnsetpm => s::fnop,
        F2xm1 => t::f2xm1,
        Fyl2x => t::fyl2x,
        Fyl2xp1 => t::fyl2xp1,
        Fpatan => t::fpatan,
        Fptan => t::fptan,
        Fsin => t::fsin,
        Fcos => t::fcos,
        Fsincos => t::fsincos,
        _ => return None,
    })
}
