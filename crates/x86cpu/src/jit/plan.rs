//! What is to be done with an instruction: which template, or none.
//!
//! The analysis and the templates both go by the [`Plan`]; a template never refuses what was planned
//! for it.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpKind, Register};

use super::lower::x87;
use crate::decode::{End, condition};
use crate::ops::{alu, bits, shifts};

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Nop,
    Fence,
    /// The two-operand group by `ops::alu`'s number.
    Alu(u8),
    /// INC DEC NEG NOT by `ops::alu`'s number.
    Unary(u8),
    Mov,
    /// MOVZX, MOVSX.
    Extend {
        signed: bool,
    },
    Lea,
    XchgRegs,
    XchgMem,
    Xadd,
    Cmpxchg,
    /// CMPXCHG8B, CMPXCHG16B.
    CmpxchgPair,
    /// By `ops::shifts`' number; only SHL SHR SAR ROL ROR.
    Shift(u8),
    /// ROL, ROR by CL.
    RotateByCl(u8),
    /// SHLD, SHRD.
    Double {
        left: bool,
    },
    /// Two or three operands.
    Imul,
    /// One operand.
    Mul {
        signed: bool,
    },
    Div {
        signed: bool,
    },
    Push,
    Pop,
    Leave,
    Setcc(u8),
    Cmov(u8),
    /// By `ops::bits`' number.
    Bt(u8),
    /// The same with an offset that reaches beyond the memory operand.
    BtFar(u8),
    BitScan {
        reverse: bool,
    },
    Popcnt,
    Crc32,
    Bswap,
    /// CBW family, CWD family.
    Widen,
    Sign,
    Cli,
    Sti,
    Swapgs,
    Pushf,
    Jmp,
    Jcc(u8),
    /// A conditional branch back to the start: the translation goes on where it is taken.
    Loop(u8),
    Call,
    Ret,
    JmpIndirect,
    CallIndirect,
    /// Any x87 instruction that means on the host what it means in the guest.
    X87,
    /// Any SSE instruction that means on the host what it means in the guest.
    Sse,
    /// The interpreter's handler; the translation goes on behind.
    Handler,
    /// The interpreter's handler; the translation ends.
    HandlerEnd,
    /// The translation ends before it.
    Stop,
}

/// What an instruction does with the arithmetic flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Keeps,
    /// Writes all of them.
    Kills,
    /// Writes some of them always, or all of them sometimes.
    Partial,
}

/// What the analysis of flags asks of an instruction again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub effect: Effect,
    /// [`Plan::reads_flags`].
    pub reads: u8,
    /// [`Plan::writes`].
    pub writes: u16,
    pub may_fault: bool,
    pub clobbers: bool,
    pub has_memory: bool,
}

impl Plan {
    pub fn facts(self, insn: &Instruction) -> Facts {
        let (effect, may_fault) = (self.effect(insn), self.may_fault(insn));
        Facts {
            effect,
            reads: self.reads_flags(insn),
            writes: self.writes(insn),
            may_fault,
            // The host's flags are others after it, if it keeps the guest's.
            clobbers: may_fault || effect != Effect::Keeps,
            has_memory: has_memory(insn),
        }
    }

    pub fn effect(self, insn: &Instruction) -> Effect {
        match self {
            Plan::Alu(_) | Plan::Xadd | Plan::Cmpxchg | Plan::Imul | Plan::Mul { .. } => Effect::Kills,
            Plan::BitScan { .. } | Plan::Popcnt => Effect::Kills,
            Plan::Unary(alu::NEG) => Effect::Kills,
            Plan::Unary(alu::INC | alu::DEC) | Plan::Bt(_) | Plan::BtFar(_) => Effect::Partial,
            Plan::RotateByCl(_) | Plan::CmpxchgPair => Effect::Partial,
            Plan::Double { .. } if double_count(insn).is_none() => Effect::Partial,
            Plan::Double { .. } => Effect::Kills,
            Plan::X87 if x87::writes_flags(insn.mnemonic()) => Effect::Kills,
            Plan::Shift(_) if shift_count(insn) == Some(0) => Effect::Keeps,
            Plan::Shift(shifts::ROL | shifts::ROR) => Effect::Partial,
            Plan::Shift(_) if shift_count(insn).is_none() => Effect::Partial,
            Plan::Shift(_) => Effect::Kills,
            Plan::Sse if sse_writes_flags(insn.mnemonic()) => Effect::Kills,
            Plan::Handler | Plan::HandlerEnd => Effect::Kills,
            _ => Effect::Keeps,
        }
    }

