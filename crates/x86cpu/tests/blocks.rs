//! What decoding ahead, caching, chaining and translating must not change: counts, budgets, rewritten code,
//! instructions that stop in the middle.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arch::x86_64::cpuid::{for_vcpu, portable};
use arch::x86_64::hot::{CodeMode, HotBlock};
use arch::x86_64::regs::{gpr, seg};
use arch::x86_64::state::{MpState, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Foresight, HotSet, KeptCode, Stop};

const TABLES: u64 = 0x1000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const STACK: u64 = 0x9000;
const DATA: u64 = 0x2_0000;
const CODE: u64 = 0x10_0000;

thread_local! {
    /// How the machines of the running test execute.
    static ENGINE: Cell<Engine> = const { Cell::new(Engine::Interpreter) };
    /// Every place in their code is said to be hot.
    static FORESEEN: Cell<bool> = const { Cell::new(false) };
}

/// A translator that would not translate what these machines run.
const HARDLY: Engine = Engine::Jit { after: 1_000_000, longest: 64 };

/// Every test is run by every engine.
macro_rules! by_every_engine {
    ($($name:ident)*) => {
        by_every_engine! { interpreted, Engine::Interpreter, false, $($name)* }
        by_every_engine! { translated, Engine::Jit { after: 0, longest: 64 }, false, $($name)* }
        by_every_engine! { translated_in_small_pieces, Engine::Jit { after: 1, longest: 3 }, false, $($name)* }
        by_every_engine! { foreseen, HARDLY, true, $($name)* }
    };
    ($module:ident, $engine:expr, $foreseen:expr, $($name:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $name() {
                ENGINE.set($engine);
                FORESEEN.set($foreseen);
                super::$name();
            })*
        }
    };
}

by_every_engine! {
    a_budget_ends_exactly_wherever_it_falls
    pieces_of_any_size_end_like_the_whole
    more_code_than_the_cache_holds_still_runs_right
    a_loop_that_rewrites_itself_runs_what_is_written
    an_instruction_over_two_pages_follows_a_change_of_either
    a_kick_interrupts_a_long_rep_at_an_element
    string_output_asks_for_each_element_and_retires_once
    string_input_stores_each_answer
    a_half_done_device_access_is_settled_without_running_on
    the_trap_flag_traps_after_every_instruction
    what_was_learnt_runs_in_memory_that_holds_the_same
    what_was_learnt_of_a_written_page_is_forgotten
    what_was_learnt_follows_later_writes
    memory_that_is_given_back_is_found_again
}

/// 64-bit mode, supervisor, the first 4 MiB mapped to themselves, `code` at [`CODE`].
fn machine(code: &[u8]) -> (GuestMemory, Cpu) {
    let memory = GuestMemory::new(4 << 20).expect("memory");
    memory.write(CODE, code).expect("code fits");
    let put = |at: u64, v: u64| memory.write_le(at, v).expect("RAM");
    put(TABLES, (TABLES + 0x1000) | 3);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    put(TABLES + 0x2000, 0x83);
    put(TABLES + 0x2008, (2 << 20) | 0x83);
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    let mut cpu = Cpu::new(CpuConfig {
        memory: memory.clone(),
        id: 0,
        cpuid: for_vcpu(&portable(1, 1_000_000), 0).into(),
        clock: Arc::new(Clock::new(1_000_000)),
        apic_bus: Arc::new(ApicBus::new(1)),
    });
    cpu.set_engine(ENGINE.get());
    if FORESEEN.get() {
        cpu.foresee(known(&memory, CODE..CODE + 0x3000));
    }
    let mut s = cpu.save();
    s.seg = [Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xc093 }; 6];
    s.seg[seg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: 0xa09b };
    s.gdtr = TableReg { base: GDT, limit: 0x17 };
    s.idtr = TableReg { base: IDT, limit: 0xfff };
    s.cr0 = 0x8001_0031;
    s.cr3 = TABLES;
    s.cr4 = 0x620;
    s.msrs.efer = 0x500;
    s.rip = CODE;
    s.rflags = 2;
    s.gpr = [0; 16];
    s.gpr[gpr::RSP] = STACK;
    cpu.restore(&s).expect("a possible state");
    (memory, cpu)
}

