//! Translation, permission, fault codes, accessed and dirty bits, invalidation (SDM vol. 3, 4.5-4.10).

use arch::x86_64::cpuid::CpuidLeaf;
use x86cpu::Stop;

use super::machine::{CODE, DATA, Machine, PD, PT, Run, USER_CODE};

const READ: &[u8] = &[0x48, 0x8b, 0x03, 0xf4]; // mov rax, [rbx]; hlt
const WRITE: &[u8] = &[0x48, 0x89, 0x03, 0xf4]; // mov [rbx], rax; hlt
const FETCH: &[u8] = &[0xff, 0xe3]; // jmp rbx

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;
const WP_OFF: u64 = 1 << 32;
const SMEP: u64 = 1 << 33;
const NXE_OFF: u64 = 1 << 34;

/// Page-fault code, or `None` when the access is allowed.
fn access(user: bool, code: &[u8], entry: u64, options: u64) -> Option<u64> {
    let mut run = if user { Run::user(code) } else { Run::kernel(code) };
    let target = 0x10_5000;
    run.machine.put(run.machine.pte(target), target | entry);
    run.machine.code(target, &[0xf4]);
    run.state.gpr[3] = target;
    if options & WP_OFF != 0 {
        run.state.cr0 &= !(1 << 16);
    }
    if options & NXE_OFF != 0 {
        run.state.msrs.efer &= !(1 << 11);
    }
    if options & SMEP != 0 {
        run.machine
            .cpuid
            .insert(0, CpuidLeaf { leaf: 7, subleaf: Some(0), eax: 0, ebx: 1 << 7, ecx: 0, edx: 0 });
        run.cpu = run.machine.cpu(0);
        run.state.cr4 |= 1 << 20;
    }
    assert_eq!(run.go(), Stop::Halt);
    match run.vector() {
        Some(14) => {
            assert_eq!(run.state.cr2, target);
            Some(run.stack(0))
        }
        // HLT in user mode is #GP: it got there.
        Some(13) if user => None,
        None => None,
        other => panic!("vector {other:?}"),
    }
}

#[test]
fn each_permission_rule_has_its_fault_code() {
    type Case = (&'static str, bool, &'static [u8], u64, u64, Option<u64>);
    let cases: &[Case] = &[
        ("supervisor reads", false, READ, P, 0, None),
        ("supervisor reads the user's", false, READ, P | U, 0, None),
        ("supervisor writes read-only with WP", false, WRITE, P, 0, Some(3)),
        ("supervisor writes read-only without WP", false, WRITE, P, WP_OFF, None),
        ("supervisor writes", false, WRITE, P | W, 0, None),
        ("supervisor reads nothing", false, READ, 0, 0, Some(0)),
        ("supervisor writes nothing", false, WRITE, 0, 0, Some(2)),
        ("supervisor fetches nothing", false, FETCH, 0, 0, Some(0x10)),
        ("supervisor fetches", false, FETCH, P, 0, None),
        ("supervisor fetches NX", false, FETCH, P | NX, 0, Some(0x11)),
        ("supervisor fetches the user's", false, FETCH, P | U, 0, None),
        ("supervisor fetches the user's with SMEP", false, FETCH, P | U, SMEP, Some(0x11)),
        ("supervisor reads the user's with SMEP", false, READ, P | U, SMEP, None),
        ("user reads", true, READ, P | U, 0, None),
        ("user reads the supervisor's", true, READ, P | W, 0, Some(5)),
        ("user writes", true, WRITE, P | W | U, 0, None),
        ("user writes read-only", true, WRITE, P | U, 0, Some(7)),
        ("user writes read-only without WP", true, WRITE, P | U, WP_OFF, Some(7)),
        ("user writes nothing", true, WRITE, 0, 0, Some(6)),
        ("user fetches NX", true, FETCH, P | U | NX, 0, Some(0x15)),
        ("user fetches the supervisor's", true, FETCH, P, 0, Some(0x15)),
        ("user fetches", true, FETCH, P | U, SMEP, None),
        ("NX is reserved without NXE", false, READ, P | NX, NXE_OFF, Some(9)),
        ("address beyond MAXPHYADDR is reserved", false, READ, P | 1 << 45, 0, Some(9)),
        ("reserved comes before permission", true, WRITE, P | 1 << 45, 0, Some(0xf)),
    ];
    for (what, user, code, entry, options, expected) in cases {
        assert_eq!(access(*user, code, *entry, *options), *expected, "{what}");
    }
}

