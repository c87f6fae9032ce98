//! Delivery, stacks, the ways back, SYSCALL (SDM vol. 3, chapter 6; vol. 2).

use std::sync::{Arc, OnceLock};

use arch::x86_64::hot::{CodeMode, HotBlock};
use arch::x86_64::regs::seg;
use x86cpu::{HotSet, Stop};

use super::machine::{CODE, IST1, KERNEL_CS, Run, STACK, USER_CODE, USER_CS, USER_CS32, USER_DS, USER_STACK};

const IF: u64 = 0x200;

#[test]
fn an_interrupt_from_user_mode_takes_the_stack_of_the_tss() {
    let mut run = Run::user(&[0x90, 0x0f, 0x0b]); // nop; ud2
    run.state.rflags |= IF | 0x400;
    run.go();
    assert_eq!(run.vector(), Some(6));
    let frame: Vec<u64> = (0..5).map(|i| run.stack(i)).collect();
    assert_eq!(frame, [USER_CODE + 1, USER_CS.into(), 0x602, USER_STACK, USER_DS.into()]);
    assert_eq!(run.state.gpr[4], STACK - 40);
    assert_eq!((run.state.seg[seg::CS].selector, run.state.seg[seg::SS].selector), (KERNEL_CS, 0));
    assert_eq!(run.state.rflags & IF, 0, "an interrupt gate clears IF");
    assert_eq!(run.state.rflags & 0x400, 0x400, "and leaves DF");
}

#[test]
fn the_stack_is_aligned_before_the_frame() {
    let mut run = Run::kernel(&[0x0f, 0x0b]);
    run.state.gpr[4] = STACK - 0x100 - 3;
    run.go();
    assert_eq!(run.state.gpr[4], STACK - 0x110 - 40);
    assert_eq!(run.stack(3), STACK - 0x103);
}

#[test]
fn an_ist_entry_changes_the_stack_without_a_change_of_privilege() {
    let mut run = Run::kernel(&[0x0f, 0x0b]);
    run.machine.gate(6, 0x8f, 1);
    run.state.rflags |= IF;
    run.go();
    assert_eq!((run.vector(), run.state.gpr[4]), (Some(6), IST1 - 40));
    assert_eq!(run.state.rflags & IF, IF, "a trap gate leaves IF");
    assert_eq!(run.stack(4), u64::from(super::machine::KERNEL_DS));
}

#[test]
fn software_interrupts_ask_for_the_gates_privilege() {
    let mut run = Run::user(&[0xcd, 0x80]);
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(13), 0x80 * 8 + 2));
    assert_eq!(run.stack(1), USER_CODE, "a fault: back to the instruction");
    let mut run = Run::user(&[0xcd, 0x80]);
    run.machine.gate(0x80, 0xee, 0);
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(0x80), USER_CODE + 2));
    let mut run = Run::user(&[0xcc]);
    run.machine.gate(3, 0xee, 0);
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(3), USER_CODE + 1));
}

#[test]
fn a_missing_gate_becomes_a_double_and_then_a_triple_fault() {
    let mut run = Run::kernel(&[0x0f, 0x0b]);
    run.machine.gate(6, 0x0e, 0);
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(11), 6 * 8 + 2 + 1), "#NP with the IDT and EXT bits");
    run = Run::kernel(&[0xff, 0xe3]); // jmp to nowhere
    run.state.gpr[3] = 0x8000_0000;
    run.machine.gate(14, 0x0e, 0);
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(8), 0));
    run = Run::kernel(&[0x0f, 0x0b]);
    run.state.idtr.limit = 0;
    assert_eq!(run.go(), Stop::TripleFault);
}

#[test]
fn a_fault_while_delivering_leaves_the_interrupted_state_alone() {
    let mut run = Run::user(&[0x0f, 0x0b]);
    // The kernel stack is missing: #PF while delivering #UD; #PF has a stack of its own.
    run.machine.put(super::machine::TSS + 4, 0x1f_f000);
    run.machine.put(run.machine.pte(0x1f_e000), 0);
    run.machine.gate(14, 0x8e, 1);
    run.go();
    assert_eq!((run.vector(), run.state.cr2), (Some(14), 0x1f_eff8 - 32));
    assert_eq!((run.stack(0), run.stack(1), run.stack(2)), (2, USER_CODE, USER_CS.into()));
}

#[test]
fn syscall_and_sysret_swap_the_worlds() {
    // Kernel: sysretq to user code, which says syscall; the kernel halts there.
    let mut run = Run::kernel(&[0x48, 0x0f, 0x07]);
    run.machine.code(USER_CODE, &[0x0f, 0x05]);
    run.machine.code(CODE + 0x100, &[0xf4]);
    run.state.msrs.lstar = CODE + 0x100;
    run.state.msrs.fmask = 0x700;
    run.state.gpr[1] = USER_CODE;
    run.state.gpr[11] = 0x3_0702; // RF is dropped
    run.state.rflags = 2;
    run.machine.gate(1, 0x8e, 1);
    run.state.gpr[11] &= !0x100;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!(run.state.rip, CODE + 0x101);
    assert_eq!(run.state.gpr[1], USER_CODE + 2);
    assert_eq!(run.state.gpr[11], 0x602);
    assert_eq!(run.state.rflags, 2);
    assert_eq!((run.state.seg[seg::CS].selector, run.state.seg[seg::SS].selector), (8, 16));
    assert_eq!(run.state.seg[seg::CS].attr, 0xa09b);
}