/// Says of all these addresses, and some beyond the memory, that they are hot.
fn known(memory: &GuestMemory, addresses: Range<u64>) -> Foresight {
    let hot = |address| HotBlock { address, mode: CodeMode::Supervisor64, heat: 99 };
    let blocks: Vec<_> = addresses.chain([u64::MAX, 1 << 51, 0xd000_0000]).map(hot).collect();
    Arc::new(OnceLock::from(HotSet::new(&blocks, memory)))
}

fn set(cpu: &mut Cpu, change: impl FnOnce(&mut VcpuState)) {
    let mut s = cpu.save();
    change(&mut s);
    cpu.restore(&s).expect("a possible state");
}

/// What an instruction can see.
fn visible(cpu: &mut Cpu) -> ([u64; 16], u64, u64) {
    let s = cpu.save();
    (s.gpr, s.rip, s.rflags)
}

/// A loop with compares and branches both ways, a call, and a REP:
/// ```text
///     mov ecx, 50
/// 1:  test cl, 1 ; jz 2f ; add rax, rcx
/// 2:  cmp rcx, 25 ; jb 3f ; inc rbx ; cmp rbx, rax ; je 3f
/// 3:  push rcx ; mov edi, DATA ; mov ecx, 9 ; rep stosb ; pop rcx ; call 4f
///     dec ecx ; jnz 1b ; hlt
/// 4:  lea rdx, [rdx+rcx*2] ; ret
/// ```
const LOOPS: &[u8] = &[
    0xb9, 50, 0, 0, 0, 0xf6, 0xc1, 1, 0x74, 3, 0x48, 0x01, 0xc8, 0x48, 0x83, 0xf9, 25, 0x72, 8, 0x48, 0xff,
    0xc3, 0x48, 0x39, 0xc3, 0x74, 0, 0x51, 0xbf, 0, 0, 2, 0, 0xb9, 9, 0, 0, 0, 0xf3, 0xaa, 0x59, 0xe8, 5, 0,
    0, 0, 0xff, 0xc9, 0x75, 0xd3, 0xf4, 0x48, 0x8d, 0x14, 0x4a, 0xc3,
];

fn a_budget_ends_exactly_wherever_it_falls() {
    let (_, mut whole) = machine(LOOPS);
    assert_eq!(whole.run(u64::MAX), Stop::Halt);
    let total = whole.instructions();
    let mut states = Vec::new();
    let (_, mut single) = machine(LOOPS);
    for n in 0..total {
        states.push(visible(&mut single));
        let stop = single.run(1);
        assert!(n + 1 == total || stop == Stop::Budget, "at {n}: {stop:?}");
    }
    assert_eq!(visible(&mut single), visible(&mut whole));
    for n in (1..total - 1).step_by(13) {
        let (_, mut cut) = machine(LOOPS);
        assert_eq!(cut.run(n), Stop::Budget);
        assert_eq!(cut.instructions(), n);
        assert_eq!(visible(&mut cut), states[n as usize], "after {n}");
    }
}

fn pieces_of_any_size_end_like_the_whole() {
    let (_, mut whole) = machine(LOOPS);
    assert_eq!(whole.run(u64::MAX), Stop::Halt);
    for piece in [2, 3, 7, 31, 64] {
        let (_, mut cut) = machine(LOOPS);
        while cut.run(piece) == Stop::Budget {}
        assert_eq!(cut.instructions(), whole.instructions());
        assert_eq!(visible(&mut cut), visible(&mut whole), "in pieces of {piece}");
    }
}

fn more_code_than_the_cache_holds_still_runs_right() {
    // 700,000 INC EAX and a jump back over all of it: more ops than are kept.
    let count = 700_000usize;
    let mut code = [0xff, 0xc0].repeat(count);
    code.extend([0xff, 0xcb, 0x0f, 0x85]);
    let back = -((code.len() + 4) as i32);
    code.extend(back.to_le_bytes());
    code.push(0xf4);
    let (_, mut cpu) = machine(&code);
    set(&mut cpu, |s| s.gpr[gpr::RBX] = 2);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.save().gpr[gpr::RAX], 2 * count as u64);
    assert_eq!(cpu.instructions(), 2 * (count as u64 + 2) + 1);
}

