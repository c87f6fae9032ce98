//! One physical page at several addresses, and the page that the stack is in: what translated code remembers of both.

use x86cpu::Stop;

use super::machine::{CODE, IST1, Machine, PD, Run, STACK};

/// Page tables of 0x40_0000 and 0x60_0000, and what they map.
const TABLES: [u64; 2] = [0xc000, 0xd000];
const AT: [u64; 2] = [0x40_0000, 0x60_0000];
const FIRST: u64 = 0x3_0000;
const SECOND: [u64; 2] = [0x3_1000, 0x3_2000];
/// A stack of its own, and another page for it.
const STACK_PAGE: u64 = 0x5_0000;
const OTHER_PAGE: u64 = 0x6_0000;

/// A function over two pages, both times its first page in the first, with another second page each time:
/// RAX: the address of its second instruction; RBX: 1 or 0x100 more.
fn map_twice(machine: &Machine) {
    // lea rax, [rip]; jmp to the next page
    machine.code(FIRST, &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xe9, 0xf4, 0x0f, 0, 0]);
    machine.code(SECOND[0], &[0x83, 0xc3, 0x01, 0xc3]); // add ebx, 1; ret
    machine.code(SECOND[1], &[0x81, 0xc3, 0, 1, 0, 0, 0xc3]); // add ebx, 0x100; ret
    for (i, (table, second)) in TABLES.into_iter().zip(SECOND).enumerate() {
        machine.put(PD + 8 * (2 + i as u64), table | 7);
        machine.put(table, FIRST | 3);
        machine.put(table + 8, second | 3);
    }
}

#[test]
fn one_page_of_code_runs_at_two_addresses() {
    // again: call rbp; add rsi, rax; call r12; add rsi, rax; dec ecx; jnz again; hlt
    let code =
        [0xff, 0xd5, 0x48, 0x01, 0xc6, 0x41, 0xff, 0xd4, 0x48, 0x01, 0xc6, 0xff, 0xc9, 0x75, 0xf1, 0xf4];
    let mut run = Run::kernel(&code);
    map_twice(&run.machine);
    (run.state.gpr[5], run.state.gpr[12], run.state.gpr[1]) = (AT[0], AT[1], 50);
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!(run.vector(), None);
    assert_eq!(run.state.gpr[3], 50 * 0x101);
    assert_eq!(run.state.gpr[6], 50 * (AT[0] + AT[1] + 14));
}

#[test]
fn a_switch_of_address_spaces_moves_code() {
    // again: mov cr3, r12; call rbp; mov cr3, r13; call rbp; dec ecx; jnz again; hlt
    let code = [
        0x41, 0x0f, 0x22, 0xdc, 0xff, 0xd5, 0x41, 0x0f, 0x22, 0xdd, 0xff, 0xd5, 0xff, 0xc9, 0x75, 0xf0, 0xf4,
    ];
    let mut run = Run::kernel(&code);
    map_twice(&run.machine);
    two_spaces(&mut run);
    run.state.gpr[1] = 30;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!(run.vector(), None);
    assert_eq!(run.state.gpr[3], 30 * 0x101);
}

/// A second address space has the second pair of pages where the first one has its own. Both are in R12 and R13.
fn two_spaces(run: &mut Run) {
    for (at, from) in [(0xe000, 0x1000), (0xf000, 0x2000), (0x1_1000, PD)] {
        for i in 0..512 {
            let entry = run.machine.get(from + 8 * i);
            run.machine.put(at + 8 * i, entry);
        }
    }
    run.machine.put(0xe000, 0xf007);
    run.machine.put(0xf000, 0x1_1007);
    run.machine.put(0x1_1000 + 16, TABLES[1] | 7);
    (run.state.gpr[5], run.state.gpr[12], run.state.gpr[13]) = (AT[0], 0x1000, 0xe000);
}

#[test]
fn flags_are_there_for_who_looks_at_them_in_another_space() {
    // again: mov cr3, r12; call rbp; mov cr3, r13; call rbp; dec ecx; jnz again; hlt
    let code = [
        0x41, 0x0f, 0x22, 0xdc, 0xff, 0xd5, 0x41, 0x0f, 0x22, 0xdd, 0xff, 0xd5, 0xff, 0xc9, 0x75, 0xf0, 0xf4,
    ];
    let mut run = Run::kernel(&code);
    map_twice(&run.machine);
    two_spaces(&mut run);
    // test cl, 1; jmp to the next page, which looks at the flags in the second space only
    run.machine.code(FIRST, &[0xf6, 0xc1, 1, 0xe9, 0xf8, 0x0f, 0, 0]);
    // xor edx, edx; ret
    run.machine.code(SECOND[0], &[0x31, 0xd2, 0xc3]);
    // sete dl; movzx edx, dl; add ebx, edx; ret
    run.machine.code(SECOND[1], &[0x0f, 0x94, 0xc2, 0x0f, 0xb6, 0xd2, 0x01, 0xd3, 0xc3]);
    run.state.gpr[1] = 30;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.vector(), run.state.gpr[3]), (None, 15));
}

