//! Branches, calls, system instructions, ports.

use iced_x86::{Code, FlowControl, Mnemonic, OpKind, Register};

use super::integer::condition;
use super::{Decoded, End, Form};
use crate::cpu::Mode;
use crate::op::{Op, STACK};
use crate::ops::{branch, cond, string, system};

/// Decodes an instruction of these groups; `None` when it is none of them.
pub(crate) fn decode(f: &Form<'_>) -> Option<Decoded> {
    near_branch(f).or_else(|| plain(f)).or_else(|| with_operands(f)).or_else(|| ports(f))
}

fn near_branch(f: &Form<'_>) -> Option<Decoded> {
    let insn = f.insn;
    let long = f.mode == Mode::Long64;
    let (size, is_near) = match insn.op_kind(0) {
        OpKind::NearBranch16 => (2, true),
        OpKind::NearBranch32 => (4, true),
        OpKind::NearBranch64 => (8, true),
        _ => ((f.mode.bits() / 8) as u8, false),
    };
    let wide = long && size == 8;
    let op = Op { size, imm: if is_near { insn.near_branch_target() } else { 0 }, ..f.op() };
    match insn.mnemonic() {
        Mnemonic::Jmp if is_near => {
            Decoded::end(Op { run: if wide { branch::jmp_64 } else { branch::jmp_any }, ..op }, End::Direct)
        }
        Mnemonic::Call if is_near => Decoded::end(
            Op { run: if wide { branch::call_64 } else { branch::call_any }, scale: STACK, ..op },
            End::Direct,
        ),
        Mnemonic::Jmp | Mnemonic::Call => indirect(f),
        Mnemonic::Ret => ret(f),
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            let aux = match insn.mnemonic() {
                Mnemonic::Loopne => 0,
                Mnemonic::Loope => 1,
                _ => 2,
            };
            Decoded::end(
                Op { run: branch::loop_cx, aux, addr_size: counter_size(insn.code(), f), ..op },
                End::Side,
            )
        }
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            let addr_size = match insn.mnemonic() {
                Mnemonic::Jcxz => 2,
                Mnemonic::Jecxz => 4,
                _ => 8,
            };
            Decoded::end(Op { run: branch::loop_cx, aux: 3, addr_size, ..op }, End::Side)
        }
        _ if insn.flow_control() == FlowControl::ConditionalBranch && is_near => {
            let cc = condition(insn)?;
            let run = if wide { cond::JCC[usize::from(cc)] } else { cond::jcc_any };
            Decoded::end(Op { run, aux: cc, ..op }, End::Side).map(|d| Decoded { jcc: true, ..d })
        }
        _ => None,
    }
}

/// Width of LOOP's counter in bytes.
fn counter_size(code: Code, f: &Form<'_>) -> u8 {
    match code {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX => 4,
        _ => (f.mode.bits() / 8) as u8,
    }
}

/// JMP and CALL through a register or memory, and their far forms.
fn indirect(f: &Form<'_>) -> Option<Decoded> {
    let call = f.insn.mnemonic() == Mnemonic::Call;
    if matches!(f.insn.op_kind(0), OpKind::FarBranch16 | OpKind::FarBranch32) {
        let size = if f.insn.op_kind(0) == OpKind::FarBranch16 { 2 } else { 4 };
        let offset =
            if size == 2 { u64::from(f.insn.far_branch16()) } else { u64::from(f.insn.far_branch32()) };
        let disp = u64::from(f.insn.far_branch_selector());
        let op = Op { size, imm: offset, disp, aux: u8::from(call), ..f.op() };
        return Decoded::end(Op { run: system::far_direct, ..op }, End::System);
    }
    let far = matches!(f.insn.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
        && (f.insn.is_jmp_far_indirect() || f.insn.is_call_far_indirect());
    if far {
        let size = (f.size(0) - 2).clamp(2, 8);
        let op = Op { size, aux: u8::from(call), ..f.op() };
        return Decoded::end(Op { run: system::far_indirect, ..op }, End::System);
    }
    let mut op = Op { size: f.size(0), aux: u8::from(f.is_mem(0)), ..f.op() };
    if call {
        op.scale |= STACK;
    }
    if f.is_reg(0) {
        op.src = f.reg(0);
    }
    let run = if call { branch::call_indirect } else { branch::jmp_indirect };
    Decoded::end(Op { run, ..op }, End::Indirect)
}

fn ret(f: &Form<'_>) -> Option<Decoded> {
    let size = match f.insn.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let imm = if f.insn.op_count() > 0 { f.imm(0, 2) } else { 0 };
    let fast = size == 8 && imm == 0 && f.mode == Mode::Long64;
    let run = if fast { branch::ret_64 } else { branch::ret_any };
    Decoded::end(Op { run, size, imm, scale: STACK, ..f.op() }, End::Indirect)
}

/// Instructions without explicit operands, by number in `ops::system`.
fn plain(f: &Form<'_>) -> Option<Decoded> {
    let sized = |aux, size| (aux, size, End::System);
    let (aux, size, end) = match f.insn.mnemonic() {
        Mnemonic::Syscall => sized(system::SYSCALL, 0),
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            sized(system::SYSRET, if f.insn.code() == Code::Sysretq { 8 } else { 4 })
        }
        Mnemonic::Sysenter => sized(system::SYSENTER, 0),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            sized(system::SYSEXIT, if f.insn.code() == Code::Sysexitq { 8 } else { 4 })
        }
        Mnemonic::Rdmsr => sized(system::RDMSR, 0),
        Mnemonic::Wrmsr => sized(system::WRMSR, 0),
        Mnemonic::Cpuid => sized(system::CPUID, 0),
        Mnemonic::Rdpmc => sized(system::RDPMC, 0),
        Mnemonic::Hlt => sized(system::HLT, 0),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => sized(system::VMCALL, 0),
        Mnemonic::Clts => sized(system::CLTS, 0),
        Mnemonic::Wbinvd | Mnemonic::Invd => sized(system::WBINVD, 0),
        Mnemonic::Int3 => sized(system::INT3, 0),
        Mnemonic::Int => sized(system::INT, 0),
        Mnemonic::Into => sized(system::INTO, 0),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => sized(
            system::IRET,
            match f.insn.code() {
                Code::Iretw => 2,
                Code::Iretd => 4,
                _ => 8,
            },
        ),
        Mnemonic::Retf => sized(
            system::RETF,
            match f.insn.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            },
        ),
        // These change neither the flow nor any translation: they only let events be looked for.
        Mnemonic::Sti => (system::STI, 0, End::Direct),
        Mnemonic::Cli => return Decoded::next(with_aux(f, system::CLI)),
        Mnemonic::Clac => return Decoded::next(with_aux(f, system::CLAC)),
        Mnemonic::Stac => return Decoded::next(with_aux(f, system::STAC)),
        Mnemonic::Swapgs => return Decoded::next(with_aux(f, system::SWAPGS)),
        Mnemonic::Rdtsc => return Decoded::next(with_aux(f, system::RDTSC)),
        Mnemonic::Rdtscp => return Decoded::next(with_aux(f, system::RDTSCP)),
        _ => return None,
    };
    let imm = if f.insn.op_count() > 0 { f.imm(0, 2) } else { 0 };
    Decoded::end(Op { size, imm, ..with_aux(f, aux) }, end)
}