    /// Whether what changes some flags only writes down first what there was.
    pub fn settles(self, insn: &Instruction) -> bool {
        match self {
            Plan::Unary(_) | Plan::Bt(_) | Plan::BtFar(_) => false,
            Plan::Shift(_) => shift_count(insn).is_none(),
            _ => true,
        }
    }

    /// The flags that it looks at.
    pub fn reads_flags(self, insn: &Instruction) -> u8 {
        match self {
            Plan::Alu(alu::ADC | alu::SBB) => bit::CF,
            Plan::Jcc(cc) | Plan::Loop(cc) | Plan::Setcc(cc) | Plan::Cmov(cc) => looks_at(cc),
            Plan::X87 => x87::condition(insn.mnemonic()).map_or(bit::NONE, looks_at),
            _ => bit::NONE,
        }
    }

    /// After an instruction that changes flags: those that the host's are sure to be right about. (What the
    /// manual leaves undefined is what the interpreter makes of it.)
    pub fn gives(self, insn: &Instruction) -> u8 {
        let by_one = || shift_count(insn) == Some(1);
        match self {
            Plan::Bt(_) | Plan::BtFar(_) => bit::CF,
            Plan::CmpxchgPair => bit::ZF,
            Plan::RotateByCl(_) => bit::NONE,
            Plan::Double { .. } => match double_count(insn) {
                None => bit::NONE,
                Some(1) => bit::ALL,
                Some(_) => bit::ALL & !bit::OF,
            },
            Plan::Shift(shifts::ROL | shifts::ROR) if by_one() => bit::CF | bit::OF,
            Plan::Shift(shifts::ROL | shifts::ROR) => bit::CF,
            Plan::Shift(_) if shift_count(insn).is_none() => bit::NONE,
            Plan::Shift(_) if by_one() => bit::ALL,
            // A byte or word may be shifted by more than it has.
            Plan::Shift(_) if operand_size(insn, 0) < 4 => bit::ZF | bit::SP,
            Plan::Shift(_) => bit::ALL & !bit::OF,
            Plan::Imul | Plan::Mul { .. } => bit::CF | bit::OF,
            Plan::BitScan { .. } => bit::ZF,
            Plan::Unary(alu::INC | alu::DEC) => bit::ALL & !bit::CF,
            Plan::Handler | Plan::HandlerEnd => bit::NONE,
            _ => bit::ALL,
        }
    }

    /// Whether the instruction may not complete: the flags before it must then be known.
    pub fn may_fault(self, insn: &Instruction) -> bool {
        match self {
            Plan::Nop | Plan::Lea => false,
            Plan::Push | Plan::Pop | Plan::Leave | Plan::Call | Plan::Ret | Plan::Pushf => true,
            Plan::Cli | Plan::Sti | Plan::Swapgs => true,
            Plan::JmpIndirect | Plan::CallIndirect | Plan::X87 => true,
            Plan::Div { .. } | Plan::Handler | Plan::HandlerEnd | Plan::Stop => true,
            _ => has_memory(insn),
        }
    }

