//! Two vCPUs on one thread, in turn: start-up, interprocessor interrupts, kvmclock.

use arch::x86_64::state::MpState;
use x86cpu::Stop;

use super::interrupts::enable_x2apic;
use super::machine::{CODE, DATA, GDT, Machine, TRAMPOLINE};

/// Real mode at 0x9000: cli; ds = cs; lgdt [0x30]; set CR0.PE; far jump to 32-bit code at 0x9040: data
/// segments, CR4.PAE, CR3, EFER.LME|NXE, CR0.PG; far jump to 64-bit code at 0x90a0:
/// mov rax,0x1122334455667788; mov [0x20000],rax; hlt
fn trampoline(machine: &Machine) {
    machine.code(
        TRAMPOLINE,
        &[
            0xfa, 0x8c, 0xc8, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x30, 0x00, 0x0f, 0x20, 0xc0, 0x0c, 0x01,
            0x0f, 0x22, 0xc0, 0xea, 0x40, 0x90, 0x18, 0x00,
        ],
    );
    machine.memory.write_le::<u16>(TRAMPOLINE + 0x30, 9 * 8 - 1).unwrap();
    machine.memory.write_le::<u32>(TRAMPOLINE + 0x32, GDT as u32).unwrap();
    machine.code(
        TRAMPOLINE + 0x40,
        &[
            0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xd0, 0x8e, 0xc0, 0xb8, 0x20, 0x00, 0x00, 0x00, 0x0f,
            0x22, 0xe0, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f,
            0x32, 0x0d, 0x00, 0x09, 0x00, 0x00, 0x0f, 0x30, 0xb8, 0x01, 0x00, 0x01, 0x80, 0x0f, 0x22, 0xc0,
            0xea, 0xa0, 0x90, 0x00, 0x00, 0x08, 0x00,
        ],
    );
    machine.code(
        TRAMPOLINE + 0xa0,
        &[
            0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x48, 0x89, 0x04, 0x25, 0x00, 0x00,
            0x02, 0x00, 0xf4,
        ],
    );
}

/// mov ecx,0x830; mov edx,dest; mov eax,command; wrmsr
fn send_ipi(command: u32, destination: u32) -> Vec<u8> {
    let mut code = vec![0xb9, 0x30, 8, 0, 0, 0xba];
    code.extend(destination.to_le_bytes());
    code.push(0xb8);
    code.extend(command.to_le_bytes());
    code.extend([0x0f, 0x30]);
    code
}

#[test]
fn a_second_processor_starts_from_real_mode_by_init_and_sipi() {
    let machine = Machine::new(2);
    trampoline(&machine);
    let (mut boot, mut other) = (machine.cpu(0), machine.cpu(1));
    assert_eq!(other.run(100), Stop::Halt);
    assert_eq!(other.save().mp_state, MpState::Uninitialized);
    let mut code = send_ipi(0xc500, 1);
    code.extend(send_ipi(0x8500, 1));
    code.push(0xf4);
    code.extend(send_ipi(0x0600 | (TRAMPOLINE >> 12) as u32, 1));
    code.push(0xf4);
    machine.code(CODE, &code);
    let mut state = machine.state(&mut boot);
    enable_x2apic(&mut state);
    boot.restore(&state).unwrap();
    assert_eq!(boot.run(100), Stop::Halt);
    assert_eq!(other.run(100), Stop::Halt);
    assert_eq!(other.save().mp_state, MpState::WaitForSipi);
    state = boot.save();
    state.mp_state = MpState::Runnable;
    boot.restore(&state).unwrap();
    assert_eq!(boot.run(100), Stop::Halt);
    assert_eq!(other.run(1000), Stop::Halt);
    assert_eq!(machine.get(DATA), 0x1122_3344_5566_7788);
    let other = other.save();
    assert_eq!((other.mp_state, other.msrs.efer, other.rip), (MpState::Halted, 0xd00, TRAMPOLINE + 0xb3));
}

/// Two processors in x2APIC mode; the first sends `command`, then both run to a halt.
fn exchange(command: u32, destination: u32) -> [Option<u64>; 2] {
    let machine = Machine::new(2);
    let mut code = send_ipi(command, destination);
    code.extend([0xfb, 0x90, 0xf4]);
    machine.code(CODE, &code);
    machine.code(CODE + 0x100, &[0xfb, 0x90, 0xf4, 0xeb, 0xfd]);
    let mut cpus = [machine.cpu(0), machine.cpu(1)];
    for (i, cpu) in cpus.iter_mut().enumerate() {
        let mut state = machine.state(cpu);
        enable_x2apic(&mut state);
        state.rip = CODE + 0x100 * i as u64;
        cpu.restore(&state).unwrap();
    }
    assert_eq!(cpus[1].run(100), Stop::Halt);
    cpus.map(|mut cpu| {
        assert_eq!(cpu.run(100), Stop::Halt);
        let rip = cpu.save().rip;
        rip.checked_sub(super::machine::HANDLERS + 1).filter(|at| *at < 4096).map(|at| at / 16)
    })
}

#[test]
fn interprocessor_interrupts_find_whom_they_are_for() {
    assert_eq!(exchange(0x81, 1), [None, Some(0x81)], "physical");
    assert_eq!(exchange(0x81, 0), [Some(0x81), None], "physical, to itself");
    assert_eq!(exchange(0x81, u32::MAX), [Some(0x81), Some(0x81)], "broadcast");
    assert_eq!(exchange(0x881, 2), [None, Some(0x81)], "logical: cluster 0, bit 1");
    assert_eq!(exchange(0x881, 3), [Some(0x81), Some(0x81)], "logical: both");
    assert_eq!(exchange(0x881, 0x1_0003), [None, None], "another cluster");
    assert_eq!(exchange(0x4_0081, 1), [Some(0x81), None], "self");
    assert_eq!(exchange(0x8_0081, 0), [Some(0x81), Some(0x81)], "all");
    assert_eq!(exchange(0xc_0081, 0), [None, Some(0x81)], "all others");
    assert_eq!(exchange(0x0c_0400, 0), [None, Some(2)], "NMI to the others");
    let lowest = exchange(0x981, 3);
    assert_eq!(lowest.iter().flatten().count(), 1, "lowest priority goes to one");
}

#[test]
fn all_vcpus_see_one_clock() {
    let machine = Machine::new(2);
    // wrmsr; rdtsc; hlt
    machine.code(CODE, &[0x0f, 0x30, 0x0f, 0x31, 0xf4]);
    machine.clock.set_ns(123_456_789);
    for id in 0..2u64 {
        let mut cpu = machine.cpu(id as u32);
        let mut state = machine.state(&mut cpu);
        state.gpr[1] = 0x4b56_4d01;
        state.gpr[0] = (DATA + 0x100 * id) | 1;
        state.tsc = 1000;
        cpu.restore(&state).unwrap();
        assert_eq!(cpu.run(100), Stop::Halt);
        assert_eq!(cpu.save().gpr[0], 1000, "the clock stands still: so does the TSC");
        let page = DATA + 0x100 * id;
        assert_eq!((machine.get(page + 8), machine.get(page + 16)), (1000, 123_456_789));
        assert_eq!(machine.get(page + 24) >> 40 & 0xff, 1, "TSC_STABLE");
    }
}
