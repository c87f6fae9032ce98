//! Data movement, arithmetic, bits, stack, strings.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::operands::{log2, reg_index, segment};
use super::{Decoded, End, Form};
use crate::cpu::Mode;
use crate::op::{FAR_BITS, FRAME, Handler, Op, STACK};
use crate::ops::operand::FLAT;
use crate::ops::{alu, atomic, bcd, bits, cond, mov, mul_div, shifts, stack, string, system};

/// Decodes an instruction of these groups; `None` when it is none of them.
pub(crate) fn decode(f: &Form<'_>) -> Option<Decoded> {
    if f.insn.is_string_instruction() {
        return strings(f);
    }
    arithmetic(f).or_else(|| movement(f)).or_else(|| stack_ops(f)).or_else(|| bit_ops(f)).or_else(|| misc(f))
}

fn arithmetic(f: &Form<'_>) -> Option<Decoded> {
    let comparison = match f.insn.mnemonic() {
        Mnemonic::Cmp => Some(alu::CMP),
        Mnemonic::Test => Some(alu::TEST),
        _ => None,
    };
    if let Some(operation) = comparison
        && f.is_reg(0)
        && !f.is_mem(1)
    {
        let form = if f.is_reg(1) { alu::RR } else { alu::RI };
        let compare = Some((operation, form, f.size(0)));
        return Some(Decoded { op: two(f, operation), end: None, fp: None, compare, jcc: false });
    }
    let op = match f.insn.mnemonic() {
        Mnemonic::Add => two(f, alu::ADD),
        Mnemonic::Or => two(f, alu::OR),
        Mnemonic::Adc => two(f, alu::ADC),
        Mnemonic::Sbb => two(f, alu::SBB),
        Mnemonic::And => two(f, alu::AND),
        Mnemonic::Sub => two(f, alu::SUB),
        Mnemonic::Xor => two(f, alu::XOR),
        Mnemonic::Cmp => two(f, alu::CMP),
        Mnemonic::Test => two(f, alu::TEST),
        Mnemonic::Inc => one(f, alu::INC),
        Mnemonic::Dec => one(f, alu::DEC),
        Mnemonic::Neg => one(f, alu::NEG),
        Mnemonic::Not => one(f, alu::NOT),
        Mnemonic::Rol => shift(f, shifts::ROL),
        Mnemonic::Ror => shift(f, shifts::ROR),
        Mnemonic::Rcl => shift(f, shifts::RCL),
        Mnemonic::Rcr => shift(f, shifts::RCR),
        Mnemonic::Shl | Mnemonic::Sal => shift(f, shifts::SHL),
        Mnemonic::Shr => shift(f, shifts::SHR),
        Mnemonic::Sar => shift(f, shifts::SAR),
        Mnemonic::Shld => double_shift(f, 1),
        Mnemonic::Shrd => double_shift(f, 0),
        Mnemonic::Mul => wide(f, &mul_div::MUL[0]),
        Mnemonic::Imul if f.insn.op_count() == 1 => wide(f, &mul_div::MUL[1]),
        Mnemonic::Imul => imul(f),
        Mnemonic::Div => wide(f, &mul_div::DIV[0]),
        Mnemonic::Idiv => wide(f, &mul_div::DIV[1]),
        _ => return None,
    };
    Decoded::next(op)
}

/// The two-operand ALU group.
fn two(f: &Form<'_>, operation: u8) -> Op {
    let size = f.size(0);
    let mut op = Op { size, ..f.op() };
    let form = match (f.is_reg(0), f.is_reg(1), f.is_mem(1)) {
        (true, true, _) => {
            (op.dst, op.src) = (f.reg(0), f.reg(1));
            let zeroes = operation == alu::XOR || operation == alu::SUB;
            if zeroes && op.dst == op.src && size >= 4 {
                return Op { run: alu::zero_reg, ..op };
            }
            alu::RR
        }
        (true, false, true) => {
            op.dst = f.reg(0);
            alu::RM + f.kind()
        }
        (true, false, false) => {
            (op.dst, op.imm) = (f.reg(0), f.imm(1, size));
            alu::RI
        }
        (false, true, _) => {
            op.src = f.reg(1);
            if f.locked() { alu::LOCK_R } else { alu::MR + f.kind() }
        }
        (false, false, _) => {
            op.imm = f.imm(1, size);
            if f.locked() { alu::LOCK_I } else { alu::MI + f.kind() }
        }
    };
    op.run = alu::ALU[usize::from(operation)][usize::from(form)][log2(size)];
    op
}