/// What a program runs may be translated while the kernel sleeps: it looks into the program's tables all the same.
#[test]
fn code_that_the_kernel_had_translated_ahead_reads_as_the_user() {
    let mut run = Run::kernel(&[0x48, 0x0f, 0x07]);
    // mov rax, [rbx] ; syscall
    run.machine.code(USER_CODE, &[0x48, 0x8b, 0x03, 0x0f, 0x05]);
    run.machine.code(CODE + 0x100, &[0xf4]);
    run.machine.put(USER_STACK - 0x100, 0x1234_5678);
    run.state.msrs.lstar = CODE + 0x100;
    (run.state.gpr[1], run.state.gpr[3], run.state.gpr[11]) = (USER_CODE, USER_STACK - 0x100, 2);
    let hot = HotBlock { address: USER_CODE, mode: CodeMode::User64, heat: 1 << 20 };
    run.cpu.foresee(Arc::new(OnceLock::from(HotSet::new(&[hot], &run.machine.memory))));
    run.cpu.restore(&run.state).unwrap();
    let _ = run.cpu.translate_ahead(1);
    let translated = run.cpu.jit_counters().translations;
    assert_eq!(translated, u64::from(env!("CARGO_CRATE_NAME") == "system_translated"));
    assert_eq!((run.on(), run.state.gpr[0]), (Stop::Halt, 0x1234_5678));
}

#[test]
fn sysret_to_a_non_canonical_address_faults_in_the_kernel() {
    let mut run = Run::kernel(&[0x48, 0x0f, 0x07]);
    run.state.gpr[1] = 0x8000_0000_0000;
    run.go();
    assert_eq!((run.vector(), run.stack(0), run.stack(2)), (Some(13), 0, KERNEL_CS.into()));
}

/// A kernel that says IRET to a frame.
fn iret(frame: [u64; 5]) -> Run {
    let mut run = Run::kernel(&[0x48, 0xcf]);
    run.state.gpr[4] = STACK - 0x200;
    for (i, item) in frame.into_iter().enumerate() {
        run.machine.put(STACK - 0x200 + 8 * i as u64, item);
    }
    run
}

#[test]
fn iret_goes_to_user_mode_and_to_compatibility_mode() {
    let mut run = iret([USER_CODE, USER_CS.into(), 0x202, USER_STACK, USER_DS.into()]);
    run.machine.code(USER_CODE, &[0x50, 0x0f, 0x0b]); // push rax; ud2
    run.go();
    assert_eq!((run.vector(), run.stack(0), run.stack(2)), (Some(6), USER_CODE + 1, 0x202));
    assert_eq!((run.stack(1), run.stack(3)), (USER_CS.into(), USER_STACK - 8));
    // 32-bit: the same bytes push four.
    let mut run = iret([USER_CODE, USER_CS32.into(), 2, USER_STACK, USER_DS.into()]);
    run.machine.code(USER_CODE, &[0x50, 0x0f, 0x0b]);
    run.go();
    assert_eq!((run.vector(), run.stack(1), run.stack(3)), (Some(6), USER_CS32.into(), USER_STACK - 4));
}

#[test]
fn iret_checks_its_frame_before_it_changes_anything() {
    let cases = [
        ([0x8000_0000_0000, USER_CS.into(), 2, USER_STACK, USER_DS.into()], 0),
        ([USER_CODE, 0, 2, USER_STACK, USER_DS.into()], 0),
        ([USER_CODE, 0x100, 2, USER_STACK, USER_DS.into()], 0x100),
        ([USER_CODE, USER_CS.into(), 2, USER_STACK, 0], 0),
        ([USER_CODE, USER_CS.into(), 2, USER_STACK, 0x10], 0x10),
        ([USER_CODE, u64::from(USER_DS), 2, USER_STACK, USER_DS.into()], 0x28),
    ];
    for (frame, code) in cases {
        let mut run = iret(frame);
        run.go();
        assert_eq!((run.vector(), run.stack(0), run.stack(1)), (Some(13), code, CODE), "{frame:x?}");
        assert_eq!(run.stack(4), STACK - 0x200);
    }
}

#[test]
fn data_segments_of_the_kernel_do_not_follow_to_user_mode() {
    let mut run = iret([USER_CODE, USER_CS.into(), 2, USER_STACK, USER_DS.into()]);
    run.machine.code(USER_CODE, &[0x0f, 0x0b]);
    run.state.seg[seg::ES].selector = USER_DS;
    run.state.seg[seg::ES].attr = 0xc0f3;
    run.state.seg[seg::GS].base = 0x1234;
    run.go();
    assert_eq!(run.state.seg[seg::DS].selector, 0);
    assert_eq!(run.state.seg[seg::ES].selector, USER_DS);
    assert_eq!(run.state.seg[seg::GS].base, 0x1234);
}