fn a_loop_that_rewrites_itself_runs_what_is_written() {
    // 1: inc byte [rip+disp of the immediate below] ; add eax, imm32 ; dec ecx ; jnz 1b ; hlt
    let code = [0xfe, 0x05, 1, 0, 0, 0, 0x05, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xf1, 0xf4];
    let (_, mut cpu) = machine(&code);
    set(&mut cpu, |s| s.gpr[gpr::RCX] = 100);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.save().gpr[gpr::RAX], (1..=100).sum::<u64>());
    assert_eq!(cpu.instructions(), 401);
}

fn an_instruction_over_two_pages_follows_a_change_of_either() {
    // At the end of a page: mov eax, imm32 (two bytes in the first page), ret.
    let (memory, mut cpu) = machine(&[]);
    let at = CODE + 0x1000 - 2;
    memory.write(at, &[0xb8, 1, 0, 0, 0, 0xc3]).expect("RAM");
    memory.write(CODE, &[0xe8, 0xf9, 0x0f, 0, 0, 0xf4]).expect("RAM");
    let run = |cpu: &mut Cpu| {
        set(cpu, |s| (s.rip, s.gpr[gpr::RSP], s.mp_state) = (CODE, STACK, MpState::Runnable));
        assert_eq!(cpu.run(100), Stop::Halt);
        cpu.save().gpr[gpr::RAX]
    };
    assert_eq!(run(&mut cpu), 1);
    memory.write(at + 2, &[7]).expect("RAM");
    assert_eq!(run(&mut cpu), 0x701);
    memory.write(at + 1, &[2]).expect("RAM");
    assert_eq!(run(&mut cpu), 0x702);
    assert_eq!(run(&mut cpu), 0x702);
}

fn a_kick_interrupts_a_long_rep_at_an_element() {
    // rep movsb forward over overlapping areas: element by element.
    let (memory, mut cpu) = machine(&[0xf3, 0xa4, 0xf4]);
    memory.write(DATA, &[0x5a]).expect("RAM");
    let count = 50_000u64;
    set(&mut cpu, |s| {
        (s.gpr[gpr::RSI], s.gpr[gpr::RDI], s.gpr[gpr::RCX]) = (DATA, DATA + 1, count);
    });
    let poll = cpu.poll_handle();
    let mut stops = 0;
    loop {
        poll.kick();
        match cpu.run(u64::MAX) {
            Stop::Poll => stops += 1,
            Stop::Halt => break,
            other => panic!("{other:?}"),
        }
        // The kick that was taken is gone: some elements run before the next.
        assert_eq!(cpu.run(0), Stop::Budget);
        let s = cpu.save();
        assert_eq!(s.gpr[gpr::RSI] - DATA + s.gpr[gpr::RCX], count);
        if stops > 3 {
            assert_eq!(cpu.run(u64::MAX), Stop::Halt);
            break;
        }
    }
    let mut area = vec![0; count as usize + 1];
    memory.read(DATA, &mut area).expect("RAM");
    assert!(area.iter().all(|b| *b == 0x5a));
    assert_eq!(cpu.instructions(), 2);
}

fn string_output_asks_for_each_element_and_retires_once() {
    let (memory, mut cpu) = machine(&[0xf3, 0x6e, 0xf4]);
    memory.write(DATA, b"hello").expect("RAM");
    set(&mut cpu, |s| (s.gpr[gpr::RSI], s.gpr[gpr::RCX], s.gpr[gpr::RDX]) = (DATA, 5, 0x3f8));
    for byte in b"hello" {
        assert_eq!(cpu.run(u64::MAX), Stop::PioWrite { port: 0x3f8, size: 1, value: u32::from(*byte) });
    }
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!((cpu.save().gpr[gpr::RCX], cpu.instructions()), (0, 2));
}

