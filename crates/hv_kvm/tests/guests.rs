//! Tiny guests under KVM, and moved between KVM and the soft engine. Skipped aloud without `/dev/kvm`.
//!
//! The CPU template is forced: what is tested here does not depend on it, and the tests run where KVM
//! does not keep it, too.

use std::sync::Arc;
use std::sync::mpsc;

use arch::x86_64::cpuid::portable;
use arch::x86_64::regs::gpr;
use arch::x86_64::state::{MpState, VcpuState};
use guestmem::GuestMemory;
use hv::{ClockState, EngineKind, Error, Exit, Msi, Partition, PartitionConfig, Vcpu};
use hv_kvm::tiny::{self, DATA, DEVICE, DONE, FAULT_PORT};
use hv_kvm::{KvmPartition, host_tsc_khz, selftest};
use hv_soft::SoftPartition;

const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_LEVEL: u32 = 1 << 15;

/// The host's TSC rate, or nothing where KVM cannot be used.
fn kvm() -> Option<u32> {
    match host_tsc_khz() {
        Ok(khz) => Some(khz),
        Err(error) => {
            eprintln!("skipped: no /dev/kvm ({error})");
            None
        }
    }
}

fn config(memory: &GuestMemory, vcpus: u32, khz: u32) -> PartitionConfig {
    PartitionConfig {
        memory: memory.clone(),
        vcpus,
        cpuid: portable(vcpus, khz),
        tsc_khz: Some(khz),
        force_template: true,
        repeatable: false,
    }
}

struct Machine {
    memory: GuestMemory,
    partition: KvmPartition,
    vcpu: Box<dyn Vcpu>,
}

/// A KVM machine at the start of `program`.
fn machine(khz: u32, cpl: u8, program: &[&[u8]]) -> Machine {
    let memory = tiny::memory(&program.concat()).unwrap();
    let partition = KvmPartition::new(config(&memory, 1, khz)).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    vcpu.restore(&tiny::state(cpl)).unwrap();
    Machine { memory, partition, vcpu }
}

/// `mov rbx, DEVICE`.
const RBX_DEVICE: [u8; 10] = [0x48, 0xbb, 0, 0, 0, 0xd0, 0, 0, 0, 0];
/// `jmp .`
const SPIN: [u8; 2] = [0xeb, 0xfe];

fn expect_done(vcpu: &mut dyn Vcpu, eax: u32) {
    match vcpu.run().unwrap() {
        Exit::MmioWrite { gpa: DEVICE, data } => assert_eq!(data, eax.to_le_bytes()),
        other => panic!("{other:?}"),
    }
}