fn one(f: &Form<'_>, operation: u8) -> Op {
    let mut op = f.op();
    let form = if f.is_reg(0) {
        op.dst = f.reg(0);
        alu::U_REG
    } else if f.locked() {
        alu::U_LOCK
    } else {
        alu::U_MEM + f.kind()
    };
    op.run = alu::UNARY[usize::from(operation)][usize::from(form)][log2(f.size(0))];
    op
}

fn shift(f: &Form<'_>, operation: u8) -> Op {
    let mut op = f.op();
    let by_cl = f.is_reg(1);
    let form = if f.is_reg(0) {
        op.dst = f.reg(0);
        shifts::REG_IMM
    } else if f.kind() == FLAT {
        shifts::FLAT_IMM
    } else {
        shifts::ANY_IMM
    };
    if !by_cl {
        op.imm = f.imm(1, 1);
    }
    op.run = shifts::SHIFT[usize::from(operation)][usize::from(form) + usize::from(by_cl)][log2(f.size(0))];
    op
}

fn double_shift(f: &Form<'_>, left: u8) -> Op {
    let mut op = Op { size: f.size(0), src: f.reg(1), aux: left, ..f.op() };
    if f.is_reg(2) {
        op.aux |= 2;
    } else {
        op.imm = f.imm(2, 1);
    }
    if f.is_reg(0) {
        Op { run: shifts::shld_reg, dst: f.reg(0), ..op }
    } else {
        Op { run: shifts::shld_mem, ..op }
    }
}

/// Source form of the multiply group for operand `i`.
fn source_form(f: &Form<'_>, i: u32, op: &mut Op) -> usize {
    if f.is_reg(i) {
        op.src = f.reg(i);
        usize::from(mul_div::SRC_REG)
    } else if f.kind() == FLAT {
        usize::from(mul_div::SRC_FLAT)
    } else {
        2
    }
}

fn wide(f: &Form<'_>, table: &[[Handler; 4]; 3]) -> Op {
    let mut op = f.op();
    let form = source_form(f, 0, &mut op);
    op.run = table[form][log2(f.size(0))];
    op
}

fn imul(f: &Form<'_>) -> Op {
    let size = f.size(0);
    let mut op = Op { dst: f.reg(0), ..f.op() };
    let form = source_form(f, 1, &mut op);
    let has_imm = f.insn.op_count() == 3;
    if has_imm {
        op.imm = f.imm(2, size);
    }
    op.run = mul_div::IMUL[usize::from(has_imm)][form][log2(size)];
    op
}

fn movement(f: &Form<'_>) -> Option<Decoded> {
    let op = match f.insn.mnemonic() {
        Mnemonic::Mov => return mov(f),
        Mnemonic::Movnti => store(f),
        Mnemonic::Movzx => extend(f, 0),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend(f, 1),
        Mnemonic::Lea => {
            let op = Op { size: f.size(0), dst: f.reg(0), ..f.op() };
            let fast = op.size == 8 && op.addr_size == 8;
            Op { run: if fast { mov::lea_64 } else { mov::lea }, ..op }
        }
        Mnemonic::Xchg => xchg(f),
        Mnemonic::Bswap => Op { run: mov::bswap, size: f.size(0), dst: f.reg(0), ..f.op() },
        Mnemonic::Cbw => Op { run: mov::cbw, size: 2, ..f.op() },
        Mnemonic::Cwde => Op { run: mov::cbw, size: 4, ..f.op() },
        Mnemonic::Cdqe => Op { run: mov::cbw, size: 8, ..f.op() },
        Mnemonic::Cwd => Op { run: mov::cwd, size: 2, ..f.op() },
        Mnemonic::Cdq => Op { run: mov::cwd, size: 4, ..f.op() },
        Mnemonic::Cqo => Op { run: mov::cwd, size: 8, ..f.op() },
        Mnemonic::Cmpxchg => paired(f, &atomic::CMPXCHG_RR, &atomic::CMPXCHG_MR),
        Mnemonic::Xadd => paired(f, &atomic::XADD_RR, &atomic::XADD_MR),
        Mnemonic::Cmpxchg8b => Op { run: atomic::cmpxchg_pair, size: 8, ..f.op() },
        Mnemonic::Cmpxchg16b => Op { run: atomic::cmpxchg_pair, size: 16, ..f.op() },
        _ => return conditional(f),
    };
    Decoded::next(op)
}

/// A store of a register.
fn store(f: &Form<'_>) -> Op {
    let run = mov::MOV_MR[usize::from(f.kind())][log2(f.size(1))];
    Op { run, src: f.reg(1), ..f.op() }
}