    /// Guest registers that it writes, one bit each.
    pub fn writes(self, insn: &Instruction) -> u16 {
        let op0 = || register_bit(insn, 0);
        match self {
            Plan::Nop | Plan::Fence | Plan::Jmp | Plan::Jcc(_) | Plan::JmpIndirect | Plan::Stop => 0,
            Plan::Loop(_) | Plan::Cli | Plan::Sti | Plan::Swapgs => 0,
            Plan::Alu(alu::CMP | alu::TEST) => 0,
            Plan::Alu(_) | Plan::Unary(_) | Plan::Mov | Plan::Extend { .. } | Plan::Lea => op0(),
            Plan::Shift(_) | Plan::Imul | Plan::Setcc(_) | Plan::Cmov(_) | Plan::Bt(_) => op0(),
            Plan::BitScan { .. } | Plan::Popcnt | Plan::Bswap => op0(),
            Plan::XchgRegs | Plan::XchgMem | Plan::Xadd => op0() | register_bit(insn, 1),
            Plan::Cmpxchg => 1,
            Plan::RotateByCl(_) | Plan::Double { .. } | Plan::Crc32 => op0(),
            Plan::BtFar(_) => 0,
            Plan::CmpxchgPair => 0b101,
            Plan::X87 => u16::from(insn.mnemonic() == M::Fnstsw),
            Plan::Mul { .. } | Plan::Div { .. } | Plan::Widen | Plan::Sign => 0b101,
            Plan::Push | Plan::Pushf | Plan::Call | Plan::Ret | Plan::CallIndirect => 1 << 4,
            Plan::Pop => 1 << 4 | op0(),
            Plan::Leave => 1 << 4 | 1 << 5,
            Plan::Sse => op0() | 1 << 1,
            Plan::Handler | Plan::HandlerEnd => 0xffff,
        }
    }
}

/// Flags as a set: CF, OF, ZF, SF with PF.
pub(super) mod bit {
    pub const NONE: u8 = 0;
    pub const CF: u8 = 1;
    pub const OF: u8 = 2;
    pub const ZF: u8 = 4;
    pub const SP: u8 = 8;
    pub const ALL: u8 = 15;
}

/// The flags that a condition looks at (SDM vol. 1, appendix B).
pub(super) fn looks_at(cc: u8) -> u8 {
    match cc >> 1 {
        0 => bit::OF,
        1 => bit::CF,
        2 => bit::ZF,
        3 => bit::CF | bit::ZF,
        4 | 5 => bit::SP,
        6 => bit::SP | bit::OF,
        _ => bit::SP | bit::OF | bit::ZF,
    }
}

fn register_bit(insn: &Instruction, i: u32) -> u16 {
    if i < insn.op_count() && insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr() {
        1 << (insn.op_register(i).full_register().number() & 15)
    } else {
        0
    }
}

pub(super) fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

/// The masked count of a shift by an immediate.
pub(super) fn shift_count(insn: &Instruction) -> Option<u8> {
    if insn.op_kind(1) == OpKind::Register {
        return None;
    }
    let wide = operand_size(insn, 0) == 8;
    Some(insn.immediate(1) as u8 & if wide { 63 } else { 31 })
}

/// The masked count of SHLD or SHRD by an immediate.
pub(super) fn double_count(insn: &Instruction) -> Option<u8> {
    if insn.op_kind(2) == OpKind::Register {
        return None;
    }
    let wide = operand_size(insn, 0) == 8;
    Some(insn.immediate(2) as u8 & if wide { 63 } else { 31 })
}

/// Bytes of operand `i` (register or memory).
pub(super) fn operand_size(insn: &Instruction, i: u32) -> u8 {
    match insn.op_kind(i) {
        OpKind::Register => insn.op_register(i).size() as u8,
        _ => insn.memory_size().size() as u8,
    }
}

/// Whether a register is AH, CH, DH or BH.
pub(super) fn is_high(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

pub(super) fn has_high(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && is_high(insn.op_register(i)))
}

/// Operands that a template does not take: addresses that are not 64 bits wide; AH to BH but in the most
/// usual places.
fn is_awkward(insn: &Instruction, plan: Plan) -> bool {
    let narrow = |r: Register| r != Register::None && r != Register::RIP && !r.is_gpr64();
    let takes_high = match plan {
        Plan::Alu(operation) => operation != alu::ADC && operation != alu::SBB && !insn.has_lock_prefix(),
        Plan::Mov | Plan::Extend { .. } => true,
        _ => false,
    };
    let plain_disp = insn.memory_base() == Register::None && insn.memory_index() == Register::None;
    (has_high(insn) && !takes_high)
        || has_memory(insn)
            && (narrow(insn.memory_base())
                || narrow(insn.memory_index())
                || (plain_disp && insn.memory_displ_size() == 4))
}

