//! The machine as `gdbstub` sees it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use hv::Stops;
use machine::{Error, Machine};

use crate::registers;

/// Most breakpoints: a debugger's, not a flood's.
const MAX_BREAKPOINTS: usize = 1024;

/// A machine under a debugger.
pub(crate) struct Debugged {
    machine: Arc<Machine>,
    breakpoints: Vec<u64>,
    /// The vCPU to step when it goes on.
    step: Option<usize>,
    /// Only the stepped vCPU runs.
    alone: bool,
}

/// gdb's threads count from 1.
fn thread(vcpu: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu)
}

fn vcpu(thread: Tid) -> usize {
    thread.get() - 1
}

/// One failure is no end of the session.
fn refused<T>(result: Result<T, Error>) -> TargetResult<T, Debugged> {
    result.map_err(|_| TargetError::NonFatal)
}

impl Debugged {
    /// The machine must be paused.
    pub(crate) fn new(machine: Arc<Machine>) -> Self {
        Self { machine, breakpoints: Vec::new(), step: None, alone: false }
    }

    /// The debugger is gone.
    pub(crate) fn let_go(self) {
        // It may have gone while the machine ran; an ended one needs nothing.
        if self.machine.pause().is_err() {
            return;
        }
        for vcpu in 0..self.machine.vcpu_count() {
            let _ = self.machine.stop_at(vcpu, &Stops::default());
        }
        while self.machine.stopped(Duration::ZERO).is_some() {}
        self.machine.resume_debugged(None);
    }

    pub(crate) fn interrupt(&self) -> Result<(), Error> {
        self.machine.pause()
    }

    /// Why the machine stands, once it does; waits at most `limit`.
    pub(crate) fn stopped(&self, limit: Duration) -> Option<MultiThreadStopReason<u64>> {
        let Some(vcpu) = self.machine.stopped(limit) else {
            return self.machine.outcome().map(|_| MultiThreadStopReason::Exited(0));
        };
        let tid = thread(vcpu);
        let at = self.machine.registers(vcpu).map(|state| state.rip);
        Some(match at {
            Ok(rip) if self.breakpoints.contains(&rip) => MultiThreadStopReason::SwBreak(tid),
            _ => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
        })
    }

    fn add(&mut self, address: u64) -> bool {
        let room = self.breakpoints.len() < MAX_BREAKPOINTS;
        if room {
            self.breakpoints.push(address);
        }
        room
    }

    fn remove(&mut self, address: u64) -> bool {
        let at = self.breakpoints.iter().position(|other| *other == address);
        at.map(|at| self.breakpoints.swap_remove(at)).is_some()
    }
}

impl Target for Debugged {
    type Arch = X86_64_SSE;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged {
    fn read_registers(&mut self, regs: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        registers::to_gdb(&refused(self.machine.registers(vcpu(tid)))?, regs);
        Ok(())
    }

    fn write_registers(&mut self, regs: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let mut state = refused(self.machine.registers(vcpu(tid)))?;
        registers::from_gdb(regs, &mut state);
        refused(self.machine.set_registers(vcpu(tid), &state))
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let state = refused(self.machine.registers(vcpu(tid)))?;
        match self.machine.read_linear(&state, start, data) {
            0 => Err(TargetError::NonFatal),
            n => Ok(n),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let state = refused(self.machine.registers(vcpu(tid)))?;
        match self.machine.write_linear(&state, start, data) == data.len() {
            true => Ok(()),
            false => Err(TargetError::NonFatal),
        }
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), Error> {
        (0..self.machine.vcpu_count()).for_each(|vcpu| register(thread(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debugged {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Error> {
        let name = format!("vcpu{}", vcpu(tid));
        let len = name.len().min(buffer.len());
        buffer[..len].copy_from_slice(&name.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Debugged {
    fn resume(&mut self) -> Result<(), Error> {
        for vcpu in 0..self.machine.vcpu_count() {
            let stops = Stops { step: self.step == Some(vcpu), at: self.breakpoints.clone() };
            self.machine.stop_at(vcpu, &stops)?;
        }
        self.machine.resume_debugged(self.step.filter(|_| self.alone));
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Error> {
        (self.step, self.alone) = (None, false);
        Ok(())
    }

    /// Signals mean nothing to a CPU.
    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), Error> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Error> {
        self.step = Some(vcpu(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Error> {
        self.alone = true;
        Ok(())
    }
}

impl Breakpoints for Debugged {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}

impl HwBreakpoint for Debugged {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}
