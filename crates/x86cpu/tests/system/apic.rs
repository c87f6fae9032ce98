//! The local APIC through its registers (SDM vol. 3, chapter 11).

use x86cpu::Stop;

use super::interrupts::enable_x2apic;
use super::machine::{PD, Run};

/// wrmsr of rcx, edx:eax; sti; hlt
const WRITE_AND_WAIT: &[u8] = &[0x0f, 0x30, 0xfb, 0xf4];

fn x2apic(code: &[u8]) -> Run {
    let mut run = Run::kernel(code);
    enable_x2apic(&mut run.state);
    run
}

fn set(run: &mut Run, offset: usize, value: u32) {
    run.state.lapic.regs[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn reg(run: &Run, offset: usize) -> u32 {
    u32::from_le_bytes(run.state.lapic.regs[offset..offset + 4].try_into().unwrap())
}

/// Lets time pass until the timer is due, then goes on.
fn pass_time(run: &mut Run) -> Stop {
    let due = run.cpu.timer_due_ns().expect("a timer is armed");
    run.machine.clock.set_ns(due - 1);
    assert_eq!(run.on(), Stop::Halt, "not yet");
    assert_eq!(run.vector(), None);
    run.machine.clock.set_ns(due);
    run.on()
}

#[test]
fn the_tsc_deadline_fires_when_the_clock_gets_there() {
    let mut run = x2apic(WRITE_AND_WAIT);
    set(&mut run, 0x320, 2 << 17 | 0xec);
    run.state.gpr[1] = 0x6e0;
    run.state.gpr[0] = 5_000_000;
    run.state.tsc = 1_000_000;
    assert_eq!(run.go(), Stop::Halt);
    // 1 GHz: 4,000,000 ticks are as many nanoseconds.
    assert_eq!(run.cpu.timer_due_ns(), Some(4_000_000));
    run.machine.clock.resume();
    let stop = loop {
        let stop = run.on();
        if run.vector().is_some() {
            break stop;
        }
    };
    assert_eq!((stop, run.vector()), (Stop::Halt, Some(0xec)));
    assert_eq!(run.state.lapic.deadline_ticks, None);
    assert_eq!(reg(&run, 0x170), 1 << 12, "in service");
}

#[test]
fn one_shot_and_periodic_counts() {
    for (lvt, again) in [(0x40, false), (1 << 17 | 0x40, true)] {
        let mut run = x2apic(WRITE_AND_WAIT);
        set(&mut run, 0x320, lvt);
        set(&mut run, 0x3e0, 0b1011); // divide by 1
        run.state.gpr[1] = 0x838;
        run.state.gpr[0] = 1_000_000;
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!(pass_time(&mut run), Stop::Halt);
        assert_eq!(run.vector(), Some(0x40));
        assert_eq!(run.cpu.timer_due_ns().is_some(), again);
    }
}

#[test]
fn the_task_priority_holds_interrupts_back_by_class() {
    // mov cr8,rax; sti; nop; hlt; mov cr8,rbx; hlt
    let code = [0x44, 0x0f, 0x22, 0xc0, 0xfb, 0x90, 0xf4, 0x44, 0x0f, 0x22, 0xc3, 0xf4];
    let mut run = x2apic(&code);
    run.state.gpr[0] = 5;
    run.state.gpr[3] = 4;
    run.cpu.restore(&run.state).unwrap();
    run.machine.bus.deliver_msi(0xfee0_0000, 0x5f);
    assert_eq!((run.on(), run.vector()), (Stop::Halt, None), "class 5 waits for less than 5");
    assert_eq!(run.state.cr8, 5);
    run.state.mp_state = Default::default();
    run.go();
    assert_eq!(run.vector(), Some(0x5f));
}

#[test]
fn the_highest_vector_comes_first_and_the_next_after_eoi() {
    // The handler: mov ecx,0x80b; xor eax,eax; xor edx,edx; wrmsr (EOI); hlt; iretq
    let mut run = x2apic(&[0xfb, 0x90, 0xf4]);
    let handler = [0xb9, 0x0b, 8, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0xfb, 0x90, 0xf4];
    run.machine.code(super::machine::HANDLERS + 16 * 0x71, &handler);
    run.cpu.restore(&run.state).unwrap();
    for vector in [0x31, 0x71] {
        run.machine.bus.deliver_msi(0xfee0_0000, vector);
    }
    run.on();
    assert_eq!(run.vector(), Some(0x31));
    assert_eq!(run.stack(0), super::machine::HANDLERS + 16 * 0x71 + 13, "it came in the other's handler");
}

#[test]
fn ending_a_level_triggered_interrupt_tells_the_ioapic() {
    let mut run = x2apic(&[0xfb, 0x90, 0xf4]);
    // The handler ends it: mov ecx,0x80b; xor eax,eax; xor edx,edx; wrmsr; hlt
    let handler = [0xb9, 0x0b, 8, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0xf4];
    run.machine.code(super::machine::HANDLERS + 16 * 0x71, &handler);
    run.cpu.restore(&run.state).unwrap();
    run.machine.bus.deliver_msi(0xfee0_0000, 0x71 | 1 << 15);
    assert_eq!(run.on(), Stop::IoapicEoi { vector: 0x71 });
    assert_eq!(run.on(), Stop::Halt);
    run.machine.bus.deliver_msi(0xfee0_0000, 0x72);
    run.state = run.cpu.save();
    assert_ne!(reg(&run, 0x230) & 1 << 18, 0, "edge-triggered again: accepted, no message owed");
    assert_eq!(reg(&run, 0x1b0) & 1 << 18, 0);
}

#[test]
fn vectors_below_16_and_a_disabled_apic_take_nothing() {
    let mut run = x2apic(&[0xfb, 0x90, 0xf4]);
    run.cpu.restore(&run.state).unwrap();
    run.machine.bus.deliver_msi(0xfee0_0000, 0x0f);
    assert_eq!((run.on(), run.vector()), (Stop::Halt, None));
    set(&mut run, 0xf0, 0xff);
    run.cpu.restore(&run.state).unwrap();
    run.machine.bus.deliver_msi(0xfee0_0000, 0x71);
    assert_eq!((run.on(), run.vector()), (Stop::Halt, None));
}

#[test]
fn the_xapic_page_is_inside_the_cpu() {
    // mov [rbx+0xf0],0x1ff; mov eax,[rbx+0x30]; mov [rbx+0x310],0; mov [rbx+0x300],0x61; sti; nop; hlt
    let code = [
        0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, 0x8b, 0x43, 0x30, 0xc7, 0x83, 0x10, 3, 0, 0, 0, 0, 0, 0,
        0xc7, 0x83, 0, 3, 0, 0, 0x61, 0, 0, 0, 0xfb, 0x90, 0xf4,
    ];
    let mut run = Run::kernel(&code);
    run.machine.put(PD + 16, 0xfee0_0083);
    run.state.gpr[3] = 0x40_0000;
    assert_eq!(run.go(), Stop::Halt);
    assert_eq!((run.vector(), run.state.gpr[0]), (Some(0x61), 0x5_0014));
}

#[test]
fn x2apic_mode_is_entered_and_left_only_as_the_manual_allows() {
    let write = |from: u64, to: u64| {
        let mut run = Run::kernel(&[0x0f, 0x30, 0xf4]);
        run.state.msrs.apic_base = from;
        run.state.gpr[1] = 0x1b;
        run.state.gpr[0] = to;
        run.go();
        run.vector()
    };
    assert_eq!(write(0xfee0_0900, 0xfee0_0d00), None);
    assert_eq!(write(0xfee0_0d00, 0xfee0_0900), Some(13));
    assert_eq!(write(0xfee0_0d00, 0xfee0_0100), None);
    assert_eq!(write(0xfee0_0100, 0xfee0_0d00), Some(13));
    assert_eq!(write(0xfee0_0900, 0xfee0_0500), Some(13));
    assert_eq!(write(0xfee0_0900, 0xfee0_0901), Some(13));
}