/// How to translate an instruction of 64-bit code; `end`: how the interpreter's decoder says that it
/// ends a block.
pub(super) fn plan(insn: &Instruction, end: Option<End>) -> Plan {
    let template = template(insn).filter(|plan| !is_awkward(insn, *plan));
    template.unwrap_or(match end {
        None => Plan::Handler,
        Some(End::Side) => Plan::Stop,
        Some(_) => Plan::HandlerEnd,
    })
}

fn template(insn: &Instruction) -> Option<Plan> {
    flow(insn)
        .or_else(|| arithmetic(insn))
        .or_else(|| moves(insn))
        .or_else(|| super::lower::sse::is_plain(insn).then_some(Plan::Sse))
        .or_else(|| x87::is_plain(insn).then_some(Plan::X87))
}

fn flow(insn: &Instruction) -> Option<Plan> {
    let near = insn.op_count() > 0 && insn.op_kind(0) == OpKind::NearBranch64;
    let wide = insn.op_count() > 0 && operand_size(insn, 0) == 8;
    Some(match insn.mnemonic() {
        M::Jmp if near => Plan::Jmp,
        M::Call if near => Plan::Call,
        M::Ret if matches!(insn.code(), Code::Retnq | Code::Retnq_imm16) => Plan::Ret,
        M::Jmp
            if wide && insn.flow_control() == FlowControl::IndirectBranch && !insn.is_jmp_far_indirect() =>
        {
            Plan::JmpIndirect
        }
        M::Call
            if wide && insn.flow_control() == FlowControl::IndirectCall && !insn.is_call_far_indirect() =>
        {
            Plan::CallIndirect
        }
        _ if near && insn.is_jcc_short_or_near() => Plan::Jcc(condition(insn)?),
        _ => return None,
    })
}

fn arithmetic(insn: &Instruction) -> Option<Plan> {
    Some(match insn.mnemonic() {
        M::Add => Plan::Alu(alu::ADD),
        M::Or => Plan::Alu(alu::OR),
        M::Adc | M::Sbb if insn.has_lock_prefix() => return None,
        M::Adc => Plan::Alu(alu::ADC),
        M::Sbb => Plan::Alu(alu::SBB),
        M::And => Plan::Alu(alu::AND),
        M::Sub => Plan::Alu(alu::SUB),
        M::Xor => Plan::Alu(alu::XOR),
        M::Cmp => Plan::Alu(alu::CMP),
        M::Test => Plan::Alu(alu::TEST),
        M::Inc => Plan::Unary(alu::INC),
        M::Dec => Plan::Unary(alu::DEC),
        M::Neg => Plan::Unary(alu::NEG),
        M::Not => Plan::Unary(alu::NOT),
        M::Shl | M::Sal => shift(insn, shifts::SHL)?,
        M::Shr => shift(insn, shifts::SHR)?,
        M::Sar => shift(insn, shifts::SAR)?,
        M::Rol => shift(insn, shifts::ROL)?,
        M::Ror => shift(insn, shifts::ROR)?,
        M::Imul if insn.op_count() > 1 => Plan::Imul,
        M::Imul if operand_size(insn, 0) > 1 => Plan::Mul { signed: true },
        M::Mul if operand_size(insn, 0) > 1 => Plan::Mul { signed: false },
        M::Div if operand_size(insn, 0) > 2 => Plan::Div { signed: false },
        M::Idiv if operand_size(insn, 0) > 2 => Plan::Div { signed: true },
        M::Bt | M::Bts | M::Btr | M::Btc => {
            let kind = match insn.mnemonic() {
                M::Bt => bits::BT,
                M::Bts => bits::BTS,
                M::Btr => bits::BTR,
                _ => bits::BTC,
            };
            // A register offset reaches beyond a memory operand.
            match insn.op_kind(0) == OpKind::Memory && insn.op_kind(1) == OpKind::Register {
                true if operand_size(insn, 0) == 2 => return None,
                true => Plan::BtFar(kind),
                false => Plan::Bt(kind),
            }
        }
        M::Bsf => Plan::BitScan { reverse: false },
        M::Bsr => Plan::BitScan { reverse: true },
        M::Popcnt if super::host_has_popcnt() => Plan::Popcnt,
        M::Crc32 if super::host_has_sse42() => Plan::Crc32,
        M::Shld => double(insn, true)?,
        M::Shrd => double(insn, false)?,
        _ => return None,
    })
}

