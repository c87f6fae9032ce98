//! The soft engine through the seam: exits, HLT, kicks, two vCPUs, a machine moved to another
//! partition.

use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;

use arch::x86_64::cpuid::portable;
use arch::x86_64::regs::seg;
use arch::x86_64::state::{MpState, Segment, TableReg};
use guestmem::GuestMemory;
use hv::{
    ClockState, CodeMode, Error, Exit, HotBlock, Msi, Partition, PartitionConfig, Stops, Vcpu, VcpuState,
};
use hv_soft::SoftPartition;

const CODE: u64 = 0x1_0000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x8000;

fn partition(vcpus: u32) -> (SoftPartition, GuestMemory) {
    made(vcpus, false)
}

fn made(vcpus: u32, repeatable: bool) -> (SoftPartition, GuestMemory) {
    let memory = GuestMemory::new(4 << 20).unwrap();
    let put = |at: u64, v: u64| memory.write_le(at, v).unwrap();
    put(0x1000, 0x2003);
    put(0x2000, 0x3003);
    put(0x3000, 0x83);
    put(0x3008, 0x20_0083);
    put(0x5008, 0x00af_9b00_0000_ffff);
    put(0x5010, 0x00cf_9300_0000_ffff);
    for vector in 0..256u64 {
        put(IDT + 16 * vector, (HANDLERS + 16 * vector) | 8 << 16 | 0x8e << 40);
        // out 0x80, al; hlt
        memory.write(HANDLERS + 16 * vector, &[0xe6, 0x80, 0xf4]).unwrap();
    }
    let config = PartitionConfig {
        memory: memory.clone(),
        vcpus,
        cpuid: portable(vcpus, 1_000_000),
        tsc_khz: None,
        force_template: false,
        repeatable,
    };
    (SoftPartition::new(config).unwrap(), memory)
}

/// 64-bit kernel mode at `rip`, x2APIC on and software-enabled.
fn start(vcpu: &mut dyn Vcpu, rip: u64) -> VcpuState {
    let mut state = vcpu.save().unwrap();
    let flat = |selector: u16, attr: u32| Segment { selector, base: 0, limit: u32::MAX, attr };
    state.seg = [flat(0x10, 0xc093); 6];
    state.seg[seg::CS] = flat(8, 0xa09b);
    state.gdtr = TableReg { base: 0x5000, limit: 0x1f };
    state.idtr = TableReg { base: IDT, limit: 0xfff };
    state.cr0 = 0x8000_0031;
    state.cr3 = 0x1000;
    state.cr4 = 0x20;
    state.msrs.efer = 0x500;
    state.msrs.apic_base |= 0x400;
    state.lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    state.rip = rip;
    state.rflags = 2;
    state.gpr[4] = 0xa000 + 0x1000 * u64::from(state.lapic.regs[0x20]);
    state.mp_state = MpState::Runnable;
    vcpu.restore(&state).unwrap();
    state
}

#[test]
fn exits_carry_their_slot_and_instructions_are_counted_exactly() {
    let (partition, memory) = partition(1);
    // in al,0x60; out 0x61,al; mov [0xd0000000],eax; hlt
    memory.write(CODE, &[0xe4, 0x60, 0xe6, 0x61, 0x89, 0x03, 0x8b, 0x0b, 0xe6, 0x62]).unwrap();
    memory.write_le(0x3008, 0xd000_0083u64).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    let mut state = start(vcpu.as_mut(), CODE);
    state.gpr[3] = 0x20_0004;
    vcpu.restore(&state).unwrap();
    match vcpu.run().unwrap() {
        Exit::PioRead { port: 0x60, data } => data.copy_from_slice(&[0x5a]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x61, data: &[0x5a] }));
    assert!(matches!(vcpu.run().unwrap(), Exit::MmioWrite { gpa: 0xd000_0004, data: &[0x5a, 0, 0, 0] }));
    match vcpu.run().unwrap() {
        Exit::MmioRead { gpa: 0xd000_0004, data } => data.copy_from_slice(&[1, 2, 3, 4]),
        other => panic!("{other:?}"),
    }
    vcpu.settle().unwrap();
    let state = vcpu.save().unwrap();
    assert_eq!((state.gpr[1], state.rip), (0x0403_0201, CODE + 8));
    assert_eq!(vcpu.counters().instructions, Some(4));
    assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x62, .. }));
    assert_eq!(vcpu.counters().exits, 5);
}

