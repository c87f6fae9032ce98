//! THE loop: one vCPU on one thread, the same for every engine.
//!
//! Way (a) through the house: `hv_*/vcpu.rs run() -> Exit<'_>` comes in here, `bus` is next.

use std::sync::{Arc, Mutex, OnceLock};

use bus::{Bus, lock};
use hv::{Exit, Vcpu};

use crate::counters::Questions;
use crate::lifecycle::{Control, Outcome};

/// What every vCPU thread shares.
pub(crate) struct World {
    pub(crate) mmio: Bus,
    pub(crate) pio: Bus,
    /// Tells the IOAPIC that a level-triggered vector was acknowledged.
    pub(crate) eoi: Box<dyn Fn(u8) + Send + Sync>,
    pub(crate) control: Arc<Control>,
    /// Called by each vCPU thread when the machine has ended: streams to the guest end with it.
    pub(crate) ended: Box<dyn Fn() + Send + Sync>,
    /// CLOCK_MONOTONIC in nanoseconds when the first vCPU was about to execute its first
    /// instruction: what a resume is measured by.
    pub(crate) first_run_ns: OnceLock<u64>,
    /// What is asked of vCPUs that run.
    pub(crate) questions: Questions,
}

impl World {
    fn note_first_run(&self) {
        self.first_run_ns.get_or_init(|| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
        });
    }
}

/// A vCPU's thread; its end, of whatever kind, is told.
struct Alive<'a> {
    world: &'a World,
    id: usize,
}

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        // In a build that unwinds, nobody else would hear of it, and whoever waits for the guest would wait for good.
        if std::thread::panicking() {
            let why = format!(
                "running vCPU {}: an error in smolvm itself, whose message stands on standard error; please report it",
                self.id
            );
            self.world.control.end(Outcome::Failed(why));
        }
        (self.world.ended)();
    }
}

/// Runs until the machine ends. The vCPU is locked while it runs and free while it is parked, so
/// that `save` can look at it.
pub(crate) fn run(world: &Arc<World>, id: usize, vcpu: &Mutex<Box<dyn Vcpu>>) {
    let _alive = Alive { world, id };
    while world.control.may_run(id) {
        let mut vcpu = lock(vcpu);
        world.note_first_run();
        while world.control.is_running() {
            if let Err(outcome) = step(world, id, vcpu.as_mut()) {
                world.control.end(outcome);
            }
        }
        if let Err(error) = vcpu.settle() {
            world.control.end(Outcome::Failed(error.to_string()));
        }
    }
}

/// One exit.
fn step(world: &World, id: usize, vcpu: &mut dyn Vcpu) -> Result<(), Outcome> {
    match vcpu.run().map_err(|e| Outcome::Failed(e.to_string()))? {
        Exit::PioRead { port, data } => world.pio.read(port.into(), data),
        Exit::PioWrite { port, data } => world.pio.write(port.into(), data),
        Exit::MmioRead { gpa, data } => world.mmio.read(gpa, data),
        Exit::MmioWrite { gpa, data } => world.mmio.write(gpa, data),
        Exit::IoapicEoi { vector } => (world.eoi)(vector),
        Exit::Kicked => world.questions.answer(id, vcpu),
        Exit::Debug => world.control.stop(id),
        Exit::Shutdown => return Err(Outcome::TripleFault),
        Exit::Failed { reason } => return Err(Outcome::Failed(reason)),
    }
    Ok(())
}