/// Shifts by an immediate, and of registers by CL. A rotation by 0 modulo the width, or of bytes and
/// words by more than it, is left to the interpreter, as are rotations of CL by itself.
fn shift(insn: &Instruction, operation: u8) -> Option<Plan> {
    use shifts::{ROL, ROR};
    let rotates = operation == ROL || operation == ROR;
    match shift_count(insn) {
        None if insn.op_kind(0) != OpKind::Register || operand_size(insn, 0) < 4 => None,
        None if rotates && insn.op_register(0).full_register() == Register::RCX => None,
        None if rotates => Some(Plan::RotateByCl(operation)),
        Some(n) if rotates && n >= 8 * operand_size(insn, 0) => None,
        _ => Some(Plan::Shift(operation)),
    }
}

/// SHLD and SHRD of registers of 4 or 8 bytes. A count of 0 is left to the interpreter.
fn double(insn: &Instruction, left: bool) -> Option<Plan> {
    let plain = insn.op_kind(0) == OpKind::Register && operand_size(insn, 0) >= 4;
    (plain && double_count(insn) != Some(0)).then_some(Plan::Double { left })
}

fn moves(insn: &Instruction) -> Option<Plan> {
    let gpr_or_mem = |i: u32| match insn.op_kind(i) {
        OpKind::Register => insn.op_register(i).is_gpr(),
        _ => true,
    };
    let rex_push = insn.stack_pointer_increment().unsigned_abs() == 8;
    Some(match insn.mnemonic() {
        M::Mov if gpr_or_mem(0) && gpr_or_mem(1) => Plan::Mov,
        M::Movnti => Plan::Mov,
        M::Movzx => Plan::Extend { signed: false },
        M::Movsx | M::Movsxd => Plan::Extend { signed: true },
        M::Lea if operand_size(insn, 0) >= 4 => Plan::Lea,
        M::Xchg if has_memory(insn) => Plan::XchgMem,
        M::Xchg => Plan::XchgRegs,
        M::Xadd if has_memory(insn) => Plan::Xadd,
        M::Cmpxchg if has_memory(insn) => Plan::Cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => Plan::CmpxchgPair,
        M::Push if rex_push && gpr_or_mem(0) => Plan::Push,
        M::Pop if rex_push && insn.op_kind(0) == OpKind::Register && gpr_or_mem(0) => Plan::Pop,
        M::Leave if insn.code() == Code::Leaveq => Plan::Leave,
        M::Bswap if operand_size(insn, 0) >= 4 => Plan::Bswap,
        M::Cbw | M::Cwde | M::Cdqe => Plan::Widen,
        M::Cwd | M::Cdq | M::Cqo => Plan::Sign,
        M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 | M::Prefetch | M::Prefetchw => Plan::Nop,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Clflush => Plan::Nop,
        M::Lfence | M::Sfence => Plan::Nop,
        M::Mfence => Plan::Fence,
        M::Cli => Plan::Cli,
        M::Sti => Plan::Sti,
        M::Swapgs => Plan::Swapgs,
        M::Pushfq => Plan::Pushf,
        _ => {
            let cc = condition(insn)?;
            match (insn.op_count(), insn.op_kind(0)) {
                (1, OpKind::Register | OpKind::Memory) => Plan::Setcc(cc),
                (2, OpKind::Register) if insn.op_register(0).is_gpr() => Plan::Cmov(cc),
                _ => return None,
            }
        }
    })
}

/// SSE instructions that set all arithmetic flags.
pub(super) fn sse_writes_flags(m: M) -> bool {
    matches!(m, M::Comiss | M::Ucomiss | M::Comisd | M::Ucomisd | M::Ptest | M::Pcmpistri | M::Pcmpistrm)
}