/// Runs with RSP at the end of a page of its own.
fn on_own_stack(code: &[u8]) -> Run {
    let mut run = Run::kernel(code);
    run.state.gpr[4] = STACK_PAGE + 0x1000;
    run
}

#[test]
fn the_stack_follows_its_translation() {
    // push 1; push 2; mov [rdi], rbx; invlpg [rsp]; push 3; pop rax; mov rcx, [rsp]; hlt
    let code = [
        0x6a, 1, 0x6a, 2, 0x48, 0x89, 0x1f, 0x0f, 0x01, 0x3c, 0x24, 0x6a, 3, 0x58, 0x48, 0x8b, 0x0c, 0x24,
        0xf4,
    ];
    let mut run = on_own_stack(&code);
    (run.state.gpr[7], run.state.gpr[3]) = (run.machine.pte(STACK_PAGE), OTHER_PAGE | 3);
    run.machine.put(OTHER_PAGE + 0xff0, 77);
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.state.gpr[0], run.state.gpr[1]), (3, 77));
    assert_eq!((run.machine.get(STACK_PAGE + 0xff0), run.machine.get(STACK_PAGE + 0xff8)), (2, 1));
    assert_eq!((run.machine.get(STACK_PAGE + 0xfe8), run.machine.get(OTHER_PAGE + 0xfe8)), (0, 3));
}

#[test]
fn looking_at_the_stack_does_not_make_it_dirty() {
    // sub rsp, 64; again: add rax, [rsp]; add rax, [rsp+8]; dec ecx; jnz again; hlt
    let code = [
        0x48, 0x83, 0xec, 64, 0x48, 0x03, 0x04, 0x24, 0x48, 0x03, 0x44, 0x24, 8, 0xff, 0xc9, 0x75, 0xf3, 0xf4,
    ];
    for writable in [2, 0] {
        let mut run = on_own_stack(&code);
        let pte = run.machine.pte(STACK_PAGE);
        run.machine.put(pte, STACK_PAGE | 1 | writable);
        run.machine.put(STACK_PAGE + 0xfc0, 2);
        run.machine.put(STACK_PAGE + 0xfc8, 5);
        run.state.gpr[1] = 10;
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!((run.state.gpr[0], run.vector()), (70, None));
        assert_eq!(run.machine.get(pte) & 0x60, 0x20, "accessed, not dirty");
    }
}

#[test]
fn a_stack_that_may_only_be_read_faults_when_it_is_written() {
    // pop rax; pop rcx; push rax; hlt
    let mut run = on_own_stack(&[0x58, 0x59, 0x50, 0xf4]);
    let pte = run.machine.pte(STACK_PAGE);
    run.machine.put(pte, STACK_PAGE | 1);
    run.machine.gate(14, 0x8e, 1);
    run.machine.put(STACK_PAGE + 0xff0, 8);
    run.state.gpr[4] = STACK_PAGE + 0xff0;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.vector(), run.state.gpr[0], run.state.cr2), (Some(14), 8, STACK_PAGE + 0xff8));
}

#[test]
fn code_on_the_stack_is_what_was_pushed_last() {
    // again: push rdi; mov rax, rsp; call rax; add esi, ecx; pop rax; push rbx; mov rax, rsp; call rax; add esi, ecx;
    // pop rax; dec edx; jnz again; hlt
    let code = [
        0x57, 0x48, 0x89, 0xe0, 0xff, 0xd0, 0x01, 0xce, 0x58, 0x53, 0x48, 0x89, 0xe0, 0xff, 0xd0, 0x01, 0xce,
        0x58, 0xff, 0xca, 0x75, 0xea, 0xf4,
    ];
    let mut run = on_own_stack(&code);
    // mov ecx, 1 (or 0x100); ret
    run.state.gpr[7] = u64::from_le_bytes([0xb9, 1, 0, 0, 0, 0xc3, 0x90, 0x90]);
    run.state.gpr[3] = u64::from_le_bytes([0xb9, 0, 1, 0, 0, 0xc3, 0x90, 0x90]);
    run.state.gpr[2] = 20;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.state.gpr[6], run.vector()), (20 * 0x101, None));
}

