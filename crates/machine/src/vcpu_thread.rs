//! THE loop: one vCPU on one thread, the same for every engine.
//!
//! Way (a) through the house: `hv_*/vcpu.rs run() -> Exit<'_>` comes in here, `bus` is next.

use std::sync::Arc;
use std::sync::Mutex;

use bus::{Bus, lock};
use hv::{Exit, Vcpu};

use crate::lifecycle::{Control, Outcome};

/// What every vCPU thread shares.
pub(crate) struct World {
    pub(crate) mmio: Bus,
    pub(crate) pio: Bus,
    /// Tells the IOAPIC that a level-triggered vector was acknowledged.
    pub(crate) eoi: Box<dyn Fn(u8) + Send + Sync>,
    pub(crate) control: Arc<Control>,
}

/// Runs until the machine ends. The vCPU is locked while it runs and free while it is parked, so
/// that `save` can look at it.
pub(crate) fn run(world: &Arc<World>, vcpu: &Mutex<Box<dyn Vcpu>>) {
    while world.control.may_run() {
        let mut vcpu = lock(vcpu);
        while world.control.is_running() {
            if let Err(outcome) = step(world, vcpu.as_mut()) {
                world.control.end(outcome);
            }
        }
        if let Err(error) = vcpu.settle() {
            world.control.end(Outcome::Failed(error.to_string()));
        }
    }
}

/// One exit.
fn step(world: &World, vcpu: &mut dyn Vcpu) -> Result<(), Outcome> {
    match vcpu.run().map_err(|e| Outcome::Failed(e.to_string()))? {
        Exit::PioRead { port, data } => world.pio.read(port.into(), data),
        Exit::PioWrite { port, data } => world.pio.write(port.into(), data),
        Exit::MmioRead { gpa, data } => world.mmio.read(gpa, data),
        Exit::MmioWrite { gpa, data } => world.mmio.write(gpa, data),
        Exit::IoapicEoi { vector } => (world.eoi)(vector),
        Exit::Kicked => {}
        Exit::Shutdown => return Err(Outcome::TripleFault),
        Exit::Failed { reason } => return Err(Outcome::Failed(reason)),
    }
    Ok(())
}