#[test]
fn a_halted_vcpu_waits_for_its_message() {
    let (partition, memory) = partition(1);
    memory.write(CODE, &[0xfb, 0x90, 0xf4]).unwrap(); // sti; nop; hlt
    let mut vcpu = partition.create_vcpu(0).unwrap();
    start(vcpu.as_mut(), CODE);
    thread::scope(|scope| {
        let (ready, wait) = mpsc::channel();
        let vcpu = &mut vcpu;
        scope.spawn(move || {
            ready.send(()).unwrap();
            assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x80, .. }));
            assert_eq!(vcpu.save().unwrap().rip & !0xf, HANDLERS + 16 * 0x51);
        });
        wait.recv().unwrap();
        partition.signal_msi(Msi { address: 0xfee0_0000, data: 0x51 }).unwrap();
    });
}

#[test]
fn a_halted_vcpu_is_woken_by_its_own_timer() {
    let (partition, memory) = partition(1);
    memory.write(CODE, &[0xfb, 0x90, 0xf4]).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    let mut state = start(vcpu.as_mut(), CODE);
    state.lapic.regs[0x320..0x324].copy_from_slice(&(2u32 << 17 | 0xec).to_le_bytes());
    state.lapic.deadline_ticks = Some(3_000_000);
    vcpu.restore(&state).unwrap();
    let before = state.tsc;
    assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x80, .. }));
    vcpu.settle().unwrap();
    let state = vcpu.save().unwrap();
    assert_eq!(state.rip & !0xf, HANDLERS + 16 * 0xec);
    assert!(state.tsc - before >= 3_000_000, "not before its time");
    // Entering HLT again is cheap: nobody polled while it waited.
    assert!(vcpu.counters().instructions < Some(10));
}

#[test]
fn a_vcpu_tells_once_that_it_has_begun() {
    let (partition, memory) = partition(1);
    // inc dword [rbx]; jmp back
    memory.write(CODE, &[0xff, 0x03, 0xeb, 0xfc]).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    let mut state = start(vcpu.as_mut(), CODE);
    state.gpr[3] = 0x20_0000;
    vcpu.restore(&state).unwrap();
    let (tell, told) = mpsc::channel();
    let (kicker, seen) = (vcpu.kicker(), memory.clone());
    vcpu.after_first(Box::new(move || {
        tell.send(seen.read_le::<u32>(0x20_0000).unwrap()).unwrap();
        kicker.kick();
    }));
    assert!(matches!(vcpu.run().unwrap(), Exit::Kicked));
    let counted: Vec<u32> = told.iter().collect();
    assert!(
        matches!(counted[..], [1..=1000]),
        "some were executed, not many, and it was told once: {counted:?}"
    );
}

#[test]
fn a_kick_ends_run_whatever_the_vcpu_does() {
    for code in [&[0xebu8, 0xfe][..], &[0xf4], &[0xfb, 0x90, 0xf4]] {
        let (partition, memory) = partition(2);
        memory.write(CODE, code).unwrap();
        memory.write(CODE + 0x100, &[0xeb, 0xfe]).unwrap();
        let mut spinner = partition.create_vcpu(1).unwrap();
        start(spinner.as_mut(), CODE + 0x100);
        let mut vcpu = partition.create_vcpu(0).unwrap();
        start(vcpu.as_mut(), CODE);
        let (kick, kick_spinner) = (vcpu.kicker(), spinner.kicker());
        kick.kick();
        assert!(matches!(vcpu.run().unwrap(), Exit::Kicked), "a kick from before counts");
        let begin = Barrier::new(3);
        thread::scope(|scope| {
            for vcpu in [&mut vcpu, &mut spinner] {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    assert!(matches!(vcpu.run().unwrap(), Exit::Kicked));
                });
            }
            begin.wait();
            kick.kick();
            kick_spinner.kick();
        });
    }
}