fn with_aux(f: &Form<'_>, aux: u8) -> Op {
    Op { run: system::plain, aux, ..f.op() }
}

fn with_operands(f: &Form<'_>) -> Option<Decoded> {
    let word = |aux: u8| {
        let mut op = Op { run: system::on_word, aux, size: f.size(0), ..f.op() };
        // LAR and LSL have the selector second.
        let i = u32::from(f.insn.op_count() > 1);
        op.imm = u64::from(f.is_mem(i));
        if f.is_reg(0) {
            op.dst = f.reg(0);
        }
        if f.is_reg(i) {
            op.src = f.reg(i);
        }
        Decoded::end(op, End::System)
    };
    let table = |aux: u8| {
        let size = match f.mode {
            Mode::Long64 => 8,
            _ if is_word_table(f.insn.code()) => 2,
            _ => 4,
        };
        Decoded::end(Op { run: system::on_memory, aux, size, ..f.op() }, End::System)
    };
    let random = |aux: u8| {
        let op = Op { run: system::random, aux, dst: f.reg(0), size: f.size(0), ..f.op() };
        Decoded::next(op)
    };
    let base = |seg: u8, aux: u8| {
        Decoded::next(Op { run: system::fs_gs_base, seg, aux, dst: f.reg(0), size: f.size(0), ..f.op() })
    };
    match f.insn.mnemonic() {
        Mnemonic::Lldt => word(system::LLDT),
        Mnemonic::Ltr => word(system::LTR),
        Mnemonic::Lmsw => word(system::LMSW),
        Mnemonic::Verr => word(system::VERR),
        Mnemonic::Verw => word(system::VERW),
        Mnemonic::Lar => word(system::LAR),
        Mnemonic::Lsl => word(system::LSL),
        Mnemonic::Sldt => word(system::SLDT),
        Mnemonic::Str => word(system::STR),
        Mnemonic::Smsw => word(system::SMSW),
        Mnemonic::Lgdt => table(system::LGDT),
        Mnemonic::Lidt => table(system::LIDT),
        Mnemonic::Sgdt => table(system::SGDT),
        Mnemonic::Sidt => table(system::SIDT),
        Mnemonic::Invlpg => table(system::INVLPG),
        Mnemonic::Invpcid => {
            let op = Op { run: system::on_memory, aux: system::INVPCID, dst: f.reg(0), ..f.op() };
            Decoded::end(Op { size: f.size(0), ..op }, End::System)
        }
        Mnemonic::Bound => Decoded::next(Op { run: system::bound, dst: f.reg(0), size: f.size(0), ..f.op() }),
        Mnemonic::Arpl => {
            let dst = if f.is_reg(0) { f.reg(0) } else { 0 };
            let imm = u64::from(f.is_mem(0));
            Decoded::next(Op { run: system::arpl, dst, src: f.reg(1), imm, ..f.op() })
        }
        Mnemonic::Rdrand => random(0),
        Mnemonic::Rdseed => random(1),
        Mnemonic::Rdfsbase => base(4, 0),
        Mnemonic::Rdgsbase => base(5, 0),
        Mnemonic::Wrfsbase => base(4, 1),
        Mnemonic::Wrgsbase => base(5, 1),
        _ => None,
    }
}

fn is_word_table(code: Code) -> bool {
    matches!(code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16)
}

/// IN and OUT.
fn ports(f: &Form<'_>) -> Option<Decoded> {
    let (run, data, port): (crate::op::Handler, u32, u32) = match f.insn.mnemonic() {
        Mnemonic::In => (string::port_in, 0, 1),
        Mnemonic::Out => (string::port_out, 1, 0),
        _ => return None,
    };
    let in_dx = f.is_reg(port) && f.insn.op_register(port) == Register::DX;
    let imm = if in_dx { 0 } else { f.imm(port, 1) };
    Decoded::next(Op { run, imm, aux: u8::from(in_dx), size: f.size(data), ..f.op() })
}