fn mov(f: &Form<'_>) -> Option<Decoded> {
    let (r0, r1) = (f.insn.op_register(0), f.insn.op_register(1));
    if f.is_reg(0) && (r0.is_cr() || r0.is_dr() || r0.is_tr()) {
        let op = Op { dst: r0.number() as u8, src: f.reg(1), size: f.size(1), ..f.op() };
        let op = Op { run: system::mov_to_control, aux: u8::from(r0.is_dr()), ..op };
        return if r0.is_tr() { None } else { Decoded::end(op, End::System) };
    }
    if f.is_reg(1) && (r1.is_cr() || r1.is_dr() || r1.is_tr()) {
        let op = Op { dst: f.reg(0), src: r1.number() as u8, size: f.size(0), ..f.op() };
        let op = Op { run: system::mov_from_control, aux: u8::from(r1.is_dr()), ..op };
        return if r1.is_tr() { None } else { Decoded::end(op, End::System) };
    }
    if f.is_reg(0) && r0.is_segment_register() {
        let src = if f.is_reg(1) { reg_index(r1) } else { 0 };
        let op = Op { dst: r0.number() as u8, src, aux: u8::from(f.is_mem(1)), ..f.op() };
        return Decoded::end(Op { run: mov::mov_to_sreg, ..op }, End::System);
    }
    if f.is_reg(1) && r1.is_segment_register() {
        let op = Op { src: r1.number() as u8, ..f.op() };
        return Decoded::next(if f.is_reg(0) {
            Op { run: mov::mov_from_sreg, dst: f.reg(0), size: f.size(0), ..op }
        } else {
            Op { run: mov::mov_mem_from_sreg, ..op }
        });
    }
    let size = f.size(0);
    let (k, kind) = (log2(size), usize::from(f.kind()));
    Decoded::next(match (f.is_reg(0), f.is_reg(1), f.is_mem(1)) {
        (true, true, _) => Op { run: mov::MOV_RR[k], dst: f.reg(0), src: f.reg(1), ..f.op() },
        (true, false, true) => Op { run: mov::MOV_RM[kind][k], dst: f.reg(0), ..f.op() },
        (true, false, false) => Op { run: mov::MOV_RI[k], dst: f.reg(0), imm: f.imm(1, size), ..f.op() },
        (false, true, _) => store(f),
        (false, false, _) => Op { run: mov::MOV_MI[kind][k], imm: f.imm(1, size), ..f.op() },
    })
}

fn extend(f: &Form<'_>, signed: usize) -> Op {
    let from = log2(f.size(1)).min(2);
    let mut op = Op { size: f.size(0), dst: f.reg(0), ..f.op() };
    let form = if f.is_reg(1) {
        op.src = f.reg(1);
        0
    } else {
        1 + usize::from(f.kind())
    };
    op.run = mov::EXT[signed][from][form];
    op
}

fn xchg(f: &Form<'_>) -> Op {
    let size = f.size(0);
    if f.is_reg(0) && f.is_reg(1) {
        return Op { run: mov::xchg_rr, size, dst: f.reg(0), src: f.reg(1), ..f.op() };
    }
    let src = if f.is_reg(1) { f.reg(1) } else { f.reg(0) };
    Op { run: mov::XCHG_MR[log2(size)], src, ..f.op() }
}

/// Destination register or memory, source register.
fn paired(f: &Form<'_>, regs: &[Handler; 4], mem: &[Handler; 4]) -> Op {
    let op = Op { src: f.reg(1), ..f.op() };
    if f.is_reg(0) {
        Op { run: regs[log2(f.size(0))], dst: f.reg(0), ..op }
    } else {
        Op { run: mem[log2(f.size(0))], ..op }
    }
}

/// The condition number of the encoding (SDM vol. 1, appendix B).
pub(crate) fn condition(insn: &Instruction) -> Option<u8> {
    let cc = insn.condition_code();
    (cc != ConditionCode::None).then(|| cc as u8 - 1)
}

/// SETcc and CMOVcc.
fn conditional(f: &Form<'_>) -> Option<Decoded> {
    let cc = condition(f.insn)?;
    let op = Op { aux: cc, ..f.op() };
    match f.insn.op_count() {
        1 if f.is_reg(0) => Decoded::next(Op { run: cond::SETCC[usize::from(cc)], dst: f.reg(0), ..op }),
        1 if f.is_mem(0) => Decoded::next(Op { run: cond::setcc_mem, ..op }),
        2 if f.is_reg(0) => {
            let op = Op { size: f.size(0), dst: f.reg(0), ..op };
            Decoded::next(if f.is_reg(1) {
                Op { run: cond::CMOV[usize::from(cc)], src: f.reg(1), ..op }
            } else {
                Op { run: cond::cmov_mem, ..op }
            })
        }
        _ => None,
    }
}

