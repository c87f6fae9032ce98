//! The code that all translations share: the way in, the way out, and the ways into Rust and back.
//!
//! The host's stack is aligned to 16 bytes while translations run.

use super::cc::op;
use super::emit::{Emit, Mem, Rm, cc};
use super::emit_x86_64::Asm;
use super::lower::stack::thunk_number;
use super::lower::{Thunks, leave};
use super::regs::{self, CALLER_SAVED, CPU, PAIRS, STATE, StackFields, T0, T1, field, home, stack_fields};
use super::state::x87;
use crate::mmu::STACK_LIMITS;
use crate::ops::alu::{ADD, AND, CMP, SUB};

const RAX: u8 = 0;
const RDX: u8 = 2;
const HOST_RSP: u8 = 4;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// What a callee must preserve, besides RSP (System V ABI, 3.2.1).
const CALLEE_SAVED: [u8; 6] = [5, 3, 12, 13, 14, 15];

/// Addresses of the Rust functions that translations call.
pub(super) struct Helpers {
    pub fill: usize,
    pub handler: usize,
    pub flags: usize,
    pub indirect: usize,
    pub unlinked: usize,
    pub transfer: usize,
    pub x87_out: usize,
    pub enable: usize,
}

fn push(a: &mut Asm, r: u8, opcode: u8) {
    if r > 7 {
        a.byte(0x41);
    }
    a.byte(opcode | r & 7);
}

fn spill(a: &mut Asm, pairs: &[(u8, u8)]) {
    for (g, host) in pairs {
        a.store(8, *host, home(*g));
    }
}

fn reload(a: &mut Asm, pairs: &[(u8, u8)]) {
    for (g, host) in pairs {
        a.load(8, *host, home(*g));
    }
}

fn stack(a: &mut Asm, by: i32) {
    let operation = if by < 0 { 5 } else { 0 };
    a.alu_imm(8, operation, Rm::Reg(HOST_RSP), by.abs());
}

/// Calls Rust with the CPU as the first argument; the stack is aligned.
fn call_aligned(a: &mut Asm, function: usize) {
    a.lea(RDI, Mem::at(STATE, CPU));
    a.mov_imm(RAX, function as u64);
    a.bytes(&[0xff, 0xd0]);
}

/// The same where the stack is misaligned by a return address.
fn call(a: &mut Asm, function: usize) {
    stack(a, -8);
    call_aligned(a, function);
    stack(a, 8);
}

/// MOVUPS of all XMM registers from or to their places, then LDMXCSR or STMXCSR.
fn xmm(a: &mut Asm, store: bool) {
    for i in 0..16u8 {
        a.op(0, false, false, &[0x0f, 0x10 | u8::from(store)], i, field(regs::XMM + 16 * i32::from(i)));
    }
}

fn mxcsr(a: &mut Asm, store: bool, place: i32) {
    a.op(0, false, false, &[0x0f, 0xae], 2 + u8::from(store), field(place));
}

/// Runs what `inner` emits only while guest SSE registers are in the host's.
fn if_live(a: &mut Asm, inner: impl FnOnce(&mut Asm)) {
    a.alu_imm(1, 7, field(regs::LIVE), 0);
    let over = a.jcc(cc::E);
    inner(a);
    a.bind(over);
}

fn save_xmm(a: &mut Asm) {
    if_live(a, |a| {
        xmm(a, true);
        mxcsr(a, true, regs::MXCSR);
        mxcsr(a, false, regs::HOST_MXCSR);
    });
}

/// The guest's x87 state out of the host's registers, which are as Rust code expects them then.
fn save_x87(a: &mut Asm) {
    a.alu_imm(1, 7, field(regs::X87), i32::from(x87::LIVE));
    let over = a.jcc(cc::NE);
    // FNSAVE
    a.op(0, false, false, &[0xdd], 6, field(regs::X87_IMAGE));
    a.store_imm(1, field(regs::X87), i32::from(x87::SAVED));
    a.bind(over);
}

fn load_xmm(a: &mut Asm) {
    if_live(a, |a| {
        xmm(a, false);
        mxcsr(a, false, regs::MXCSR);
    });
}