#[test]
fn a_spinning_vcpu_does_not_starve_the_one_it_waits_for() {
    let (partition, memory) = partition(2);
    // vCPU 0 spins until vCPU 1 has written: cmp dword [rbx],0; je; out 0x80,al
    memory.write(CODE, &[0x83, 0x3b, 0x00, 0x74, 0xfb, 0xe6, 0x80]).unwrap();
    // vCPU 1 spins for a while, then writes: loop; mov [rbx],ecx+1; out
    memory.write(CODE + 0x100, &[0xe2, 0xfe, 0xff, 0x03, 0xe6, 0x81]).unwrap();
    let mut vcpus: Vec<Box<dyn Vcpu>> = (0..2).map(|id| partition.create_vcpu(id).unwrap()).collect();
    for (i, vcpu) in vcpus.iter_mut().enumerate() {
        let mut state = start(vcpu.as_mut(), CODE + 0x100 * i as u64);
        state.gpr[3] = 0x2_0000;
        state.gpr[1] = 200_000;
        vcpu.restore(&state).unwrap();
    }
    thread::scope(|scope| {
        for (i, vcpu) in vcpus.iter_mut().enumerate() {
            scope.spawn(move || match vcpu.run().unwrap() {
                Exit::PioWrite { port, .. } => assert_eq!(usize::from(port), 0x80 + i),
                other => panic!("{other:?}"),
            });
        }
    });
}

#[test]
fn a_machine_goes_on_in_another_partition_with_its_clock() {
    let (first, memory) = partition(1);
    // wrmsr (kvmclock page); out 0x80,al; rdtsc; out 0x81,al
    memory.write(CODE, &[0x0f, 0x30, 0xe6, 0x80, 0x0f, 0x31, 0xe6, 0x81]).unwrap();
    let mut vcpu = first.create_vcpu(0).unwrap();
    first.set_clock(&ClockState { kvmclock_ns: 5_000_000_000 }).unwrap();
    let mut state = start(vcpu.as_mut(), CODE);
    state.gpr[1] = 0x4b56_4d01;
    state.gpr[0] = 0x2_0001;
    state.gpr[2] = 0;
    vcpu.restore(&state).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x80, .. }));
    vcpu.settle().unwrap();
    let saved = vcpu.save().unwrap();
    let clock = first.clock().unwrap();
    assert!(clock.kvmclock_ns >= 5_000_000_000);
    assert_eq!(first.clock().unwrap(), clock, "it stands still until the next run");

    let (second, other_memory) = partition(1);
    for page in 0..memory.page_count() {
        let mut bytes = [0; 4096];
        memory.read_page(page, &mut bytes);
        other_memory.write(other_memory.page_gpa(page), &bytes).unwrap();
    }
    let mut vcpu = second.create_vcpu(0).unwrap();
    vcpu.restore(&saved).unwrap();
    second.set_clock(&clock).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x81, .. }));
    vcpu.settle().unwrap();
    let state = vcpu.save().unwrap();
    let tsc = state.gpr[0] & 0xffff_ffff | state.gpr[2] << 32;
    assert!(tsc >= saved.tsc, "the TSC never goes back");
    assert!(tsc - saved.tsc < 60_000_000_000, "and goes on from where it was");
    let page = |at: u64| other_memory.read_le::<u64>(0x2_0000 + at).unwrap();
    let (tsc_then, ns_then) = (page(8), page(16));
    assert!(tsc_then >= saved.tsc, "{tsc_then} {}: the clock page was written again", saved.tsc);
    assert!(ns_then >= clock.kvmclock_ns, "{ns_then} {}", clock.kvmclock_ns);
    assert_eq!(page(16) - clock.kvmclock_ns, page(8) - saved.tsc, "both went on by the same time");
}

#[test]
fn bad_states_and_bad_numbers_are_refused() {
    let (partition, _memory) = partition(2);
    let mut vcpu = partition.create_vcpu(1).unwrap();
    assert!(matches!(partition.create_vcpu(1), Err(Error::Unsupported { .. })));
    assert!(matches!(partition.create_vcpu(2), Err(Error::Unsupported { .. })));
    assert!(matches!(partition.create_vcpu(77), Err(Error::Unsupported { .. })));
    let mut state = vcpu.save().unwrap();
    assert_eq!(state.mp_state, MpState::Uninitialized);
    state.rflags = 0;
    let error = vcpu.restore(&state).unwrap_err();
    assert!(error.to_string().contains("RFLAGS"), "{error}");
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    let (partition, memory) = partition(1);
    memory.write(CODE, &[0x0f, 0x0b]).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    let mut state = start(vcpu.as_mut(), CODE);
    state.idtr.limit = 0;
    vcpu.restore(&state).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Shutdown));
    let _: Arc<dyn hv::Kick> = vcpu.kicker();
}