#[test]
fn every_level_must_allow() {
    for (level_entry, bits, user, expected) in [
        (PD, P | U, true, 7),
        (PD, P | W, true, 7),
        (0x2000, P | U, true, 7),
        (0x1000, P | W, true, 7),
        (PD, P | U, false, 3),
    ] {
        let mut run = if user { Run::user(WRITE) } else { Run::kernel(WRITE) };
        // The code runs from another table: the first 2 MiB seen again at 4 MiB.
        run.machine.put(PD + 16, PT | 7);
        let (entry, lin) = if level_entry == PD { (PD + 16, 0x40_0000) } else { (level_entry, 0) };
        if lin == 0 {
            // A whole branch of its own: PML4[1] -> 0xc000 -> 0xd000 -> PD's table.
            run.machine.put(0x1008, 0xc007);
            run.machine.put(0xc000, 0xd007);
            run.machine.put(0xd000, PT | 7);
        }
        let (entry, lin) = match level_entry {
            PD => (entry, lin),
            0x2000 => (0xc000, 1 << 39),
            _ => (0x1008, 1 << 39),
        };
        let old = run.machine.get(entry);
        run.machine.put(entry, (old & !7) | bits);
        run.state.gpr[3] = lin + 0x10_5000;
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!((run.vector(), run.stack(0)), (Some(14), expected), "{level_entry:#x} {bits:#x}");
    }
}

#[test]
fn accessed_comes_with_reading_and_dirty_only_with_writing() {
    // mov rax, [rbx]; hlt; mov [rbx], rax; hlt
    let mut run = Run::kernel(&[0x48, 0x8b, 0x03, 0xf4, 0x48, 0x89, 0x03, 0xf4]);
    run.state.gpr[3] = DATA;
    let entry = run.machine.pte(DATA);
    assert_eq!(run.machine.get(entry) & 0x60, 0);
    run.go();
    assert_eq!(run.machine.get(entry) & 0x60, 0x20);
    assert_eq!(run.machine.get(PD) & 0x60, 0x20, "tables are accessed, never dirty");
    run.state.mp_state = arch::x86_64::state::MpState::Runnable;
    run.go();
    assert_eq!(run.machine.get(entry) & 0x60, 0x60);
    assert_eq!(run.machine.get(PD) & 0x60, 0x20);
}

#[test]
fn a_store_over_two_pages_changes_nothing_when_the_second_is_missing() {
    let mut run = Run::kernel(WRITE);
    run.state.gpr[3] = DATA + 0xffc;
    run.state.gpr[0] = u64::MAX;
    run.machine.put(run.machine.pte(DATA + 0x1000), 0);
    run.go();
    assert_eq!(run.vector(), Some(14));
    assert_eq!(run.state.cr2, DATA + 0x1000, "the address of the page that is missing");
    assert_eq!(run.machine.get(DATA + 0xff8), 0);
}

#[test]
fn a_fetch_over_two_pages_reports_the_second() {
    let mut run = Run::kernel(&[]);
    // mov rax, imm64 with its last bytes on the next page
    run.machine.code(CODE + 0xffc, &[0x48, 0xb8, 1, 2]);
    run.machine.put(run.machine.pte(CODE + 0x1000), 0);
    run.state.rip = CODE + 0xffc;
    run.go();
    assert_eq!((run.vector(), run.stack(0), run.state.cr2), (Some(14), 0x10, CODE + 0x1000));
}

#[test]
fn non_canonical_addresses_are_gp_and_on_the_stack_ss() {
    let mut run = Run::kernel(READ);
    run.state.gpr[3] = 0x8000_0000_0000;
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(13), 0));
    // push rax, on an interrupt stack of its own for the fault
    let mut run = Run::kernel(&[0x50]);
    run.machine.gate(12, 0x8e, 1);
    run.state.gpr[4] = 0x8000_0000_0008;
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(12), 0));
}

/// mov rax,[rbx]; mov [rcx],rdx; <invalidate>; mov rsi,[rbx]; hlt
fn stale(invalidate: &[u8], prepare: impl FnOnce(&mut Run)) -> (u64, u64) {
    let mut code = vec![0x48, 0x8b, 0x03, 0x48, 0x89, 0x11];
    code.extend_from_slice(invalidate);
    code.extend_from_slice(&[0x48, 0x8b, 0x33, 0xf4]);
    let mut run = Run::kernel(&code);
    run.machine.put(DATA, 111);
    run.machine.put(DATA + 0x1000, 222);
    run.state.gpr[3] = DATA;
    run.state.gpr[1] = run.machine.pte(DATA);
    run.state.gpr[2] = (DATA + 0x1000) | 3;
    prepare(&mut run);
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!(run.vector(), None);
    (run.state.gpr[0], run.state.gpr[6])
}