/// All of it, for offset 0 of the code memory.
pub(super) fn emit(helpers: &Helpers) -> (Vec<u8>, Thunks) {
    let mut a = Asm::default();
    let mut t = Thunks { enter: a.pos(), ..Thunks::default() };
    enter(&mut a);
    t.leave = a.pos();
    spill(&mut a, &PAIRS);
    save_xmm(&mut a);
    save_x87(&mut a);
    let bare = a.pos();
    leave(&mut a);
    t.fill = a.pos();
    fill(&mut a, helpers.fill, t.leave);
    t.handler = a.pos();
    handler(&mut a, helpers.handler, bare);
    t.collapse = a.pos();
    flags(&mut a, helpers.flags, false);
    t.flags = a.pos();
    flags(&mut a, helpers.flags, true);
    t.xmm_load = a.pos();
    xmm_load(&mut a, t.leave);
    t.x87_load = a.pos();
    x87_load(&mut a, helpers.x87_out, t.leave);
    t.indirect = a.pos();
    indirect(&mut a, helpers.indirect, t.leave);
    t.missed = a.pos();
    missed(&mut a, t.leave);
    t.unlinked = a.pos();
    unlinked(&mut a, helpers.unlinked, t.leave);
    t.transfer = a.pos();
    transfer(&mut a, helpers.transfer, bare);
    t.enable = a.pos();
    fill(&mut a, helpers.enable, t.leave);
    for (bank, size, write) in
        (0..2).flat_map(|b| [1, 2, 4, 8, 16].map(|s| [(b, s, false), (b, s, true)])).flatten()
    {
        if let Some(number) = thunk_number(size, write) {
            t.stack[bank][number] = a.pos();
            stack_page(&mut a, stack_fields(bank), size, write, t.fill);
        }
    }
    (a.buf, t)
}

/// `enter(RDI = Cpu, RSI = translation)`.
fn enter(a: &mut Asm) {
    for r in CALLEE_SAVED {
        push(a, r, 0x50);
    }
    stack(a, -8);
    a.lea(STATE, Mem::at(RDI, -CPU));
    a.mov(T0, RSI);
    reload(a, &PAIRS);
    // jmp T0
    a.op(0, false, false, &[0xff], 4, Rm::Reg(T0));
}

/// Returns T1 to Rust; guest registers are in memory.
fn leave(a: &mut Asm) {
    a.store_imm(1, field(regs::LIVE), 0);
    a.load(4, RAX, Rm::Reg(T1));
    stack(a, 8);
    for r in CALLEE_SAVED.iter().rev() {
        push(a, *r, 0x58);
    }
    a.byte(0xc3);
}

/// Called with the linear address in T0 and the site in T1; comes back when trying again will hit.
fn fill(a: &mut Asm, function: usize, out: usize) {
    spill(a, &CALLER_SAVED);
    a.store(8, T0, field(regs::LIN));
    save_xmm(a);
    a.mov(RSI, T0);
    a.load(4, RDX, Rm::Reg(T1));
    call(a, function);
    a.load(4, T1, Rm::Reg(RAX));
    load_xmm(a);
    reload(a, &CALLER_SAVED);
    a.load(8, T0, field(regs::LIN));
    a.sized(4, 0x84, T1, Rm::Reg(T1));
    let failed = a.jcc(cc::NE);
    a.byte(0xc3);
    a.bind(failed);
    stack(a, 8);
    let jump = a.jmp();
    a.bind_to(jump, out);
}

