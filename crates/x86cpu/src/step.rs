//! One instruction for somebody else: what the kvm engine does where KVM refuses an instruction
//! (DESIGN.md §3). The state goes in, exactly one instruction happens to it (with its exception, if it
//! raises one), the state comes out. Pending events and the clock are left alone.

use std::sync::Arc;

use arch::x86_64::cpuid::CpuidLeaf;
use arch::x86_64::state::{MpState, VcpuState};
use guestmem::GuestMemory;

use crate::clock::Clock;
use crate::cpu::{Cpu, CpuConfig, Stop};
use crate::lapic::ApicBus;
use crate::state::BadState;

/// How a step came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// The instruction is done, or the exception that it raised was delivered; the state is the one
    /// after it.
    Done,
    /// The instruction needs this access; do it and go on with [`Stepper::answer`]. The state is
    /// still the one before it.
    Access(Stop),
    /// The soft CPU cannot execute it, either ([`Stop::Unsupported`]), or the guest is at its end
    /// ([`Stop::TripleFault`]). The state is untouched.
    Stopped(Stop),
}

/// A processor that executes single instructions on states that others own.
pub struct Stepper {
    cpu: Cpu,
    /// Events of the state, kept out of the step.
    events: arch::x86_64::state::Events,
    mp_state: MpState,
}

impl Stepper {
    /// For vCPU `id` of a machine with this memory, CPUID (of this vCPU) and guest TSC frequency.
    pub fn new(memory: GuestMemory, id: u32, cpuid: Arc<[CpuidLeaf]>, tsc_khz: u32) -> Self {
        let cpu = Cpu::new(CpuConfig {
            memory,
            id,
            cpuid,
            // Never resumed: time stands still at the state's TSC.
            clock: Arc::new(Clock::new(tsc_khz)),
            apic_bus: Arc::new(ApicBus::new(0)),
        });
        Self { cpu, events: Default::default(), mp_state: MpState::Runnable }
    }

    /// Executes the instruction at `state.rip`. Interrupts are not looked at: whoever owns the state
    /// delivers them before or after.
    ///
    /// # Errors
    /// [`BadState`] for a state that no CPU could be in.
    pub fn step(&mut self, state: &mut VcpuState) -> Result<StepOutcome, BadState> {
        self.cpu.restore(state)?;
        (self.events, self.mp_state) = (state.events, state.mp_state);
        self.cpu.events.exception = None;
        self.cpu.events.interrupt = None;
        self.cpu.mp_state = MpState::Runnable;
        let result = self.cpu.step_alone();
        Ok(self.outcome(result, state))
    }

    /// Goes on after [`StepOutcome::Access`]; `value` is what a read gives, anything for a write.
    /// `state` is the one that was given to [`Stepper::step`].
    pub fn answer(&mut self, value: u64, state: &mut VcpuState) -> StepOutcome {
        self.cpu.reply(value);
        let result = self.cpu.settle().map_or(Ok(()), Err);
        self.outcome(result, state)
    }

    fn outcome(&mut self, result: Result<(), Stop>, state: &mut VcpuState) -> StepOutcome {
        match result {
            Ok(()) => {}
            Err(
                stop @ (Stop::PioRead { .. }
                | Stop::PioWrite { .. }
                | Stop::MmioRead { .. }
                | Stop::MmioWrite { .. }),
            ) => return StepOutcome::Access(stop),
            Err(stop) => return StepOutcome::Stopped(stop),
        }
        *state = self.cpu.save();
        state.events.exception = self.events.exception;
        state.events.interrupt = self.events.interrupt;
        if state.mp_state == MpState::Runnable {
            state.mp_state = self.mp_state;
        }
        StepOutcome::Done
    }
}

impl Cpu {
    /// One instruction with its exception, no look at events.
    fn step_alone(&mut self) -> Result<(), Stop> {
        self.with_code(Self::step)
    }
}