const INVLPG: &[u8] = &[0x0f, 0x01, 0x3b]; // invlpg [rbx]
const RELOAD_CR3: &[u8] = &[0x0f, 0x20, 0xdf, 0x0f, 0x22, 0xdf]; // mov rdi,cr3; mov cr3,rdi
const TOGGLE_PGE: &[u8] =
    &[0x0f, 0x20, 0xe7, 0x48, 0x89, 0xfd, 0x40, 0x80, 0xf7, 0x80, 0x0f, 0x22, 0xe7, 0x0f, 0x22, 0xe5]; // mov rdi,cr4; mov rbp,rdi; xor dil,0x80; mov cr4,rdi; mov cr4,rbp

#[test]
fn each_invalidation_shows_the_new_translation() {
    for invalidate in [INVLPG, RELOAD_CR3, TOGGLE_PGE] {
        assert_eq!(stale(invalidate, |_| {}), (111, 222));
    }
}

#[test]
fn global_pages_survive_cr3_and_nothing_else() {
    let global = |run: &mut Run| {
        let entry = run.machine.pte(DATA);
        run.machine.put(entry, DATA | 3 | 0x100);
        run.state.gpr[2] |= 0x100;
    };
    assert_eq!(stale(RELOAD_CR3, global), (111, 111));
    assert_eq!(stale(INVLPG, global), (111, 222));
    assert_eq!(stale(TOGGLE_PGE, global), (111, 222));
}

#[test]
fn invlpg_drops_all_of_a_large_page() {
    // Two reads in the same 2 MiB page; the entry changes; INVLPG of the first; read the second.
    let code = [
        0x48, 0x8b, 0x03, // mov rax,[rbx]
        0x48, 0x8b, 0x83, 0x00, 0x30, 0x00, 0x00, // mov rax,[rbx+0x3000]
        0x48, 0x89, 0x11, // mov [rcx],rdx
        0x0f, 0x01, 0x3b, // invlpg [rbx]
        0x48, 0x8b, 0xb3, 0x00, 0x30, 0x00, 0x00, // mov rsi,[rbx+0x3000]
        0xf4,
    ];
    let mut run = Run::kernel(&code);
    run.machine.put(0x40_3000, 111);
    run.machine.put(0x60_3000, 222);
    run.state.gpr[3] = 0x40_0000;
    run.state.gpr[1] = PD + 16;
    run.state.gpr[2] = 0x60_0083;
    run.go();
    assert_eq!((run.vector(), run.state.gpr[0], run.state.gpr[6]), (None, 111, 222));
}

#[test]
fn tables_outside_of_ram_fault_as_reserved() {
    let mut run = Run::kernel(READ);
    run.machine.put(PD + 16, 0xd000_0003);
    run.state.gpr[3] = 0x40_0000;
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(14), 9));
}

#[test]
fn a_device_load_asks_the_outside_and_a_read_modify_write_asks_twice() {
    let mut run = Run::kernel(&[0x83, 0x03, 0x05, 0xf4]); // add dword [rbx], 5; hlt
    // Linear 0x400000 is device memory at 0xd0000000.
    run.machine.put(PD + 16, 0xd000_0083);
    run.state.gpr[3] = 0x40_0010;
    assert_eq!(run.go(), Stop::MmioRead { gpa: 0xd000_0010, size: 4 });
    run.cpu.reply(37);
    assert_eq!(run.on(), Stop::MmioWrite { gpa: 0xd000_0010, size: 4, value: 42 });
    assert_eq!(run.on(), Stop::Halt);
    assert_eq!(run.cpu.instructions(), 2);
}

#[test]
fn executing_a_device_is_refused_by_name() {
    let mut run = Run::kernel(FETCH);
    run.machine.put(PD + 16, 0xd000_0083);
    run.state.gpr[3] = 0x40_0000;
    assert!(matches!(run.go(), Stop::Unsupported(text) if text.contains("0xd0000000")));
}

#[test]
fn code_that_another_writer_replaced_is_not_run_from_the_cache() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0);
    machine.code(CODE, &[0xb8, 1, 0, 0, 0, 0xf4]); // mov eax,1; hlt
    let state = machine.state(&mut cpu);
    cpu.restore(&state).unwrap();
    assert_eq!(cpu.run(100), Stop::Halt);
    // The write comes from outside of the CPU (DMA); the vCPU goes back by its own jump.
    machine.code(CODE, &[0xb8, 2, 0, 0, 0, 0xf4]);
    let mut state = cpu.save();
    assert_eq!(state.gpr[0], 1);
    state.rip = CODE;
    state.mp_state = Default::default();
    cpu.restore(&state).unwrap();
    assert_eq!(cpu.run(100), Stop::Halt);
    assert_eq!(cpu.save().gpr[0], 2);
}

