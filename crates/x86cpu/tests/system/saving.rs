//! Save and restore: the continuation is the same, and nothing that comes from a file panics.

use proptest::prelude::*;
use x86cpu::{StepOutcome, Stepper, Stop};

use super::interrupts::enable_x2apic;
use super::machine::{CODE, DATA, Machine, Run, TSC_KHZ, USER_CODE};

/// add rax,rcx; imul rax,rax,31; xor [rdi],rax; add rdi,8; and rdi,0x10fff8; loop; hlt
const MIX: &[u8] = &[
    0x48, 0x01, 0xc8, 0x48, 0x6b, 0xc0, 0x1f, 0x48, 0x31, 0x07, 0x48, 0x83, 0xc7, 0x08, 0x48, 0x81, 0xe7,
    0xf8, 0xff, 0x10, 0x00, 0xe2, 0xe9, 0xf4,
];

fn mix() -> (Machine, x86cpu::Cpu) {
    let run = Run::kernel(MIX);
    let (machine, mut cpu, mut state) = (run.machine, run.cpu, run.state);
    state.gpr[1] = 1000;
    state.gpr[7] = USER_CODE;
    state.gpr[0] = 7;
    cpu.restore(&state).unwrap();
    (machine, cpu)
}

#[test]
fn a_run_cut_anywhere_and_resumed_elsewhere_ends_the_same() {
    let (_machine, mut whole) = mix();
    assert_eq!(whole.run(u64::MAX), Stop::Halt);
    let expected = whole.save();
    for cut in [1, 2, 3, 100, 4095, 4096, 4097, 5999] {
        let (machine, mut first) = mix();
        assert_eq!(first.run(cut), Stop::Budget);
        assert_eq!(first.instructions(), cut);
        let mut second = machine.cpu(0);
        second.restore(&first.save()).unwrap();
        assert_eq!(second.run(u64::MAX), Stop::Halt);
        assert_eq!(second.instructions() + cut, whole.instructions());
        let mut end = second.save();
        end.tsc = expected.tsc;
        assert_eq!(end, expected, "cut at {cut}");
    }
}

#[test]
fn saving_and_restoring_changes_nothing() {
    let mut run = Run::user(&[0x90, 0xeb, 0xfe]);
    enable_x2apic(&mut run.state);
    run.state.lapic.regs[0x320..0x324].copy_from_slice(&(2u32 << 17 | 0xec).to_le_bytes());
    run.state.lapic.deadline_ticks = Some(12_345);
    run.state.msrs.kernel_gs_base = 0xffff_8880_0000_1000;
    run.state.events.nmi_pending = true;
    run.state.tsc = u64::MAX - 5;
    run.cpu.restore(&run.state).unwrap();
    let once = run.cpu.save();
    let mut other = run.machine.cpu(0);
    other.restore(&once).unwrap();
    assert_eq!(other.save(), once);
    assert_eq!((once.tsc, once.lapic.deadline_ticks), (u64::MAX - 5, Some(u64::MAX - 5 - once.tsc + 5)));
}

#[test]
fn impossible_states_are_refused_with_a_reason() {
    type Spoil = fn(&mut arch::x86_64::state::VcpuState);
    let cases: &[(&str, Spoil)] = &[
        ("CR0", |s| s.cr0 = 0x8000_0000),
        ("CR4", |s| s.cr4 |= 1 << 21),
        ("EFER", |s| s.msrs.efer |= 1 << 12),
        ("EFER", |s| s.msrs.efer &= !0x400),
        ("CR3", |s| s.cr3 = 1 << 60),
        ("RFLAGS", |s| s.rflags = 0),
        ("RFLAGS", |s| s.rflags |= 1 << 17),
        ("RIP", |s| s.rip = 1 << 47),
        ("LSTAR", |s| s.msrs.lstar = 1 << 63),
        ("PAT", |s| s.msrs.pat = 2),
        ("privilege", |s| s.seg[1].selector |= 3),
        ("CS", |s| s.seg[1].attr = 0xc093),
        ("GDTR", |s| s.gdtr.base = 1 << 62),
        ("1024", |s| s.lapic.regs.truncate(1000)),
        ("vector below 16", |s| s.lapic.regs[0x200] = 1),
        ("FXSAVE", |s| s.fxsave.clear()),
        ("exception 77", |s| s.events.exception = Some((77, None))),
    ];
    for (what, spoil) in cases {
        let mut run = Run::kernel(&[0xf4]);
        let good = run.state.clone();
        spoil(&mut run.state);
        let error = run.cpu.restore(&run.state).expect_err(what);
        assert!(error.0.contains(what), "{what}: {error}");
        run.cpu.restore(&good).unwrap();
    }
}

/// A value that is often nearly right.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|b| 1 << b),
        0u64..0x20_0000,
        (0u64..0x1000).prop_map(|v| v | 0xffff_8000_0000_0000),
    ]
}