fn stack_ops(f: &Form<'_>) -> Option<Decoded> {
    let moved = f.insn.stack_pointer_increment().unsigned_abs() as u8;
    let long = f.mode == Mode::Long64;
    let op = Op { size: moved, ..f.op() };
    let op = Op { scale: op.scale | STACK, ..op };
    let op = match f.insn.mnemonic() {
        Mnemonic::Push => return push(f, op, long),
        Mnemonic::Pop => return pop(f, op, long),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => Op { run: stack::pushf, ..op },
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            return Decoded::end(Op { run: stack::popf, ..op }, End::Direct);
        }
        Mnemonic::Pusha | Mnemonic::Pushad => Op { run: stack::pusha, size: moved / 8, ..op },
        Mnemonic::Popa | Mnemonic::Popad => Op { run: stack::popa, size: moved / 8, ..op },
        Mnemonic::Enter => {
            let imm = f.imm(0, 2) | (f.imm(1, 1) << 16);
            Op { run: stack::enter, size: frame_size(f), imm, scale: STACK | FRAME, ..op }
        }
        Mnemonic::Leave => Op { run: stack::leave, size: frame_size(f), scale: STACK | FRAME, ..op },
        _ => return None,
    };
    Decoded::next(op)
}

/// Operand size of ENTER and LEAVE.
fn frame_size(f: &Form<'_>) -> u8 {
    use iced_x86::Code;
    match f.insn.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved => 4,
        _ => 8,
    }
}

fn push(f: &Form<'_>, op: Op, long: bool) -> Option<Decoded> {
    let wide = long && op.size == 8;
    Decoded::next(match f.insn.op_kind(0) {
        OpKind::Register if f.insn.op_register(0).is_segment_register() => {
            Op { run: stack::push_sreg, src: f.insn.op_register(0).number() as u8, ..op }
        }
        OpKind::Register if wide => Op { run: stack::push_r64, src: f.reg(0), ..op },
        OpKind::Register => Op { run: stack::push_reg, src: f.reg(0), ..op },
        OpKind::Memory if wide && f.kind() == FLAT => Op { run: stack::push_m64, ..op },
        OpKind::Memory => Op { run: stack::push_mem, ..op },
        _ => Op { run: stack::push_imm, imm: f.imm(0, op.size), ..op },
    })
}

fn pop(f: &Form<'_>, op: Op, long: bool) -> Option<Decoded> {
    match f.insn.op_kind(0) {
        OpKind::Register if f.insn.op_register(0).is_segment_register() => {
            let dst = f.insn.op_register(0).number() as u8;
            Decoded::end(Op { run: stack::pop_sreg, dst, ..op }, End::System)
        }
        OpKind::Register if long && op.size == 8 => {
            Decoded::next(Op { run: stack::pop_r64, dst: f.reg(0), ..op })
        }
        OpKind::Register => Decoded::next(Op { run: stack::pop_reg, dst: f.reg(0), ..op }),
        _ => Decoded::next(Op { run: stack::pop_mem, ..op }),
    }
}

fn bit_ops(f: &Form<'_>) -> Option<Decoded> {
    let op = match f.insn.mnemonic() {
        Mnemonic::Bt => bit_test(f, bits::BT),
        Mnemonic::Bts => bit_test(f, bits::BTS),
        Mnemonic::Btr => bit_test(f, bits::BTR),
        Mnemonic::Btc => bit_test(f, bits::BTC),
        Mnemonic::Bsf => Op { run: bits::bit_scan, ..from_source(f, 0) },
        Mnemonic::Bsr => Op { run: bits::bit_scan, ..from_source(f, 1) },
        Mnemonic::Popcnt => Op { run: bits::popcnt, ..from_source(f, 0) },
        Mnemonic::Crc32 => Op { run: bits::crc32, imm: u64::from(f.size(1)), ..from_source(f, 0) },
        Mnemonic::Lahf => Op { run: bits::flag_op, aux: 0, ..f.op() },
        Mnemonic::Sahf => Op { run: bits::flag_op, aux: 1, ..f.op() },
        Mnemonic::Clc => Op { run: bits::flag_op, aux: 2, ..f.op() },
        Mnemonic::Stc => Op { run: bits::flag_op, aux: 3, ..f.op() },
        Mnemonic::Cmc => Op { run: bits::flag_op, aux: 4, ..f.op() },
        Mnemonic::Cld => Op { run: bits::flag_op, aux: 5, ..f.op() },
        Mnemonic::Std => Op { run: bits::flag_op, aux: 6, ..f.op() },
        Mnemonic::Salc => Op { run: bits::flag_op, aux: 7, ..f.op() },
        _ => return None,
    };
    Decoded::next(op)
}