fn string_input_stores_each_answer() {
    let (memory, mut cpu) = machine(&[0xf3, 0x66, 0x6d, 0xf4]);
    set(&mut cpu, |s| (s.gpr[gpr::RDI], s.gpr[gpr::RCX], s.gpr[gpr::RDX]) = (DATA, 3, 0x60));
    for i in 1..=3u64 {
        assert_eq!(cpu.run(u64::MAX), Stop::PioRead { port: 0x60, size: 2 });
        cpu.reply(i * 0x101);
    }
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    let mut found = [0; 6];
    memory.read(DATA, &mut found).expect("RAM");
    assert_eq!(found, [1, 1, 2, 2, 3, 3]);
}

fn a_half_done_device_access_is_settled_without_running_on() {
    // add eax, [0xd0000000] through a second mapping ; inc ecx ; hlt
    let (memory, mut cpu) = machine(&[0x03, 0x03, 0xff, 0xc1, 0xf4]);
    memory.write_le(TABLES + 0x2010, 0xd000_0083u64).expect("RAM");
    set(&mut cpu, |s| (s.gpr[gpr::RBX], s.gpr[gpr::RAX]) = (4 << 20, 5));
    assert_eq!(cpu.run(u64::MAX), Stop::MmioRead { gpa: 0xd000_0000, size: 4 });
    cpu.reply(37);
    assert_eq!(cpu.settle(), None);
    let s = cpu.save();
    assert_eq!((s.gpr[gpr::RAX], s.gpr[gpr::RCX], s.rip), (42, 0, CODE + 2));
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.save().gpr[gpr::RCX], 1);
}

fn the_trap_flag_traps_after_every_instruction() {
    // pushfq ; or qword [rsp], 0x100 ; popfq ; nop ; cmp eax, eax ; je +0 ; pushfq ;
    // and qword [rsp], ~0x100 ; popfq ; nop ; hlt
    let code = [
        0x9c, 0x48, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x39, 0xc0, 0x74, 0, 0x9c, 0x48, 0x81, 0x24,
        0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, 0x90, 0xf4,
    ];
    let (memory, mut cpu) = machine(&code);
    // #DB: inc r15 ; iretq
    let handler = 0x8000u64;
    memory.write(handler, &[0x49, 0xff, 0xc7, 0x48, 0xcf]).expect("RAM");
    memory.write_le(IDT + 16, handler | (8 << 16) | (0x8e00 << 32)).expect("RAM");
    assert_eq!(cpu.run(1000), Stop::Halt);
    // nop, cmp, je, pushfq, and, and the popfq that ends it.
    assert_eq!(cpu.save().gpr[gpr::R15], 6);
    assert_eq!(cpu.save().gpr[gpr::RSP], STACK);
}

/// mov [SECOND+1], eax ; jmp SECOND, and there: mov ebx, 0 ; hlt
fn writer() -> Vec<u8> {
    let mut code = vec![0x89, 0x05, 0xfb, 0x0f, 0, 0, 0xe9, 0xf5, 0x0f, 0, 0];
    code.resize(0x1000, 0x90);
    code.extend([0xbb, 0, 0, 0, 0, 0xf4]);
    code
}

/// A machine whose memory counts as brought back from a file, as `change` makes its vCPU.
fn brought_back(code: &[u8], change: impl FnOnce(&mut VcpuState)) -> (GuestMemory, Cpu) {
    let (memory, mut cpu) = machine(code);
    memory.clear_dirty();
    set(&mut cpu, change);
    (memory, cpu)
}

/// Runs one machine and gives what it learnt to another one of the same code.
fn taught(
    code: &[u8],
    first: impl FnOnce(&mut VcpuState),
    second: impl FnOnce(&mut VcpuState),
) -> (GuestMemory, Cpu) {
    let (_, mut cpu) = brought_back(code, first);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    let mut learnt = cpu.take_learnt();
    let (memory, mut cpu) = brought_back(code, second);
    learnt.fit(&memory);
    cpu.learn(learnt);
    (memory, cpu)
}