proptest! {
    /// A hostile state is refused or runs; it never panics, hangs or reaches outside of its memory.
    /// (PROPTEST_CASES=100000 for a long look.)
    #[test]
    fn random_states_never_panic(
        edits in proptest::collection::vec((0usize..60, word()), 0..12),
        code in proptest::collection::vec(any::<u8>(), 64),
        lapic in proptest::collection::vec((0usize..1024, any::<u8>()), 0..16),
    ) {
        let mut run = Run::kernel(&code);
        let s = &mut run.state;
        for (at, value) in edits {
            match at {
                0..16 => s.gpr[at] = value,
                16 => s.rip = value,
                17 => s.rflags = value,
                18..24 => s.seg[at - 18].base = value,
                24..30 => s.seg[at - 24].attr = value as u32,
                30..36 => s.seg[at - 30].selector = value as u16,
                36 => s.tr.base = value,
                37 => s.gdtr.base = value,
                38 => s.idtr.base = value,
                39 => s.cr0 = value,
                40 => s.cr3 = value,
                41 => s.cr4 = value,
                42 => s.msrs.efer = value,
                43 => s.msrs.apic_base = value,
                44 => s.msrs.kvm_system_time = value,
                45 => s.tsc = value,
                46 => s.lapic.deadline_ticks = Some(value),
                47 => s.events.interrupt = Some(value as u8),
                48 => s.fxsave[value as usize % 512] = (value >> 9) as u8,
                49 => s.msrs.lstar = value,
                50 => s.seg[1].limit = value as u32,
                51 => s.gdtr.limit = value as u16,
                52 => s.idtr.limit = value as u16,
                53 => s.tr.limit = value as u32,
                _ => s.cr8 = value & 0xf,
            }
        }
        for (at, byte) in lapic {
            s.lapic.regs[at] = byte;
        }
        if run.cpu.restore(&run.state).is_ok() {
            for _ in 0..20 {
                let stop = run.cpu.run(500);
                run.cpu.reply(0x5a5a);
                if matches!(stop, Stop::Halt | Stop::TripleFault | Stop::Unsupported(_)) {
                    break;
                }
            }
            let state = run.cpu.save();
            // What it saves, it restores.
            prop_assert!(run.machine.cpu(0).restore(&state).is_ok(), "{:?}", run.machine.cpu(0).restore(&state));
        }
    }
}

fn stepper(machine: &Machine) -> Stepper {
    Stepper::new(machine.memory.clone(), 0, machine.cpuid.clone().into(), TSC_KHZ)
}

#[test]
fn a_step_is_one_instruction_and_leaves_events_and_time_alone() {
    let mut run = Run::kernel(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3, 0x90, 0xf4]); // popcnt rax, rbx; nop
    run.state.gpr[3] = 0xff;
    run.state.tsc = 777;
    run.state.rflags |= 0x200;
    run.state.events.interrupt = Some(0x50);
    run.state.lapic.regs[0x220] = 1; // vector 0x40 pends
    let mut state = run.state.clone();
    assert_eq!(stepper(&run.machine).step(&mut state), Ok(StepOutcome::Done));
    assert_eq!((state.rip, state.gpr[0], state.tsc), (CODE + 5, 8, 777));
    assert_eq!(state.events.interrupt, Some(0x50));
    assert_eq!(state.lapic.regs[0x220], 1);
}

#[test]
fn a_step_delivers_the_exception_that_it_raises() {
    let run = Run::kernel(&[0xcc]);
    let mut state = run.state.clone();
    assert_eq!(stepper(&run.machine).step(&mut state), Ok(StepOutcome::Done));
    assert_eq!(state.rip, super::machine::HANDLERS + 16 * 3);
    assert_eq!(run.machine.get(state.gpr[4]), CODE + 1);
}

#[test]
fn a_step_that_needs_a_device_is_finished_with_its_answer() {
    let run = Run::kernel(&[0xed]); // in eax, dx
    let mut state = run.state.clone();
    state.gpr[2] = 0x3f8;
    let mut stepper = stepper(&run.machine);
    let asked = stepper.step(&mut state).unwrap();
    assert_eq!(asked, StepOutcome::Access(Stop::PioRead { port: 0x3f8, size: 4 }));
    assert_eq!(state.rip, CODE);
    assert_eq!(stepper.answer(0x1234, &mut state), StepOutcome::Done);
    assert_eq!((state.rip, state.gpr[0]), (CODE + 1, 0x1234));
}

#[test]
fn a_step_sees_code_that_was_changed_behind_guestmems_back() {
    let run = Run::kernel(&[0xb0, 1]);
    let mut stepper = stepper(&run.machine);
    let mut state = run.state.clone();
    stepper.step(&mut state).unwrap();
    run.machine.code(CODE, &[0xb0, 2]);
    state.rip = CODE;
    stepper.step(&mut state).unwrap();
    assert_eq!(state.gpr[0] & 0xff, 2);
    let _ = DATA;
}