#[test]
fn the_instruction_after_sti_runs_before_the_interrupt() {
    // self-IPI by x2APIC, then sti; inc rax; inc rax; hlt
    let code = [
        0xb9, 0x3f, 0x08, 0, 0, 0xb8, 0x50, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x31, 0xc0, 0xfb, 0x48, 0xff,
        0xc0, 0x48, 0xff, 0xc0, 0xf4,
    ];
    let mut run = Run::kernel(&code);
    enable_x2apic(&mut run.state);
    run.go();
    assert_eq!((run.vector(), run.state.gpr[0]), (Some(0x50), 1));
}

/// x2APIC mode, software-enabled.
pub fn enable_x2apic(state: &mut arch::x86_64::state::VcpuState) {
    state.msrs.apic_base |= 0x400;
    state.lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
}

#[test]
fn nmis_wait_for_iret() {
    // In the NMI handler another NMI arrives; it is seen after IRET.
    let mut run = Run::kernel(&[0x90, 0xf4]);
    run.machine.code(super::machine::HANDLERS + 32, &[0xf4, 0x48, 0xcf]); // hlt; iretq
    run.machine.bus.deliver_msi(0xfee0_0000, 4 << 8);
    run.cpu.restore(&run.state).unwrap();
    run.machine.bus.deliver_msi(0xfee0_0000, 4 << 8);
    assert_eq!(run.on(), Stop::Halt);
    assert_eq!(run.vector(), Some(2));
    run.machine.bus.deliver_msi(0xfee0_0000, 4 << 8);
    assert_eq!(run.on(), Stop::Halt, "masked: it does not even end HLT");
    assert!(run.state.events.nmi_masked && run.state.events.nmi_pending);
    let depth = run.state.gpr[4];
    // Let the handler go on to its IRET.
    run.state.mp_state = Default::default();
    run.go();
    assert_eq!((run.vector(), run.state.gpr[4]), (Some(2), depth), "the second NMI, not nested");
}

#[test]
fn a_pending_event_of_a_saved_state_is_delivered_first() {
    let mut run = Run::kernel(&[0xf4]);
    run.state.events.exception = Some((13, Some(0x18)));
    run.go();
    assert_eq!((run.vector(), run.stack(0), run.stack(1)), (Some(13), 0x18, CODE));
    let mut run = Run::kernel(&[0xf4]);
    run.state.events.interrupt = Some(0x41);
    run.go();
    assert_eq!((run.vector(), run.stack(0)), (Some(0x41), CODE));
}

#[test]
fn unknown_msrs_and_reserved_bits_are_gp() {
    let rdmsr = |msr: u32| {
        let mut run = Run::kernel(&[0x0f, 0x32, 0xf4]);
        run.state.gpr[1] = msr.into();
        run.go();
        run.vector()
    };
    assert_eq!(rdmsr(0xdead), Some(13));
    assert_eq!(rdmsr(0xc000_0080), None);
    assert_eq!(rdmsr(0x802), Some(13), "x2APIC registers need x2APIC mode");
    let wrmsr = |msr: u32, value: u64| {
        let mut run = Run::kernel(&[0x0f, 0x30, 0xf4]);
        run.state.gpr[1] = msr.into();
        run.state.gpr[0] = value & 0xffff_ffff;
        run.state.gpr[2] = value >> 32;
        run.go();
        run.vector()
    };
    assert_eq!(wrmsr(0xc000_0082, 0x8000_0000_0000), Some(13));
    assert_eq!(wrmsr(0xc000_0080, 0xd01), None);
    assert_eq!(wrmsr(0xc000_0080, 0xc01), Some(13), "LME cannot go while paging");
    assert_eq!(wrmsr(0xc000_0080, 0xd01 | 1 << 12), Some(13));
    assert_eq!(wrmsr(0x277, 0x2), Some(13));
}

#[test]
fn control_registers_refuse_impossible_values() {
    let mov = |modrm: u8, value: u64| {
        let mut run = Run::kernel(&[0x0f, 0x22, modrm, 0xf4]); // mov crN, rax
        run.state.gpr[0] = value;
        run.go();
        run.vector()
    };
    assert_eq!(mov(0xc0, 0x8001_0033), None);
    assert_eq!(mov(0xc0, 0x0001_0033), Some(13), "no paging in 64-bit mode");
    assert_eq!(mov(0xc0, 0x8001_0032), Some(13), "paging without protection");
    assert_eq!(mov(0xc0, 0xa001_0033), Some(13), "NW without CD");
    assert_eq!(mov(0xe0, 0x680), Some(13), "no PAE");
    assert_eq!(mov(0xe0, 0x6a0 | 1 << 18), Some(13), "OSXSAVE is not offered");
    assert_eq!(mov(0xd8, 1 << 45), Some(13));
    assert_eq!(mov(0xd8, 0x1000), None);
}