#[test]
fn the_stack_goes_on_over_the_ends_of_its_pages() {
    // again: push rcx; sub rsp, 3; mov [rsp], rcx; dec ecx; jnz again; hlt
    let code = [0x51, 0x48, 0x83, 0xec, 3, 0x48, 0x89, 0x0c, 0x24, 0xff, 0xc9, 0x75, 0xf3, 0xf4];
    let mut run = on_own_stack(&code);
    let count = 900;
    run.state.gpr[1] = count;
    assert_eq!(run.go(), Stop::Halt);
    let top = STACK_PAGE + 0x1000;
    assert_eq!((run.state.gpr[4], run.vector()), (top - 11 * count, None));
    (0..count).for_each(|k| assert_eq!(run.machine.get(top - 11 * (k + 1)), count - k));
}

#[test]
fn interrupts_that_wait_come_behind_the_instruction_after_sti() {
    // cli; pushfq; pop rax; sti; pushfq; pop rcx; hlt
    let code = [0xfa, 0x9c, 0x58, 0xfb, 0x9c, 0x59, 0xf4];
    let mut run = Run::kernel(&code);
    run.state.rflags = 0x202 | 0x8d5;
    run.state.gpr[4] = STACK;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.state.gpr[0], run.state.gpr[1]), (0x8d7, 0xad7));
    assert_eq!(run.vector(), None);
}

#[test]
fn a_run_of_pushes_stops_where_the_stack_ends() {
    // push rax; push rcx; push rdx; hlt
    let mut run = Run::kernel(&[0x50, 0x51, 0x52, 0xf4]);
    let below = run.machine.pte(STACK_PAGE - 0x1000);
    run.machine.put(below, 0);
    run.machine.gate(14, 0x8e, 1);
    (run.state.gpr[0], run.state.gpr[1], run.state.gpr[4]) = (7, 8, STACK_PAGE + 16);
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.vector(), run.state.cr2), (Some(14), STACK_PAGE - 8));
    assert_eq!((run.machine.get(STACK_PAGE + 8), run.machine.get(STACK_PAGE)), (7, 8));
    // What the exception has pushed: RSP and RIP.
    assert_eq!((run.machine.get(IST1 - 16), run.machine.get(IST1 - 40)), (STACK_PAGE, CODE + 2));
}

#[test]
fn branches_out_of_a_run_find_the_stack_as_it_is() {
    // again: push rcx; cmp dword [rsp], 5; je out; pop rdx; dec ecx; jnz again; out: hlt
    let code = [0x51, 0x83, 0x3c, 0x24, 5, 0x74, 5, 0x5a, 0xff, 0xc9, 0x75, 0xf4, 0xf4];
    for at in [0x800, 0x1004, 0x1008, 8] {
        let mut run = Run::kernel(&code);
        (run.state.gpr[1], run.state.gpr[4]) = (9, STACK_PAGE + at);
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!((run.state.gpr[1], run.state.gpr[2], run.state.gpr[4]), (5, 6, STACK_PAGE + at - 8));
    }
}

#[test]
fn what_must_be_aligned_faults_in_the_middle_of_a_run() {
    // mov [rsp], rax; movaps [rsp+8], xmm0; mov [rsp+24], rax; hlt
    let code = [0x48, 0x89, 4, 0x24, 0x0f, 0x29, 0x44, 0x24, 8, 0x48, 0x89, 0x44, 0x24, 24, 0xf4];
    for (at, vector) in [(0x800, Some(13)), (0x808, None)] {
        let mut run = Run::kernel(&code);
        run.machine.gate(13, 0x8e, 1);
        (run.state.gpr[0], run.state.gpr[4]) = (3, STACK_PAGE + at);
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!(run.vector(), vector);
        let last = if vector.is_some() { 0 } else { 3 };
        let seen = (run.machine.get(STACK_PAGE + at), run.machine.get(STACK_PAGE + at + 24));
        assert_eq!(seen, (3, last));
    }
}

#[test]
fn arrays_and_fields_go_on_over_the_ends_of_pages() {
    // again: mov eax, [rbx+rcx*4]; add eax, [rbx+rcx*4+4]; mov [rbx+rcx*4+8], eax; inc rcx; cmp [rdi], ecx; jne again; hlt
    let code = [
        0x8b, 4, 0x8b, 0x03, 0x44, 0x8b, 4, 0x89, 0x44, 0x8b, 8, 0x48, 0xff, 0xc1, 0x39, 0x0f, 0x75, 0xee,
        0xf4,
    ];
    let mut run = Run::kernel(&code);
    // Not at a multiple of its elements' size.
    let array = STACK_PAGE + 2;
    let count = 2000;
    run.machine.put(OTHER_PAGE, count);
    run.machine.put(array, 1 << 32);
    (run.state.gpr[3], run.state.gpr[7]) = (array, OTHER_PAGE);
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.vector(), run.state.gpr[1]), (None, count));
    let (mut a, mut b) = (0u32, 1u32);
    for k in 0..count {
        assert_eq!(run.machine.get(array + 4 * k) as u32, a, "element {k}");
        (a, b) = (b, a.wrapping_add(b));
    }
}
