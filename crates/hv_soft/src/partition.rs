//! [`SoftPartition`]: what the vCPUs of a machine share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arch::x86_64::cpuid::for_vcpu;
use guestmem::GuestMemory;
use host::shared::IS_X86_ORDERED;
use hv::{
    ClockState, CodeSource, CpuidLeaf, EngineKind, Error, HotSource, Msi, Partition, PartitionConfig, Vcpu,
};
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig};

use crate::baton::{Baton, Gate, Order, Seat};
use crate::foretold::Foretold;
use crate::rounds::Rounds;
use crate::vcpu::SoftVcpu;

pub(crate) const ENGINE: &str = "soft";
/// Guest TSC frequency when nobody asks for one: a tick is a nanosecond.
const NATURAL_KHZ: u32 = 1_000_000;
const MAX_VCPUS: u32 = 16;

pub(crate) struct Shared {
    pub(crate) clock: Arc<Clock>,
    pub(crate) bus: Arc<ApicBus>,
    pub(crate) order: Order,
    /// By vCPU id.
    pub(crate) seats: Vec<Seat>,
    pub(crate) foretold: Foretold,
}

/// A machine without devices, executed by `x86cpu`.
pub struct SoftPartition {
    shared: Arc<Shared>,
    memory: GuestMemory,
    cpuid: Vec<CpuidLeaf>,
    /// Bit i: vCPU i was made.
    made: AtomicU32,
}

impl SoftPartition {
    /// # Errors
    /// [`Error::Unsupported`] for a number of vCPUs outside of 1 to 16.
    pub fn new(config: PartitionConfig) -> Result<Self, Error> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            let what = format!("a machine of {} vCPUs", config.vcpus);
            return Err(Error::Unsupported { engine: ENGINE, what, advice: "ask for 1 to 16 vCPUs" });
        }
        let khz = config.tsc_khz.unwrap_or(NATURAL_KHZ);
        let clock = if config.repeatable { Clock::repeatable(khz) } else { Clock::new(khz) };
        let shared = Arc::new(Shared {
            clock: Arc::new(clock),
            bus: Arc::new(ApicBus::new(config.vcpus)),
            order: if config.repeatable {
                Order::Rounds(Rounds::new(config.vcpus as usize))
            } else if IS_X86_ORDERED {
                Order::Together(Gate::default())
            } else {
                Order::Turns(Baton::default())
            },
            seats: (0..config.vcpus).map(|_| Seat::default()).collect(),
            foretold: Foretold::default(),
        });
        for id in 0..config.vcpus {
            // Weak: the bus is part of what the call would keep alive.
            let shared_for_wake = Arc::downgrade(&shared);
            let wake = move || {
                if let Some(shared) = shared_for_wake.upgrade() {
                    shared.seats[id as usize].wake();
                    if let Order::Rounds(rounds) = &shared.order {
                        rounds.wake(id as usize, &shared.seats);
                    }
                }
            };
            shared.bus.set_wake(id, Box::new(wake));
        }
        Ok(Self { shared, memory: config.memory, cpuid: config.cpuid, made: AtomicU32::new(0) })
    }
}

impl Partition for SoftPartition {
    fn engine(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let exists = (id as usize) < self.shared.seats.len();
        if !exists || self.made.fetch_or(1 << id, Ordering::AcqRel) & (1 << id) != 0 {
            let what = format!("vCPU {id} of a machine of {}", self.shared.seats.len());
            return Err(Error::Unsupported { engine: ENGINE, what, advice: "make each vCPU once, from 0" });
        }
        let mut cpu = Cpu::boxed(CpuConfig {
            memory: self.memory.clone(),
            id,
            cpuid: for_vcpu(&self.cpuid, id).into(),
            clock: Arc::clone(&self.shared.clock),
            apic_bus: Arc::clone(&self.shared.bus),
        });
        cpu.foresee(self.shared.foretold.set());
        let _ = self.shared.seats[id as usize].poll.set(cpu.poll_handle());
        Ok(Box::new(SoftVcpu::new(cpu, id, Arc::clone(&self.shared))))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), Error> {
        self.shared.bus.deliver_msi(msi.address, msi.data);
        Ok(())
    }

    fn tsc_khz(&self) -> u32 {
        self.shared.clock.tsc_khz()
    }

    fn clock(&self) -> Result<ClockState, Error> {
        self.shared.clock.hold();
        Ok(ClockState { kvmclock_ns: self.shared.clock.now_ns() })
    }

    fn set_clock(&self, clock: &ClockState) -> Result<(), Error> {
        self.shared.clock.set_ns(clock.kvmclock_ns);
        Ok(())
    }

    fn foretell(&self, source: HotSource) {
        self.shared.foretold.foretell(source, &self.memory);
    }

    fn offer_code(&self, source: CodeSource) {
        // Where vCPUs execute at once: what takes turns is repeatable, or on a host without translations.
        if matches!(self.shared.order, Order::Together(_)) {
            self.shared.foretold.kept.offer(source);
        }
    }

    fn foretold_now(&self) {
        self.shared.foretold.ask();
    }
}