#[test]
fn a_page_that_turns_from_data_to_code_and_back_is_seen_at_once() {
    // mov [rbx],eax (writes code ahead); call rbx; mov [rbx],ecx; call rbx; hlt
    let code = [0x89, 0x03, 0xff, 0xd3, 0x48, 0x89, 0xc6, 0x89, 0x0b, 0xff, 0xd3, 0x48, 0x89, 0xc7, 0xf4];
    let mut run = Run::kernel(&code);
    run.state.gpr[3] = USER_CODE + 0x2000;
    run.state.gpr[0] = 0x00c3_07b0; // mov al,7; ret
    run.state.gpr[1] = 0x00c3_09b0; // mov al,9; ret
    run.go();
    assert_eq!((run.vector(), run.state.gpr[6] & 0xff, run.state.gpr[7] & 0xff), (None, 7, 9));
}

/// Calls the same address ten times while its page-table entry changes to and fro.
fn called_through(invalidate: &[u8], bits: u64, user_loop: bool) -> u64 {
    let mut code = vec![0xff, 0xd3, 0x48, 0x01, 0xc6, 0x48, 0x87, 0x11]; // call rbx; add rsi,rax; xchg [rcx],rdx
    code.extend_from_slice(invalidate);
    code.extend_from_slice(&[0x49, 0xff, 0xc8, 0x75, 0, 0xf4]); // dec r8; jnz start; hlt
    let at = code.len() - 2;
    code[at] = (at as u8 + 1).wrapping_neg();
    let mut run = Run::kernel(&code);
    let (one, other) = (DATA, DATA + 0x1000);
    run.machine.code(one, &[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax,1; ret
    run.machine.code(other, &[0xb8, 100, 0, 0, 0, 0xc3]);
    if user_loop {
        // The whole loop runs from global pages.
        for page in [CODE, CODE + 0x1000] {
            run.machine.put(run.machine.pte(page), page | 0x103);
        }
    }
    run.machine.put(run.machine.pte(one), one | 3 | bits);
    run.state.gpr[3] = one;
    run.state.gpr[1] = run.machine.pte(one);
    run.state.gpr[2] = other | 3 | bits;
    run.state.gpr[8] = 10;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!(run.vector(), None);
    run.state.gpr[6]
}

#[test]
fn code_follows_its_translation() {
    const NOP: &[u8] = &[0x90];
    for global_loop in [false, true] {
        for invalidate in [INVLPG, RELOAD_CR3, TOGGLE_PGE] {
            assert_eq!(called_through(invalidate, 0, global_loop), 505, "{invalidate:x?}");
        }
        assert_eq!(called_through(INVLPG, 0x100, global_loop), 505);
        assert_eq!(called_through(TOGGLE_PGE, 0x100, global_loop), 505);
        assert_eq!(called_through(RELOAD_CR3, 0x100, global_loop), 10, "a global page stays");
        assert_eq!(called_through(NOP, 0, global_loop), 10, "nothing is looked up again without need");
    }
}

#[test]
fn a_gigabyte_page_goes_as_a_whole_when_it_is_offered() {
    let code = [
        0x48, 0x8b, 0x03, // mov rax,[rbx]
        0x48, 0x8b, 0x83, 0x00, 0x30, 0x40, 0x00, // mov rax,[rbx+0x403000]
        0x48, 0x89, 0x11, // mov [rcx],rdx
        0x0f, 0x01, 0x3b, // invlpg [rbx]
        0x48, 0x8b, 0xb3, 0x00, 0x30, 0x40, 0x00, // mov rsi,[rbx+0x403000]
        0xf4,
    ];
    for offered in [true, false] {
        let mut run = Run::kernel(&code);
        if offered {
            let leaf = run.machine.cpuid.iter_mut().find(|l| l.leaf == 0x8000_0001).unwrap();
            leaf.edx |= 1 << 26;
            run.cpu = run.machine.cpu(0);
        }
        run.machine.put(0x40_3000, 111);
        // 1 GiB at 1 GiB: physical 0 at first, then gone.
        run.machine.put(0x2008, 0x83);
        run.state.gpr[3] = 1 << 30;
        run.state.gpr[1] = 0x2008;
        run.go();
        let expected = if offered { (0, (1 << 30) + 0x40_3000) } else { (9, 1 << 30) };
        assert_eq!((run.vector(), run.stack(0), run.state.cr2), (Some(14), expected.0, expected.1));
    }
}