fn expect_vector(vcpu: &mut dyn Vcpu, vector: u8) {
    match vcpu.run().unwrap() {
        Exit::PioWrite { port: FAULT_PORT, data } => assert_eq!(data, [vector]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ports_and_devices_answer_through_the_reply_slot() {
    let Some(khz) = kvm() else { return };
    // mov edx, 0x3f8; xor eax, eax; in al, dx; out dx, ax; mov rax, [rbx]; DONE
    let code = [0xba, 0xf8, 3, 0, 0, 0x31, 0xc0, 0xec, 0x66, 0xef, 0x48, 0x8b, 0x03];
    let mut m = machine(khz, 0, &[&RBX_DEVICE, &code, &DONE]);
    match m.vcpu.run().unwrap() {
        Exit::PioRead { port: 0x3f8, data } => data.copy_from_slice(&[0x5a]),
        other => panic!("{other:?}"),
    }
    match m.vcpu.run().unwrap() {
        Exit::PioWrite { port: 0x3f8, data } => assert_eq!(data, [0x5a, 0]),
        other => panic!("{other:?}"),
    }
    match m.vcpu.run().unwrap() {
        Exit::MmioRead { gpa: DEVICE, data } => data.copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    expect_done(m.vcpu.as_mut(), 0x5566_7788);
    assert_eq!(m.vcpu.counters().exits, 4);
}

#[test]
fn string_input_comes_in_pieces() {
    let Some(khz) = kvm() else { return };
    // mov edi, DATA; mov ecx, 5; mov edx, 0x60; rep insb; DONE
    let code = [0xbf, 0, 0, 2, 0, 0xb9, 5, 0, 0, 0, 0xba, 0x60, 0, 0, 0, 0xf3, 0x6c];
    let mut m = machine(khz, 0, &[&code, &DONE]);
    for i in 0..5u8 {
        match m.vcpu.run().unwrap() {
            Exit::PioRead { port: 0x60, data } => data.copy_from_slice(&[i + 1]),
            other => panic!("{other:?}"),
        }
    }
    expect_done(m.vcpu.as_mut(), 0);
    let mut got = [0; 6];
    m.memory.read(DATA, &mut got).unwrap();
    assert_eq!(got, [1, 2, 3, 4, 5, 0]);
}

#[test]
fn a_halted_vcpu_is_kicked_out_and_woken_by_a_message() {
    let Some(khz) = kvm() else { return };
    // 1: sti; hlt; jmp 1b
    let mut m = machine(khz, 0, &[&DONE, &[0xfb, 0xf4, 0xeb, 0xfc]]);
    expect_done(m.vcpu.as_mut(), 0);
    let kick = m.vcpu.kicker();
    // Until it has come to the HLT, which is interpreted on some hosts.
    let state = loop {
        let (to_kicker, from_runner) = mpsc::channel::<()>();
        let kick = Arc::clone(&kick);
        let kicker = std::thread::spawn(move || {
            from_runner.recv().unwrap();
            kick.kick();
        });
        to_kicker.send(()).unwrap();
        assert!(matches!(m.vcpu.run().unwrap(), Exit::Kicked));
        kicker.join().unwrap();
        m.vcpu.settle().unwrap();
        let state = m.vcpu.save().unwrap();
        if state.mp_state == MpState::Halted {
            break state;
        }
    };
    assert_eq!(state.rip, tiny::CODE + DONE.len() as u64 + 2);
    m.partition.signal_msi(Msi { address: MSI_ADDRESS, data: 0x41 }).unwrap();
    expect_vector(m.vcpu.as_mut(), 0x41);
}

#[test]
fn kicks_interrupt_both_rings_and_are_not_lost() {
    let Some(khz) = kvm() else { return };
    for cpl in [0, 3] {
        let mut m = machine(khz, cpl, &[&DONE, &SPIN]);
        let kick = m.vcpu.kicker();
        kick.kick();
        assert!(matches!(m.vcpu.run().unwrap(), Exit::Kicked), "before it ran, ring {cpl}");
        expect_done(m.vcpu.as_mut(), 0);
        let kicker = std::thread::spawn(move || kick.kick());
        assert!(matches!(m.vcpu.run().unwrap(), Exit::Kicked), "while it runs, ring {cpl}");
        kicker.join().unwrap();
    }
}

#[test]
fn a_kick_may_outlive_its_vcpu_and_a_second_vcpu_waits_for_init() {
    let Some(khz) = kvm() else { return };
    let memory = tiny::memory(&DONE).unwrap();
    let partition = KvmPartition::new(config(&memory, 2, khz)).unwrap();
    let mut second = partition.create_vcpu(1).unwrap();
    assert!(partition.create_vcpu(1).is_err() && partition.create_vcpu(2).is_err());
    let kick = second.kicker();
    let kicker = Arc::clone(&kick);
    let thread = std::thread::spawn(move || kicker.kick());
    assert!(matches!(second.run().unwrap(), Exit::Kicked));
    thread.join().unwrap();
    assert_eq!(second.save().unwrap().mp_state, MpState::Uninitialized);
    drop(second);
    kick.kick();
}

#[test]
fn a_level_triggered_interrupt_is_acknowledged_to_the_ioapic() {
    let Some(khz) = kvm() else { return };
    // sti; jmp .
    let mut m = machine(khz, 0, &[&[0xfb], &SPIN]);
    // mov ecx, 0x80b (EOI); xor eax, eax; xor edx, edx; wrmsr; iretq
    let handler = [0xb9, 0x0b, 8, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x48, 0xcf];
    tiny::set_handler(&m.memory, 0x60, &handler).unwrap();
    for _ in 0..2 {
        m.partition.signal_msi(Msi { address: MSI_ADDRESS, data: MSI_LEVEL | 0x60 }).unwrap();
        match m.vcpu.run().unwrap() {
            Exit::IoapicEoi { vector } => assert_eq!(vector, 0x60),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn edges_of_a_pin_arrive_one_by_one_also_when_its_message_changes() {
    let Some(khz) = kvm() else { return };
    // sti; jmp .
    let mut m = machine(khz, 0, &[&[0xfb], &SPIN]);
    for vector in [0x61u8, 0x62] {
        // mov al, VECTOR; out FAULT_PORT, al; mov ecx, 0x80b (EOI); xor eax, eax; cdq; wrmsr; iretq
        let code = [0xb0, vector, 0xe6, FAULT_PORT as u8];
        let end = [0xb9, 0x0b, 8, 0, 0, 0x31, 0xc0, 0x99, 0x0f, 0x30, 0x48, 0xcf];
        tiny::set_handler(&m.memory, vector, &[code.as_slice(), &end].concat()).unwrap();
    }
    // Enough of each for the shorter way to be taken; back to the first, whose old route must be gone.
    for vector in [0x61u8, 0x62, 0x61] {
        for _ in 0..20 {
            m.partition.pulse(4, Msi { address: MSI_ADDRESS, data: vector.into() }).unwrap();
            expect_vector(m.vcpu.as_mut(), vector);
        }
    }
    // Beyond the pins, and outside of the local APICs' window.
    m.partition.pulse(200, Msi { address: MSI_ADDRESS, data: 0x62 }).unwrap();
    expect_vector(m.vcpu.as_mut(), 0x62);
    (0..20).for_each(|_| m.partition.pulse(5, Msi { address: 0x1000, data: 0x62 }).unwrap());
}

#[test]
fn a_doorbell_takes_its_own_stores_and_no_others() {
    let Some(khz) = kvm() else { return };
    // mov eax, 5; DONE; mov eax, 6; DONE
    let (five, six) = ([0xb8, 5, 0, 0, 0], [0xb8, 6, 0, 0, 0]);
    let mut m = machine(khz, 0, &[&five, &DONE, &six, &DONE]);
    let bell = m.partition.doorbell(DEVICE, 5).unwrap().expect("KVM has events");
    let other = m.partition.doorbell(DEVICE + 8, 6).unwrap().expect("KVM has events");
    assert!(!bell.clear());
    expect_done(m.vcpu.as_mut(), 6);
    assert!(bell.clear() && !other.clear());
    assert!(m.partition.doorbell(DEVICE, 5).is_err(), "one bell for one store");
}

#[test]
fn an_acknowledgement_comes_also_after_a_restore() {
    let Some(khz) = kvm() else { return };
    // sti; jmp .
    let mut m = machine(khz, 0, &[&[0xfb], &SPIN]);
    let handler = [0xb9, 0x0b, 8, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x48, 0xcf];
    tiny::set_handler(&m.memory, 0x60, &handler).unwrap();
    m.partition.signal_msi(Msi { address: MSI_ADDRESS, data: MSI_LEVEL | 0x60 }).unwrap();
    let state = m.vcpu.save().unwrap();
    assert_ne!(state.lapic.regs[0x200 + 0x30] & 1, 0, "vector 0x60 is requested");
    let partition = KvmPartition::new(config(&m.memory, 1, khz)).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    vcpu.restore(&state).unwrap();
    match vcpu.run().unwrap() {
        Exit::IoapicEoi { vector } => assert_eq!(vector, 0x60),
        other => panic!("{other:?}"),
    }
}

/// What a save gives back of what was restored: all but the time, and bits that processors set
/// themselves.
fn comparable(mut state: VcpuState) -> VcpuState {
    state.tsc = 0;
    for segment in state.seg.iter_mut().chain([&mut state.tr, &mut state.ldtr]) {
        segment.attr &= 0x1_f0ff;
    }
    // The version of the local APIC is the engine's.
    state.lapic.regs[0x30..0x34].fill(0);
    state
}

#[test]
fn what_is_restored_is_what_is_saved() {
    let Some(khz) = kvm() else { return };
    let m = machine(khz, 0, &[]);
    let mut vcpu = m.vcpu;
    for cpl in [0, 3] {
        let mut state = tiny::state(cpl);
        for (i, register) in state.gpr.iter_mut().enumerate() {
            *register = 0x0101_0101_0101_0101 * (i as u64 + 1);
        }
        for (i, byte) in state.fxsave[160..416].iter_mut().enumerate() {
            *byte = i as u8;
        }
        (state.cr2, state.cr8) = (0x1234, 3);
        // TPR, and PPR that follows from it.
        (state.lapic.regs[0x80], state.lapic.regs[0xa0]) = (0x30, 0x30);
        state.msrs.star = 0x0023_0010_0000_0000;
        (state.msrs.lstar, state.msrs.kernel_gs_base) = (0xffff_ffff_8100_0000, 0xffff_8880_0000_1000);
        state.msrs.fmask = 0x4_7700;
        state.seg[4].base = 0x7fff_1234_5000;
        state.dr[0] = 0x1000;
        state.events.nmi_masked = true;
        vcpu.restore(&state).unwrap();
        assert_eq!(comparable(vcpu.save().unwrap()), comparable(state), "ring {cpl}");
    }
}

#[test]
fn impossible_states_are_refused() {
    let Some(khz) = kvm() else { return };
    let mut m = machine(khz, 0, &[&DONE]);
    let spoilers: [fn(&mut VcpuState); 12] = [
        |s| s.fxsave.truncate(100),
        |s| s.fxsave[26] = 1,
        |s| s.lapic.regs.clear(),
        |s| s.lapic.regs[0x200] = 1,
        |s| s.lapic.regs[0x20] = 9,
        |s| s.cr0 = 0x8000_0010,
        |s| s.cr4 |= 1 << 63,
        |s| s.msrs.efer = 0x500 | 1 << 40,
        |s| s.msrs.apic_base = 0xfee0_0000 | 1 << 10,
        |s| s.msrs.lstar = 0x1234_5678_9abc_def0,
        |s| s.events.exception = Some((200, None)),
        |s| s.events.interrupt = Some(3),
    ];
    for (i, spoil) in spoilers.iter().enumerate() {
        let mut state = tiny::state(0);
        spoil(&mut state);
        let refused = m.vcpu.restore(&state);
        assert!(matches!(refused, Err(Error::BadState { .. })), "{i}: {refused:?}");
    }
    m.vcpu.restore(&tiny::state(0)).unwrap();
    expect_done(m.vcpu.as_mut(), 0);
}

#[test]
fn refused_instructions_are_executed_by_the_soft_cpu() {
    let Some(khz) = kvm() else { return };
    // mov ecx, 0xf0f0; popcnt eax, ecx; DONE; int3
    let code = [0xb9, 0xf0, 0xf0, 0, 0, 0xf3, 0x0f, 0xb8, 0xc1];
    let mut m = machine(khz, 0, &[&code, &DONE, &[0xcc]]);
    expect_done(m.vcpu.as_mut(), 8);
    expect_vector(m.vcpu.as_mut(), 3);
    let state = m.vcpu.save().unwrap();
    let pushed: u64 = m.memory.read_le(state.gpr[gpr::RSP]).unwrap();
    assert_eq!(pushed, tiny::CODE + 9 + 9 + 1, "INT3 is a trap");
    eprintln!("instructions that this host's KVM refused: {}", m.partition.assists());
}

/// POPCNT from a device: no KVM emulates it, on any host.
#[test]
fn an_assisted_access_to_a_device_is_answered_settled_and_saved() {
    let Some(khz) = kvm() else { return };
    // popcnt eax, [rbx]
    let mut m = machine(khz, 0, &[&RBX_DEVICE, &[0xf3, 0x0f, 0xb8, 0x03], &DONE]);
    match m.vcpu.run().unwrap() {
        Exit::MmioRead { gpa: DEVICE, data } => data.copy_from_slice(&0xff00_ff01u32.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    m.vcpu.settle().unwrap();
    let state = m.vcpu.save().unwrap();
    assert_eq!((state.gpr[gpr::RAX], state.rip), (17, tiny::CODE + 14));
    assert!(m.partition.assists() >= 1);
    expect_done(m.vcpu.as_mut(), 17);
}

#[test]
fn a_half_done_read_is_settled_before_it_is_saved() {
    let Some(khz) = kvm() else { return };
    // mov eax, [rbx]
    let mut m = machine(khz, 3, &[&RBX_DEVICE, &[0x8b, 0x03], &DONE]);
    match m.vcpu.run().unwrap() {
        Exit::MmioRead { data, .. } => data.copy_from_slice(&0x77u32.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    let kick = m.vcpu.kicker();
    kick.kick();
    m.vcpu.settle().unwrap();
    let state = m.vcpu.save().unwrap();
    assert_eq!((state.gpr[gpr::RAX], state.rip), (0x77, tiny::CODE + 12));
    assert!(matches!(m.vcpu.run().unwrap(), Exit::Kicked), "the kick is still there");
    expect_done(m.vcpu.as_mut(), 0x77);
}

#[test]
fn the_log_tells_what_was_written_and_the_clock_is_set() {
    let Some(khz) = kvm() else { return };
    // mov [DATA], eax
    let mut m = machine(khz, 3, &[&[0x89, 4, 0x25, 0, 0, 2, 0], &DONE]);
    let written = |m: &Machine| {
        let mut words = vec![0; m.memory.page_count().div_ceil(64)];
        m.partition.take_written(&mut words).unwrap();
        move |gpa| {
            let page = gpa as usize / 4096;
            words[page / 64] >> (page % 64) & 1 != 0
        }
    };
    drop(written(&m));
    expect_done(m.vcpu.as_mut(), 0);
    let seen = written(&m);
    // KVM may count a page that it merely mapped as writable.
    assert!(seen(DATA) && !seen(tiny::SIZE - 1));
    // It tells of each once.
    assert!(!written(&m)(DATA));
    assert_eq!(m.partition.writes(), hv::Writes::Logged);
    m.partition.set_clock(&ClockState { kvmclock_ns: 5_000_000_000 }).unwrap();
    assert!(m.partition.clock().unwrap().kvmclock_ns >= 5_000_000_000);
}

/// `SYSCALL`, whose entry is kernel code in a page of the kernel's own, as Linux has it.
#[test]
fn a_system_call_enters_the_kernel_and_other_faults_reach_their_handler() {
    let Some(khz) = kvm() else { return };
    /// The first 2 MiB once more, for ring 0 alone: an entry of the page directory, and where that is.
    const KERNEL: (u64, u64) = (0x3000 + 8 * 8, 8 << 21);
    const NOWHERE: u64 = 8 << 39;
    // syscall; mov rax, NOWHERE; mov eax, [rax]
    let code = [&[0x0f, 0x05, 0x48, 0xb8][..], &NOWHERE.to_le_bytes(), &[0x8b, 0x00]].concat();
    let memory = tiny::memory(&[&code, &DONE[..]].concat()).unwrap();
    memory.write_le(KERNEL.0, 0xe3u64).unwrap();
    // mov al, 0x77; out FAULT_PORT, al; rex.w sysret
    let entry = [0xb0, 0x77, 0xe6, FAULT_PORT as u8, 0x48, 0x0f, 0x07];
    tiny::set_handler(&memory, 0x77, &entry).unwrap();
    let partition = KvmPartition::new(config(&memory, 1, khz)).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    let mut state = tiny::state(3);
    // Kernel: CS 8, SS 0x10. After SYSRET: SS 0x23, CS 0x2b.
    (state.msrs.star, state.msrs.fmask) = (0x001b_0008_0000_0000, 0x200);
    state.msrs.lstar = KERNEL.1 + tiny::handler(0x77);
    vcpu.restore(&state).unwrap();
    expect_vector(vcpu.as_mut(), 0x77);
    vcpu.settle().unwrap();
    let inside = vcpu.save().unwrap();
    let [cs, ss] = [1, 2].map(|i: usize| inside.seg[i]);
    assert_eq!((cs.selector, cs.attr >> 5 & 3, ss.selector), (8, 0, 0x10));
    assert_eq!((inside.gpr[gpr::RCX], inside.gpr[gpr::RSP]), (tiny::CODE + 2, tiny::STACK));
    assert_eq!((inside.rflags & 0x200, inside.gpr[gpr::R11] & 0x200), (0, 0x200));
    // The next is a fault of the program's own.
    expect_vector(vcpu.as_mut(), 14);
    vcpu.settle().unwrap();
    let fault = vcpu.save().unwrap();
    assert_eq!((fault.cr2, fault.gpr[gpr::RAX] as u8), (NOWHERE, 14));
}

#[test]
fn without_force_an_ungoverned_template_is_refused_by_name() {
    let Some(khz) = kvm() else { return };
    let memory = tiny::memory(&DONE).unwrap();
    let unforced = PartitionConfig { force_template: false, ..config(&memory, 1, khz) };
    let report = hv_kvm::report();
    let governed = report
        .facts
        .iter()
        .filter(|f| ["kernel_cpuid", "system_call", "cpuid", "xgetbv", "avx"].contains(&f.name))
        .all(|f| f.good);
    match KvmPartition::new(unforced) {
        Ok(_) => assert!(governed),
        Err(error) => {
            assert!(!governed);
            assert!(error.to_string().contains("--engine soft"), "{error}");
        }
    }
    assert_eq!(report.recommended, hv_kvm::works_well().is_ok());
    assert!(serde_json::to_string(&report).unwrap().contains("supervisor_speed"));
}

/// The matrix of `smolvm doctor --selftest`: a computation in SSE2 registers, in ring 3, moved eight
/// times with its timer armed, compared with the host's own result.
#[test]
fn a_computation_travels_between_soft_and_kvm_in_every_pairing() {
    let Some(khz) = kvm() else { return };
    let soft = |c: PartitionConfig| Ok(Box::new(SoftPartition::new(c)?) as Box<dyn Partition>);
    let hard = |c: PartitionConfig| Ok(Box::new(KvmPartition::new(c)?) as Box<dyn Partition>);
    let matrix = selftest::run(&[(EngineKind::Soft, &soft), (EngineKind::Kvm, &hard)], khz);
    eprintln!("{}", serde_json::to_string_pretty(&matrix).unwrap());
    assert_eq!(matrix.legs.len(), 4);
    assert!(matrix.passed, "{matrix:#?}");
}