/// Called with a linear address in T0 and the site in T1. Comes back with the host's address in T0 and a flag that says
/// so, or with the same address and the other flag (ZF): then trying again will find it.
fn stack_page(a: &mut Asm, page: StackFields, size: u8, write: bool, fill: usize) {
    let (read, written, host, info) = crate::mmu::TLB_FIELDS;
    let (shift, entries) = crate::mmu::TLB_SHAPE;
    let entry = |offset: usize| Rm::Mem(Mem::at(T1, offset as i32));
    let last = 4096 - i32::from(size);
    a.store(8, T1, field(regs::SITE));
    a.mov(T1, T0);
    a.group(8, 0xc1, 5, Rm::Reg(T1));
    a.byte(12 - shift);
    a.alu_imm(4, AND, Rm::Reg(T1), ((entries - 1) << shift) as i32);
    a.alu(8, ADD, T1, field(regs::TLB));
    a.alu(8, SUB, T0, entry(written));
    a.alu_imm(8, CMP, Rm::Reg(T0), last);
    let other = a.jcc(cc::A);
    a.store(8, T0, field(regs::LIN));
    for (from, to) in [(written, page.base), (host, page.host), (info, page.info)] {
        a.load(8, T0, entry(from));
        a.store(8, T0, field(to));
    }
    for bytes in (0..STACK_LIMITS).map(|k| 8 << k) {
        a.store_imm(8, field(page.limit(bytes)), 4097 - bytes as i32);
    }
    a.load(8, T0, field(regs::LIN));
    a.alu(8, ADD, T0, field(page.host));
    a.byte(0xc3);
    a.bind(other);
    a.alu(8, ADD, T0, entry(written));
    if !write {
        a.alu(8, SUB, T0, entry(read));
        a.alu_imm(8, CMP, Rm::Reg(T0), last);
        let miss = a.jcc(cc::A);
        a.alu(8, ADD, T0, entry(host));
        a.byte(0xc3);
        a.bind(miss);
        a.alu(8, ADD, T0, entry(read));
    }
    a.load(8, T1, field(regs::SITE));
    let jump = a.jmp();
    a.bind_to(jump, fill);
}

/// Called with the site in T1.
fn handler(a: &mut Asm, function: usize, bare: usize) {
    spill(a, &PAIRS);
    save_xmm(a);
    save_x87(a);
    a.load(4, RSI, Rm::Reg(T1));
    call(a, function);
    a.sized(4, 0x84, RAX, Rm::Reg(RAX));
    let leaves = a.jcc(cc::NE);
    load_xmm(a);
    reload(a, &PAIRS);
    a.byte(0xc3);
    a.bind(leaves);
    a.load(4, T1, Rm::Reg(RAX));
    stack(a, 8);
    let jump = a.jmp();
    a.bind_to(jump, bare);
}

/// Jumped to with the site in T1, whose instruction ends its translation. Goes on in another one.
fn transfer(a: &mut Asm, function: usize, bare: usize) {
    spill(a, &PAIRS);
    save_xmm(a);
    save_x87(a);
    a.load(4, RSI, Rm::Reg(T1));
    call_aligned(a, function);
    a.sized(4, 0x84, RAX, Rm::Reg(RAX));
    let leaves = a.jcc(cc::NE);
    // Kernels use no SSE: who does loads it.
    a.store_imm(1, field(regs::LIVE), 0);
    reload(a, &PAIRS);
    jump_to_target(a);
    a.bind(leaves);
    a.load(4, T1, Rm::Reg(RAX));
    let jump = a.jmp();
    a.bind_to(jump, bare);
}

fn jump_to_target(a: &mut Asm) {
    a.op(0, false, false, &[0xff], 4, field(regs::TARGET));
}

/// Leaves with the number in `JitState::site` and this reason.
fn leave_for_site(a: &mut Asm, how: u32, out: usize) {
    a.load(4, T1, field(regs::SITE));
    a.group(4, 0xc1, 4, Rm::Reg(T1));
    a.byte(leave::BITS as u8);
    if how != 0 {
        a.alu_imm(4, 1, Rm::Reg(T1), how as i32);
    }
    let jump = a.jmp();
    a.bind_to(jump, out);
}

/// Called with the linear address of a branch's target in T0 and the site in T1. Comes back with the
/// target in T0 and its entry in the jump cache in T1.
fn indirect(a: &mut Asm, function: usize, out: usize) {
    spill(a, &CALLER_SAVED);
    a.store(8, T0, field(regs::LIN));
    a.store(8, T1, field(regs::SITE));
    save_xmm(a);
    a.mov(RSI, T0);
    call(a, function);
    a.mov(T1, RAX);
    load_xmm(a);
    reload(a, &CALLER_SAVED);
    a.load(8, T0, field(regs::LIN));
    a.sized(8, 0x84, T1, Rm::Reg(T1));
    let failed = a.jcc(cc::E);
    a.byte(0xc3);
    a.bind(failed);
    stack(a, 8);
    leave_for_site(a, leave::STEP, out);
}