fn bit_test(f: &Form<'_>, kind: u8) -> Op {
    let mut op = Op { size: f.size(0), aux: kind, ..f.op() };
    if f.is_reg(1) {
        op.src = f.reg(1);
    } else {
        op.imm = f.imm(1, 1);
        op.aux |= bits::BY_IMM;
    }
    if f.is_reg(0) {
        return Op { run: bits::bt_reg, dst: f.reg(0), ..op };
    }
    if f.locked() {
        op.aux |= bits::LOCKED;
    }
    Op { run: bits::bt_mem, scale: op.scale | FAR_BITS, ..op }
}

/// Destination register, source register or memory.
fn from_source(f: &Form<'_>, aux: u8) -> Op {
    let op = Op { size: f.size(0), dst: f.reg(0), aux, ..f.op() };
    if f.is_reg(1) { Op { src: f.reg(1), ..op } } else { Op { aux: aux | bits::FROM_MEM, ..op } }
}

fn misc(f: &Form<'_>) -> Option<Decoded> {
    let adjust = |kind: u8| Op { run: bcd::adjust, aux: kind, ..f.op() };
    let op = match f.insn.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Clflush => Op { run: mov::nop, ..f.op() },
        Mnemonic::Mfence => Op { run: mov::fence, ..f.op() },
        Mnemonic::Pause => Op { run: system::pause, ..f.op() },
        Mnemonic::Xlatb => {
            let op = Op { run: mov::xlat, seg: segment(f.insn.memory_segment(), f.mode), ..f.op() };
            let size = match f.insn.memory_base() {
                Register::BX => 2,
                Register::EBX => 4,
                _ => 8,
            };
            Op { addr_size: size, ..op }
        }
        Mnemonic::Lds => return far_pointer(f, 3),
        Mnemonic::Les => return far_pointer(f, 0),
        Mnemonic::Lfs => return far_pointer(f, 4),
        Mnemonic::Lgs => return far_pointer(f, 5),
        Mnemonic::Lss => return far_pointer(f, 2),
        Mnemonic::Daa => adjust(bcd::DAA),
        Mnemonic::Das => adjust(bcd::DAS),
        Mnemonic::Aaa => adjust(bcd::AAA),
        Mnemonic::Aas => adjust(bcd::AAS),
        Mnemonic::Aam => Op { imm: f.imm(0, 1), ..adjust(bcd::AAM) },
        Mnemonic::Aad => Op { imm: f.imm(0, 1), ..adjust(bcd::AAD) },
        _ => return None,
    };
    Decoded::next(op)
}

fn far_pointer(f: &Form<'_>, seg: u8) -> Option<Decoded> {
    let op = Op { run: mov::load_far_pointer, aux: seg, dst: f.reg(0), size: f.size(0), ..f.op() };
    Decoded::end(op, End::System)
}

fn strings(f: &Form<'_>) -> Option<Decoded> {
    let insn = f.insn;
    let size = insn.memory_size().size() as u8;
    let k = log2(size);
    let (table, compares): (&[Handler; 4], bool) = match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => (&string::MOVS, false),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => (&string::STOS, false),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => (&string::LODS, false),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => (&string::SCAS, true),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => (&string::CMPS, true),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => (&string::INS, false),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => (&string::OUTS, false),
        _ => return None,
    };
    // Any string operand tells the address size.
    let addr_size = (0..insn.op_count()).find_map(|i| string_address_size(insn.op_kind(i))).unwrap_or(8);
    let source = (0..insn.op_count()).any(|i| is_source(insn.op_kind(i)));
    let seg = if source { segment(insn.memory_segment(), f.mode) } else { crate::op::SEG_FLAT };
    let aux = match (insn.has_repe_prefix(), insn.has_repne_prefix()) {
        (true, _) => string::REPE,
        (_, true) if compares => string::REPNE,
        (_, true) => string::REPE,
        _ => string::NO_REP,
    };
    Decoded::next(Op { run: table[k], aux, size, seg, addr_size, ..f.op() })
}

fn is_source(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI)
}

fn string_address_size(kind: OpKind) -> Option<u8> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    }
}