fn what_was_learnt_runs_in_memory_that_holds_the_same() {
    let (_, mut fresh) = brought_back(LOOPS, |_| {});
    let (_, mut cpu) = taught(LOOPS, |_| {}, |_| {});
    assert_eq!(fresh.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(visible(&mut cpu), visible(&mut fresh));
    assert_eq!(cpu.instructions(), fresh.instructions());
}

fn what_was_learnt_of_a_written_page_is_forgotten() {
    // The first machine wrote 5 into the second page's instruction; the other one has not.
    let (_, mut cpu) = taught(&writer(), |s| s.gpr[gpr::RAX] = 5, |s| s.rip = CODE + 0x1000);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.save().gpr[gpr::RBX], 0);
    let (_, mut cpu) = taught(&writer(), |s| s.gpr[gpr::RAX] = 5, |s| s.gpr[gpr::RAX] = 9);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.save().gpr[gpr::RBX], 9);
}

fn what_was_learnt_follows_later_writes() {
    let (memory, mut cpu) = taught(LOOPS, |_| {}, |_| {});
    // mov ecx, 3
    memory.write(CODE + 1, &[3]).expect("RAM");
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    let mut changed = LOOPS.to_vec();
    changed[1] = 3;
    let (_, mut fresh) = brought_back(&changed, |_| {});
    assert_eq!(fresh.run(u64::MAX), Stop::Halt);
    assert_eq!(visible(&mut cpu), visible(&mut fresh));
}

fn memory_that_is_given_back_is_found_again() {
    let (_, mut fresh) = brought_back(LOOPS, |_| {});
    assert_eq!(fresh.run(u64::MAX), Stop::Halt);
    let (_, mut own) = brought_back(LOOPS, |_| {});
    let (_, mut learnt) = taught(LOOPS, |_| {}, |_| {});
    for cpu in [&mut own, &mut learnt] {
        while cpu.run(97) == Stop::Budget {
            cpu.give_back();
        }
        assert_eq!(visible(cpu), visible(&mut fresh));
        assert_eq!(cpu.instructions(), fresh.instructions());
    }
    // A page that is unmapped meanwhile is not remembered.
    let (memory, mut cpu) = brought_back(LOOPS, |_| {});
    assert_eq!(cpu.run(40), Stop::Budget);
    cpu.give_back();
    memory.write_le(TABLES + 0x2000, 0u64).expect("RAM");
    assert_eq!(cpu.run(u64::MAX), Stop::TripleFault, "neither stack nor descriptors are there");
}

#[test]
fn what_is_foreseen_is_translated_at_its_first_run_and_nothing_else_is() {
    ENGINE.set(HARDLY);
    let run = |addresses: Range<u64>| {
        let (memory, mut cpu) = machine(LOOPS);
        cpu.foresee(known(&memory, addresses));
        assert_eq!(cpu.run(u64::MAX), Stop::Halt);
        (cpu.jit_counters().translations, visible(&mut cpu), cpu.instructions())
    };
    let (none, plain, count) = run(0..0);
    assert_eq!(none, 0);
    // The block that begins there, and nothing that is inside of another one.
    let (one, same, counted) = run(CODE..CODE + 5);
    assert_eq!((one, same, counted), (1, plain, count));
    let (all, same, counted) = run(CODE..CODE + LOOPS.len() as u64);
    assert!(all > 5, "{all} translations");
    assert_eq!((same, counted), (plain, count));
}

#[test]
fn what_is_foreseen_is_translated_where_translated_code_leads_there() {
    ENGINE.set(HARDLY);
    let (memory, mut cpu) = machine(LOOPS);
    cpu.foresee(known(&memory, CODE..CODE + LOOPS.len() as u64));
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    let counters = cpu.jit_counters();
    // Whatever the dispatcher has translated it enters.
    assert!(counters.entries < counters.translations, "{counters:?}");
}

#[test]
fn a_list_that_comes_late_counts_from_then_on() {
    ENGINE.set(HARDLY);
    let (memory, mut cpu) = machine(LOOPS);
    let later = Foresight::default();
    cpu.foresee(Arc::clone(&later));
    assert_eq!(cpu.run(10), Stop::Budget);
    assert_eq!(cpu.jit_counters().translations, 0);
    let all = Arc::into_inner(known(&memory, CODE..CODE + LOOPS.len() as u64)).and_then(OnceLock::into_inner);
    later.set(all.expect("nobody else has it")).expect("it is the first");
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert!(cpu.jit_counters().translations > 0);
    let (_, mut plain) = machine(LOOPS);
    assert_eq!(plain.run(u64::MAX), Stop::Halt);
    assert_eq!(visible(&mut cpu), visible(&mut plain));
}

