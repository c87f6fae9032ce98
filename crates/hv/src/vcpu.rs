//! One virtual CPU.

use std::any::Any;
use std::io::{self, Write};
use std::sync::Arc;

use guestmem::GuestMemory;

use crate::{Error, Exit, HotBlock, Stops, VcpuState, Watch};

/// What an engine found out about the code in a machine's memory while it ran: for machines that are brought back from
/// the same files, so that they need not find it out again. What is inside is the engine's own.
pub trait Learnt: Any + Send {
    /// Makes it valid for `memory`, which holds what those files hold and which nothing uses yet.
    fn fit(&mut self, memory: &GuestMemory);
}

/// Makes a vCPU's `run` return [`Exit::Kicked`] soon (≤ 100 µs), also out of HLT; callable from any
/// thread. A kick that arrives while the vCPU is not in `run` makes the next `run` return at once.
pub trait Kick: Send + Sync {
    fn kick(&self);
}

/// What an engine counted for one vCPU since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Guest instructions retired, exact on engines that count them.
    pub instructions: Option<u64>,
    /// Times `run` returned.
    pub exits: u64,
    /// What else the engine counts, by names of its own: words of lower case, joined by underscores, always the same
    /// ones in the same order.
    pub details: Vec<(&'static str, u64)>,
}

/// One vCPU, owned by one thread.
pub trait Vcpu: Send {
    /// Executes guest instructions until something needs the machine. HLT waits inside.
    ///
    /// # Errors
    /// A host failure; what the guest did wrong is [`Exit::Shutdown`] or [`Exit::Failed`].
    fn run(&mut self) -> Result<Exit<'_>, Error>;

    /// Finishes a half-done exit (a read that was answered but not yet retired) without executing
    /// any further guest instruction, so that [`Vcpu::save`] sees an instruction boundary.
    fn settle(&mut self) -> Result<(), Error>;

    /// The whole state. Call [`Vcpu::settle`] first.
    fn save(&mut self) -> Result<VcpuState, Error>;

    /// Loads a state in the fixed order of DESIGN.md §3.
    ///
    /// # Errors
    /// [`Error::BadState`] for a state that no CPU could be in: it may come from a hostile file.
    fn restore(&mut self, state: &VcpuState) -> Result<(), Error>;

    /// Stops with [`Exit::Debug`] from now on where `stops` says; by default nowhere.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more places than the engine can watch; the host's.
    fn stop_at(&mut self, stops: &Stops) -> Result<(), Error>;

    /// A handle that interrupts `run`.
    fn kicker(&self) -> Arc<dyn Kick>;

    fn counters(&self) -> Counters;

    /// Lets somebody look at it from its next piece on, where runs are repeatable; elsewhere nothing comes of it.
    fn watch(&mut self, _watch: Watch) {}

    /// Calls `hook` once, on the thread in `run`, when the vCPU has executed its first instructions: some thousand, or
    /// fewer where it then waits for something. After [`Vcpu::restore`] and before the first `run`. An engine that
    /// cannot stop there drops it.
    fn after_first(&mut self, _hook: Box<dyn FnOnce() + Send>) {}

    /// What ran often in it, in no order; nothing where an engine does not know. It stands still.
    fn hot_blocks(&mut self) -> Vec<HotBlock> {
        Vec::new()
    }

    /// Writes the code that the engine has made of the guest's, for [`crate::Partition::offer_code`] of a machine that is
    /// brought back from the state as it is now, on this host by this very program. It stands still. Whether there is any.
    ///
    /// # Errors
    /// The writer's.
    fn keep_code(&mut self, _to: &mut dyn Write) -> io::Result<bool> {
        Ok(false)
    }

    /// Takes what the engine has learnt; the vCPU stands still, in memory that was brought back from files. `None`
    /// where an engine learns nothing.
    fn take_learnt(&mut self) -> Option<Box<dyn Learnt>> {
        None
    }

    /// Goes on with what a vCPU of this number learnt, after [`Vcpu::restore`] and before the first `run`. What another
    /// engine learnt is passed over.
    fn learn(&mut self, _learnt: Box<dyn Learnt>) {}
}