#[test]
fn locked_accesses_on_two_pages_are_made_alone() {
    const ROUNDS: u64 = 500;
    const WORD: u64 = 0x2_0ffc;
    let (partition, memory) = partition(3);
    // lock add qword [rbx],1; lock inc dword [rbx+2]; dec rcx; jne; out 0x80,al
    memory
        .write(CODE, &[0xf0, 0x48, 0x83, 0x03, 1, 0xf0, 0xff, 0x43, 2, 0x48, 0xff, 0xc9, 0x75, 0xf2])
        .unwrap();
    memory.write(CODE + 14, &[0xe6, 0x80]).unwrap();
    let mut vcpus: Vec<Box<dyn Vcpu>> = (0..3).map(|id| partition.create_vcpu(id).unwrap()).collect();
    for vcpu in &mut vcpus {
        let mut state = start(vcpu.as_mut(), CODE);
        (state.gpr[1], state.gpr[3]) = (ROUNDS, WORD);
        vcpu.restore(&state).unwrap();
    }
    thread::scope(|scope| {
        for vcpu in &mut vcpus {
            scope.spawn(|| assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x80, .. })));
        }
    });
    assert_eq!(memory.read_le::<u64>(WORD).unwrap(), 3 * ROUNDS * 0x1_0001);
}

/// Three vCPUs change one word, each by its own count, add up time stamps and random numbers, then wait in HLT for
/// their timers; what is left of it all.
fn repeatable_run() -> (u32, Vec<(VcpuState, ClockState)>) {
    let (partition, memory) = made(3, true);
    // rol dword [rbx],3; xor [rbx],ecx; rdtsc; add r8,rax; rdrand rax; add r9,rax; dec rcx; jne; sti; nop; hlt
    memory
        .write(
            CODE,
            &[
                0xc1, 0x03, 0x03, 0x31, 0x0b, 0x0f, 0x31, 0x49, 0x01, 0xc0, 0x48, 0x0f, 0xc7, 0xf0, 0x49,
                0x01, 0xc1, 0x48, 0xff, 0xc9, 0x75, 0xea, 0xfb, 0x90, 0xf4,
            ],
        )
        .unwrap();
    let mut vcpus: Vec<Box<dyn Vcpu>> = (0..3).map(|id| partition.create_vcpu(id).unwrap()).collect();
    for (i, vcpu) in vcpus.iter_mut().enumerate() {
        let mut state = start(vcpu.as_mut(), CODE);
        (state.gpr[1], state.gpr[3]) = (40_000 - 7_000 * i as u64, 0x2_0000);
        (state.gpr[8], state.gpr[9]) = (0, 0);
        state.lapic.regs[0x320..0x324].copy_from_slice(&(2u32 << 17 | 0xec).to_le_bytes());
        state.lapic.deadline_ticks = Some(40_000_000 - 1_000_000 * i as u64);
        vcpu.restore(&state).unwrap();
    }
    let kicks: Vec<_> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
    let (there, wait) = mpsc::channel();
    let left = thread::scope(|scope| {
        let run = |vcpu: &mut Box<dyn Vcpu>, there: mpsc::Sender<()>| {
            assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x80, .. }));
            // The others stand: who is at an exit has the turn until it comes back.
            vcpu.settle().unwrap();
            let left = (vcpu.save().unwrap(), partition.clock().unwrap());
            there.send(()).unwrap();
            assert!(matches!(vcpu.run().unwrap(), Exit::Kicked));
            left
        };
        let threads: Vec<_> = vcpus.iter_mut().map(|vcpu| (vcpu, there.clone())).collect();
        let threads: Vec<_> =
            threads.into_iter().map(|(vcpu, there)| scope.spawn(move || run(vcpu, there))).collect();
        (0..3).for_each(|_| wait.recv().unwrap());
        kicks.iter().for_each(|kick| kick.kick());
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (memory.read_le(0x2_0000).unwrap(), left)
}

