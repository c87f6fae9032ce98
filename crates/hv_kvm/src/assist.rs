//! An instruction that KVM refuses, executed by the soft CPU on the same state (DESIGN.md §3).

use std::sync::Arc;

use arch::x86_64::cpuid::CpuidLeaf;
use arch::x86_64::state::VcpuState;
use hv::Error;
use x86cpu::{StepOutcome, Stepper, Stop};

use crate::abi::ENGINE;
use crate::vm::Shared;

/// What the soft CPU made of the instruction.
pub(crate) enum Assisted {
    /// Load the difference from the first to the second state and go on.
    Done(Box<(VcpuState, VcpuState)>),
    /// It needs this access first.
    Access(Stop),
    /// Triple fault.
    Shutdown,
    /// Nobody can execute it.
    Failed(String),
}

/// One vCPU's helper: the soft CPU, made when it is first needed, and the state that waits for an
/// access's answer.
pub(crate) struct Assist {
    id: u32,
    leaves: Arc<[CpuidLeaf]>,
    stepper: Option<Box<Stepper>>,
    waiting: Option<Box<VcpuState>>,
    /// CR4 bits that the soft CPU does not know and that stay as they are.
    hidden_cr4: u64,
}

impl Assist {
    pub(crate) fn new(id: u32, leaves: Vec<CpuidLeaf>) -> Self {
        Self { id, leaves: leaves.into(), stepper: None, waiting: None, hidden_cr4: 0 }
    }

    /// Executes the instruction at `state.rip`.
    pub(crate) fn begin(&mut self, shared: &Shared, mut state: VcpuState) -> Result<Assisted, Error> {
        let stepper = self.stepper.get_or_insert_with(|| {
            let leaves = Arc::clone(&self.leaves);
            Box::new(Stepper::new(shared.memory.clone(), self.id, leaves, shared.tsc_khz))
        });
        self.hidden_cr4 = state.cr4 & shared.foreign_cr4;
        state.cr4 &= !self.hidden_cr4;
        let mut after = state.clone();
        let outcome = stepper.step(&mut after);
        let outcome = outcome.map_err(|e| Error::BadState { engine: ENGINE, what: e.to_string() })?;
        Ok(self.outcome(outcome, state, after))
    }

    /// Goes on with the answer of the access. `None`: nothing was waiting.
    pub(crate) fn answer(&mut self, value: u64) -> Option<Assisted> {
        let state = *self.waiting.take()?;
        let mut after = state.clone();
        let outcome = self.stepper.as_mut()?.answer(value, &mut after);
        Some(self.outcome(outcome, state, after))
    }

    /// Forgets a half-done instruction: the vCPU got another state.
    pub(crate) fn forget(&mut self) {
        self.waiting = None;
    }

    fn outcome(&mut self, outcome: StepOutcome, mut before: VcpuState, mut after: VcpuState) -> Assisted {
        match outcome {
            StepOutcome::Done => {
                before.cr4 |= self.hidden_cr4;
                after.cr4 |= self.hidden_cr4;
                Assisted::Done(Box::new((before, after)))
            }
            StepOutcome::Access(stop) => {
                self.waiting = Some(Box::new(before));
                Assisted::Access(stop)
            }
            StepOutcome::Stopped(Stop::TripleFault) => Assisted::Shutdown,
            StepOutcome::Stopped(Stop::Unsupported(what)) => Assisted::Failed(what),
            StepOutcome::Stopped(other) => Assisted::Failed(format!("unexpected stop {other:?}")),
        }
    }
}