/// Jumped to when an indirect branch is done: its target is for the dispatcher.
fn missed(a: &mut Asm, out: usize) {
    a.load(8, T0, field(regs::MISSED_TARGET));
    a.store(8, T0, field(regs::RIP));
    a.mov_imm(T1, u64::from(leave::RIP));
    let jump = a.jmp();
    a.bind_to(jump, out);
}

/// Jumped to with an exit's number in T1: it leads nowhere yet, or the budget is used up.
fn unlinked(a: &mut Asm, function: usize, out: usize) {
    a.store(8, T1, field(regs::SITE));
    a.alu_imm(8, 7, field(regs::BUDGET), 0);
    let over = a.jcc(cc::S);
    spill(a, &CALLER_SAVED);
    save_xmm(a);
    a.load(4, RSI, Rm::Reg(T1));
    call_aligned(a, function);
    a.load(4, T1, Rm::Reg(RAX));
    load_xmm(a);
    reload(a, &CALLER_SAVED);
    a.sized(4, 0x84, T1, Rm::Reg(T1));
    let failed = a.jcc(cc::E);
    jump_to_target(a);
    a.bind(over);
    a.bind(failed);
    leave_for_site(a, leave::EXIT, out);
}

/// Called with a way to leave in T1, which is taken where the x87 cannot be used.
fn x87_load(a: &mut Asm, function: usize, out: usize) {
    a.alu_imm(1, 7, field(regs::X87_OK), 0);
    let no = a.jcc(cc::E);
    spill(a, &CALLER_SAVED);
    save_xmm(a);
    call(a, function);
    load_xmm(a);
    reload(a, &CALLER_SAVED);
    // FRSTOR
    a.op(0, false, false, &[0xdd], 4, field(regs::X87_IMAGE));
    a.store_imm(1, field(regs::X87), i32::from(x87::LIVE));
    a.byte(0xc3);
    a.bind(no);
    stack(a, 8);
    let jump = a.jmp();
    a.bind_to(jump, out);
}

/// Evaluates the flags; with `host`, leaves them in the host's.
fn flags(a: &mut Asm, function: usize, host: bool) {
    if host {
        usual_flags(a);
    }
    spill(a, &CALLER_SAVED);
    save_xmm(a);
    call(a, function);
    load_xmm(a);
    reload(a, &CALLER_SAVED);
    if host {
        // push [TMP] ; popfq
        a.op(0, false, false, &[0xff], 6, field(regs::TMP));
        a.byte(0x9d);
    }
    a.byte(0xc3);
}

/// The usual descriptions, without Rust: their operation is done again.
fn usual_flags(a: &mut Asm) {
    let usual: [(u8, u8); 4] = [(op::CMP, 8), (op::CMP, 4), (op::LOGIC, 8), (op::LOGIC, 4)];
    for (operation, size) in usual {
        // Nothing over it: the byte above is zero.
        a.group(2, 0x80, CMP, field(regs::CC_OP));
        a.imm(2, i32::from(operation | size.trailing_zeros() as u8));
        let other = a.jcc(cc::NE);
        a.load(size, T0, field(regs::CC_A));
        if operation == op::CMP {
            a.alu(size, CMP, T0, field(regs::CC_B));
        } else {
            a.sized(size, 0x84, T0, Rm::Reg(T0));
        }
        a.byte(0xc3);
        a.bind(other);
    }
}

/// Called with a way to leave in T1, which is taken where SSE cannot be used.
fn xmm_load(a: &mut Asm, out: usize) {
    a.alu_imm(1, 7, field(regs::SSE_OK), 0);
    let no = a.jcc(cc::E);
    a.store_imm(1, field(regs::LIVE), 1);
    load_xmm(a);
    a.byte(0xc3);
    a.bind(no);
    stack(a, 8);
    let jump = a.jmp();
    a.bind_to(jump, out);
}