#[test]
fn a_repeatable_run_is_the_same_to_the_bit() {
    let first = repeatable_run();
    for (i, (_, clock)) in first.1.iter().enumerate() {
        let due = 40_000_000 - 1_000_000 * i as u64;
        let late = clock.kvmclock_ns.checked_sub(due);
        assert!(late.is_some_and(|ns| ns < 200_000), "vCPU {i}: time was moved to its timer, {late:?}");
    }
    for _ in 0..3 {
        assert_eq!(repeatable_run(), first);
    }
}

#[test]
fn a_debugger_steps_and_stops() {
    let (partition, memory) = partition(1);
    // nop; nop; inc eax; in al, 0x60; jmp to the beginning
    memory.write(CODE, &[0x90, 0x90, 0xff, 0xc0, 0xe4, 0x60, 0xeb, 0xf8]).unwrap();
    let mut vcpu = partition.create_vcpu(0).unwrap();
    start(vcpu.as_mut(), CODE);
    fn stops(vcpu: &mut dyn Vcpu, offset: u64) {
        assert!(matches!(vcpu.run().unwrap(), Exit::Debug));
        assert_eq!(vcpu.save().unwrap().rip, CODE + offset);
    }
    fn reads(vcpu: &mut dyn Vcpu) {
        assert!(matches!(vcpu.run().unwrap(), Exit::PioRead { port: 0x60, .. }));
    }
    vcpu.stop_at(&Stops { step: true, at: vec![] }).unwrap();
    for offset in [1, 2, 4] {
        stops(vcpu.as_mut(), offset);
    }
    // An access is the machine's first, then the step is over.
    reads(vcpu.as_mut());
    stops(vcpu.as_mut(), 6);
    vcpu.stop_at(&Stops { step: false, at: vec![CODE + 1, CODE + 6] }).unwrap();
    for _ in 0..3 {
        stops(vcpu.as_mut(), 1);
        reads(vcpu.as_mut());
        stops(vcpu.as_mut(), 6);
    }
    vcpu.stop_at(&Stops::default()).unwrap();
    reads(vcpu.as_mut());
    reads(vcpu.as_mut());
}

fn translations(vcpu: &dyn Vcpu) -> u64 {
    let counters = vcpu.counters();
    counters.details.iter().find(|(name, _)| *name == "translations").expect("it is counted").1
}

fn hot(address: u64) -> HotBlock {
    HotBlock { address, mode: CodeMode::Supervisor64, heat: 1 << 20 }
}

#[test]
fn a_vcpu_that_has_nothing_to_do_translates_what_will_run() {
    let (partition, memory) = partition(1);
    memory.write(CODE, &[0xfb, 0x90, 0xf4]).unwrap(); // sti; nop; hlt
    memory.write(CODE + 0x100, &[0x90, 0xc3]).unwrap();
    let (asked, wait) = mpsc::channel();
    partition.foretell(Box::new(move || {
        asked.send(()).unwrap();
        vec![hot(CODE + 0x100), hot(u64::MAX), hot(0xd000_0000)]
    }));
    let mut vcpu = partition.create_vcpu(0).unwrap();
    start(vcpu.as_mut(), CODE);
    thread::scope(|scope| {
        let vcpu = &mut vcpu;
        scope.spawn(move || {
            assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x80, .. }));
            assert_eq!(translations(vcpu.as_ref()), 1, "nothing that it ran ran often");
            assert_eq!(vcpu.hot_blocks(), [HotBlock { heat: 0, ..hot(CODE + 0x100) }]);
        });
        // It has slept for a while.
        wait.recv().unwrap();
        partition.signal_msi(Msi { address: 0xfee0_0000, data: 0x51 }).unwrap();
    });
}

#[test]
fn what_ran_often_is_asked_for_once_the_machine_is_busy() {
    let (partition, memory) = partition(2);
    // mov ecx, [DATA]; 1: dec ecx; jnz 1b; out 0x61, al; hlt
    let code = [0x8b, 0x0c, 0x25, 0, 0xf0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x61, 0xf4];
    memory.write(CODE, &code).unwrap();
    let (asked, wait) = mpsc::channel();
    partition.foretell(Box::new(move || {
        asked.send(()).unwrap();
        vec![hot(CODE)]
    }));
    let mut vcpus = [0, 1].map(|id| partition.create_vcpu(id).unwrap());
    let mut run = |id: usize, rounds: u32| {
        memory.write_le(0xf000, rounds).unwrap();
        start(vcpus[id].as_mut(), CODE);
        assert!(matches!(vcpus[id].run().unwrap(), Exit::PioWrite { port: 0x61, .. }));
    };
    run(0, 1000);
    assert!(wait.try_recv().is_err(), "a thousand instructions are not busy");
    run(0, 3_000_000);
    run(1, 3_000_000);
    drop((vcpus, partition));
    assert_eq!(wait.iter().count(), 1, "by whichever of them is first");
}