#[test]
fn what_was_hardly_come_by_is_not_foreseen() {
    ENGINE.set(HARDLY);
    let run = |heats: [u32; 2]| {
        let (memory, mut cpu) = machine(LOOPS);
        let [first, other] = heats.map(|heat| HotBlock { address: CODE, mode: CodeMode::Supervisor64, heat });
        let blocks = [first, HotBlock { address: DATA, ..other }];
        cpu.foresee(Arc::new(OnceLock::from(HotSet::new(&blocks, &memory))));
        assert_eq!(cpu.run(u64::MAX), Stop::Halt);
        cpu.jit_counters().translations
    };
    assert_eq!(run([0, 15]), 0);
    assert_eq!(run([1, 15]), 1);
    assert_eq!(run([1, u32::MAX]), 0, "beside the other it is nothing");
}

#[test]
fn a_list_of_user_code_says_nothing_of_the_kernels() {
    ENGINE.set(HARDLY);
    let (memory, mut cpu) = machine(LOOPS);
    let hot = |n| HotBlock { address: CODE + n, mode: CodeMode::User64, heat: 99 };
    let blocks: Vec<_> = (0..LOOPS.len() as u64).map(hot).collect();
    cpu.foresee(Arc::new(OnceLock::from(HotSet::new(&blocks, &memory))));
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.jit_counters().translations, 0);
}

