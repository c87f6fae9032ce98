//! VMCALL and VMMCALL, answered as KVM does (Linux: Documentation/virt/kvm/x86/hypercalls.rst).

use x86cpu::Stop;

use super::machine::Run;

const VMCALL: [u8; 4] = [0x0f, 0x01, 0xc1, 0xf4]; // vmcall; hlt
const VMMCALL: [u8; 4] = [0x0f, 0x01, 0xd9, 0xf4];
/// KVM_HC_VAPIC_POLL_IRQ, KVM_HC_KICK_CPU, KVM_HC_CLOCK_PAIRING.
const CALLS: [(u64, i64); 4] = [(1, 0), (5, -1000), (9, -1000), (u64::MAX, -1000)];

#[test]
fn a_call_that_is_not_there_gets_a_number_and_no_fault() {
    for code in [VMCALL, VMMCALL] {
        for (call, answer) in CALLS {
            let mut run = Run::kernel(&code);
            run.state.gpr = [7; 16];
            run.state.gpr[0] = call;
            assert_eq!(run.go(), Stop::Halt);
            assert_eq!((run.vector(), run.state.gpr[0] as i64), (None, answer), "call {call}");
            assert_eq!(run.state.gpr[1..], [7; 15], "nothing else is changed");
        }
    }
}

#[test]
fn user_programs_may_not_call() {
    let mut run = Run::user(&VMCALL);
    run.state.gpr[0] = 9;
    assert_eq!(run.go(), Stop::Halt);
    // HLT in user mode is #GP: it got there.
    assert_eq!((run.vector(), run.state.gpr[0] as i64), (Some(13), -1));
}

#[test]
fn without_kvm_in_cpuid_there_is_no_such_instruction() {
    for code in [VMCALL, VMMCALL] {
        let mut run = Run::kernel(&code);
        run.machine.cpuid.retain(|leaf| leaf.leaf != 0x4000_0000);
        run.cpu = run.machine.cpu(0);
        assert_eq!(run.go(), Stop::Halt);
        assert_eq!(run.vector(), Some(6));
    }
}