fn counted(vcpu: &dyn Vcpu, counter: &str) -> u64 {
    let counters = vcpu.counters();
    counters.details.iter().find(|(name, _)| *name == counter).expect("it is counted").1
}

/// A machine of two vCPUs whose memory counts as brought back from a file.
fn brought_back() -> (SoftPartition, GuestMemory, [Box<dyn Vcpu>; 2]) {
    let (partition, memory) = partition(2);
    // 1: mov ecx, [rbx]; 2: dec ecx; jnz 2b; out 0x61, al; jmp 1b
    memory.write(CODE, &[0x8b, 0x0b, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x61, 0xeb, 0xf6]).unwrap();
    let vcpus = [0, 1].map(|id| partition.create_vcpu(id).unwrap());
    memory.clear_dirty();
    (partition, memory, vcpus)
}

/// Has a vCPU count so far down, from its state or from where it is.
fn count_down(vcpu: &mut dyn Vcpu, memory: &GuestMemory, state: Option<()>, rounds: u32) {
    memory.write_le(0xf000, rounds).unwrap();
    if state.is_some() {
        let mut state = start(vcpu, CODE);
        state.gpr[3] = 0xf000;
        vcpu.restore(&state).unwrap();
    }
    assert!(matches!(vcpu.run().unwrap(), Exit::PioWrite { port: 0x61, .. }));
}

/// What both vCPUs keep.
fn kept() -> Vec<u8> {
    let (_partition, memory, mut vcpus) = brought_back();
    let mut bytes = Vec::new();
    for vcpu in &mut vcpus {
        count_down(vcpu.as_mut(), &memory, Some(()), 1000);
        assert!(vcpu.keep_code(&mut bytes).unwrap());
    }
    bytes
}

#[test]
fn what_was_kept_is_asked_for_by_who_works_and_gone_on_with_by_each() {
    let bytes = kept();
    let (partition, memory, mut vcpus) = brought_back();
    let (asked, wait) = mpsc::channel();
    partition.offer_code(Box::new(move || {
        asked.send(()).unwrap();
        Ok(Box::new(std::io::Cursor::new(bytes)))
    }));
    for vcpu in &mut vcpus {
        count_down(vcpu.as_mut(), &memory, Some(()), 1000);
    }
    assert!(wait.try_recv().is_err(), "a thousand instructions are no work");
    for vcpu in &mut vcpus {
        // The second time it has waited for it, or taken it on the way.
        count_down(vcpu.as_mut(), &memory, None, 3_000_000);
        count_down(vcpu.as_mut(), &memory, None, 3_000_000);
        assert!(counted(vcpu.as_ref(), "translations_kept") > 0);
    }
    drop((vcpus, partition));
    assert_eq!(wait.iter().count(), 1, "by whichever of them is first");
}

#[test]
fn what_was_kept_and_cannot_be_read_is_done_without() {
    let whole = kept();
    // Within the part of the first vCPU.
    let torn = whole[..whole.len() / 4].to_vec();
    for bytes in [Some(torn), None, Some(Vec::new())] {
        let (partition, memory, mut vcpus) = brought_back();
        partition.offer_code(Box::new(move || {
            let bytes = bytes.ok_or(std::io::ErrorKind::PermissionDenied)?;
            Ok(Box::new(std::io::Cursor::new(bytes)))
        }));
        for rounds in [1000, 3_000_000, 3_000_000] {
            let state = (rounds == 1000).then_some(());
            count_down(vcpus[0].as_mut(), &memory, state, rounds);
        }
        assert_eq!(counted(vcpus[0].as_ref(), "translations_kept"), 0);
        assert!(translations(vcpus[0].as_ref()) > 0);
    }
}