#[test]
fn what_was_translated_is_told_with_how_often_it_was_come_by() {
    ENGINE.set(Engine::Jit { after: 40, longest: 64 });
    // mov ecx, 1000000 ; 1: dec ecx ; jnz 1b ; hlt
    let (_, mut cpu) = machine(&[0xb9, 0x40, 0x42, 0x0f, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    assert_eq!(cpu.hot_blocks(), []);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    let hot = cpu.hot_blocks();
    let places: Vec<_> = hot.iter().map(|block| (block.address, block.mode)).collect();
    assert_eq!(places, [(CODE + 5, CodeMode::Supervisor64)]);
    // Every 16,384 instructions it is where time is spent.
    assert!((1000..4000).contains(&hot[0].heat), "{hot:?}");
    // Another machine's state begins anew.
    set(&mut cpu, |s| s.rip = CODE);
    assert_eq!(cpu.hot_blocks(), []);
}

/// Everything is translated at its first run.
const AT_ONCE: Engine = Engine::Jit { after: 0, longest: 64 };

/// Runs a machine and gives what it kept of its translations.
fn kept(code: &[u8], first: impl FnOnce(&mut VcpuState)) -> Vec<u8> {
    ENGINE.set(AT_ONCE);
    let (_, mut cpu) = brought_back(code, first);
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    let mut bytes = Vec::new();
    assert!(cpu.keep_code(&mut bytes).expect("a Vec takes all"));
    bytes
}

fn ready(bytes: &[u8], cpu: &mut Cpu) -> KeptCode {
    KeptCode::read(&mut &*bytes, cpu.code_places()).expect("it is whole").expect("it is of this build")
}

#[test]
fn kept_translations_are_gone_on_with_and_none_is_made() {
    let bytes = kept(LOOPS, |_| {});
    let (_, mut fresh) = brought_back(LOOPS, |_| {});
    assert_eq!(fresh.run(u64::MAX), Stop::Halt);
    // Also by a vCPU that has some of its own.
    for before in [0, 1, 40, 500] {
        let (_, mut cpu) = brought_back(LOOPS, |_| {});
        assert_eq!(cpu.run(before), Stop::Budget);
        let made = cpu.jit_counters().translations;
        let again = ready(&bytes, &mut cpu);
        assert!(cpu.adopt(again));
        assert_eq!(cpu.run(u64::MAX), Stop::Halt);
        let counters = cpu.jit_counters();
        // Where it stood is no start of a translation, mostly.
        assert!(counters.translations <= made + 1 && counters.kept > 5, "{counters:?}");
        assert_eq!(visible(&mut cpu), visible(&mut fresh));
        assert_eq!(cpu.instructions(), fresh.instructions());
    }
}

#[test]
fn what_was_kept_and_gone_on_with_is_kept_again() {
    let mut bytes = kept(LOOPS, |_| {});
    let mut before = None;
    for _ in 0..4 {
        let (_, mut cpu) = brought_back(LOOPS, |_| {});
        let again = ready(&bytes, &mut cpu);
        assert!(cpu.adopt(again));
        assert_eq!(cpu.run(u64::MAX), Stop::Halt);
        assert_eq!(cpu.jit_counters().translations, 0);
        assert!(cpu.hot_blocks().iter().all(|block| block.heat > 0));
        bytes.clear();
        assert!(cpu.keep_code(&mut bytes).expect("a Vec takes all"));
        let now = (bytes.len(), visible(&mut cpu));
        assert_eq!(*before.get_or_insert(now), now);
    }
}

#[test]
fn kept_translations_of_a_written_page_are_forgotten_before_and_after() {
    // The first machine wrote 5 into the second page's instruction and ran that; in the other one's file there is 0.
    let bytes = kept(&writer(), |s| s.gpr[gpr::RAX] = 5);
    let (_, mut cpu) = brought_back(&writer(), |s| s.gpr[gpr::RAX] = 9);
    let again = ready(&bytes, &mut cpu);
    assert!(cpu.adopt(again));
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.save().gpr[gpr::RBX], 9, "written by the vCPU itself");
    let bytes = kept(LOOPS, |_| {});
    let mut changed = LOOPS.to_vec();
    changed[1] = 3;
    let (_, mut fresh) = brought_back(&changed, |_| {});
    assert_eq!(fresh.run(u64::MAX), Stop::Halt);
    for written_before in [true, false] {
        let (memory, mut cpu) = brought_back(LOOPS, |_| {});
        let again = ready(&bytes, &mut cpu);
        // mov ecx, 3
        if written_before {
            memory.write(CODE + 1, &[3]).expect("RAM");
        }
        assert!(cpu.adopt(again));
        if !written_before {
            memory.write(CODE + 1, &[3]).expect("RAM");
        }
        assert_eq!(cpu.run(u64::MAX), Stop::Halt);
        assert_eq!(visible(&mut cpu), visible(&mut fresh));
        assert!(cpu.jit_counters().translations > 5);
        assert_eq!(cpu.jit_counters().kept == 0, written_before);
    }
}

#[test]
fn who_does_not_translate_goes_on_without_what_was_kept() {
    let bytes = kept(LOOPS, |_| {});
    ENGINE.set(Engine::Interpreter);
    let (_, mut cpu) = brought_back(LOOPS, |_| {});
    let again = ready(&bytes, &mut cpu);
    assert!(!cpu.adopt(again));
    assert_eq!(cpu.run(u64::MAX), Stop::Halt);
    assert_eq!(cpu.jit_counters().instructions, 0);
    let mut nothing = Vec::new();
    assert!(!cpu.keep_code(&mut nothing).expect("a Vec takes all"));
    assert_eq!(nothing, []);
}

#[test]
fn kept_translations_of_another_build_or_in_pieces_are_not_taken() {
    let bytes = kept(LOOPS, |_| {});
    let (_, mut cpu) = brought_back(LOOPS, |_| {});
    let places = cpu.code_places();
    for at in [0, 7, 8, 15] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        assert!(KeptCode::read(&mut &*other, places).expect("it is somebody's").is_none(), "byte {at}");
    }
    for len in [0, 8, 16, 40, 63, 64, 65, bytes.len() / 2, bytes.len() - 1] {
        assert!(KeptCode::read(&mut &bytes[..len], places).is_err(), "{len} of {} bytes", bytes.len());
    }
    // Numbers that lead anywhere: whatever it says, it says it without a fault.
    for at in 16..bytes.len() {
        let mut other = bytes.clone();
        other[at] = other[at].wrapping_add(0x7f);
        let _ = KeptCode::read(&mut &*other, places);
    }
}
