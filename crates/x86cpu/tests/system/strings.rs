//! String instructions over pages: the bulk paths of the memory unit against what bytes would do.

use x86cpu::Stop;

use super::machine::{DATA, Run};

const REP_MOVSB: &[u8] = &[0xf3, 0xa4, 0xf4];
const REP_MOVSQ: &[u8] = &[0xf3, 0x48, 0xa5, 0xf4];
const REP_STOSQ: &[u8] = &[0xf3, 0x48, 0xab, 0xf4];

fn prepare(code: &[u8], to: u64, from: u64, count: u64) -> Run {
    let mut run = Run::kernel(code);
    let bytes: Vec<u8> = (0..0x4000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    run.machine.memory.write(from, &bytes).unwrap();
    (run.state.gpr[7], run.state.gpr[6], run.state.gpr[1]) = (to, from, count);
    run
}

fn bytes(run: &Run, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    run.machine.memory.read(at, &mut out).unwrap();
    out
}

#[test]
fn copies_over_pages_are_whole_also_between_pages_that_share_a_tlb_slot() {
    // 4 MiB apart: the same slot of a direct-mapped table of 1,024 pages.
    for (to, from) in [(0x80_0123, 0x40_0123), (0x80_0ff9, 0x40_0003), (DATA + 0x5001, DATA + 0x10)] {
        let mut run = prepare(REP_MOVSB, to, from, 0x3001);
        let expected = bytes(&run, from, 0x3001);
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!(bytes(&run, to, 0x3001), expected);
        let [count, source, target] = [1, 6, 7].map(|r| run.state.gpr[r]);
        assert_eq!((count, source, target), (0, from + 0x3001, to + 0x3001));
        assert_eq!(run.cpu.instructions(), 2);
    }
}

#[test]
fn overlapping_copies_repeat_as_elements_would() {
    for (code, size) in [(REP_MOVSB, 1usize), (REP_MOVSQ, 8)] {
        for ahead in [1usize, 3, 8, 16, 0x800, 0x1000] {
            let count = 0x2000 / size;
            let mut run = prepare(code, DATA + ahead as u64, DATA, count as u64);
            let mut expected = bytes(&run, DATA, 0x2000 + ahead);
            for i in 0..count {
                let element: Vec<u8> = expected[i * size..(i + 1) * size].to_vec();
                expected[i * size + ahead..(i + 1) * size + ahead].copy_from_slice(&element);
            }
            run.go();
            assert!(bytes(&run, DATA, 0x2000 + ahead) == expected, "{size} bytes, {ahead} ahead");
        }
    }
}

#[test]
fn a_fault_in_the_middle_leaves_the_registers_at_the_element() {
    let mut run = prepare(REP_MOVSQ, DATA + 0x8004, DATA, 0x400);
    run.machine.put(run.machine.pte(DATA + 0x9000), 0);
    let expected = bytes(&run, DATA, 0xff8);
    run.go();
    // 0x1ff elements fit before the one that crosses into the missing page.
    assert_eq!((run.vector(), run.state.cr2), (Some(14), DATA + 0x9000));
    assert_eq!((run.state.gpr[1], run.state.gpr[6]), (0x400 - 0x1ff, DATA + 0xff8));
    assert!(bytes(&run, DATA + 0x8004, 0xff8) == expected);
    assert_eq!(run.machine.get(DATA + 0x8ffc) & 0xffff_ffff, 0, "and none of the one that faulted");
}

#[test]
fn filling_repeats_the_pattern_at_any_alignment() {
    for at in [DATA, DATA + 5, DATA + 0xffd] {
        let mut run = prepare(REP_STOSQ, at, DATA + 0x8000, 0x300);
        run.state.gpr[0] = 0x0102_0304_0506_0708;
        run.go();
        let expected: Vec<u8> = (0..0x300).flat_map(|_| 0x0102_0304_0506_0708u64.to_le_bytes()).collect();
        assert!(bytes(&run, at, 0x1800) == expected);
        assert_eq!(bytes(&run, at + 0x1800, 1), [0]);
    }
}

#[test]
fn bulk_writes_are_seen_by_the_dirty_table_and_by_decoded_code() {
    // call rbx; mov rsi,r8; rep movsb over the function; call rbx; hlt
    let code = [0xff, 0xd3, 0x89, 0xc2, 0x4c, 0x89, 0xc6, 0xf3, 0xa4, 0xff, 0xd3, 0xf4];
    let mut run = prepare(&code, DATA + 0x9000, DATA, 6);
    run.machine.code(DATA + 0x9000, &[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax,1; ret
    run.machine.code(DATA + 0xa000, &[0xb8, 2, 0, 0, 0, 0xc3]);
    run.state.gpr[3] = DATA + 0x9000;
    run.state.gpr[8] = DATA + 0xa000;
    run.machine.memory.clear_dirty();
    run.go();
    assert_eq!((run.vector(), run.state.gpr[2], run.state.gpr[0]), (None, 1, 2));
    let page = |at: u64| run.machine.memory.page_index(at).unwrap();
    assert!(run.machine.memory.is_dirty(page(DATA + 0x9000)));
    assert!(!run.machine.memory.is_dirty(page(DATA + 0xa000)));
}
