//! The machine-wide part of an engine: memory, interrupt routing, clock.

use std::io::{self, Read};

use guestmem::GuestMemory;
use host::Event;
use serde::{Deserialize, Serialize};

use crate::{CpuidLeaf, Error, HotBlock, Vcpu};

/// Which engine executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    Soft,
    Kvm,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EngineKind::Soft => "soft",
            EngineKind::Kvm => "kvm",
        })
    }
}

/// A message-signalled interrupt (SDM vol. 3, 11.11): what the IOAPIC and devices send to local
/// APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    pub address: u64,
    pub data: u32,
}

/// The paravirtual clock of the whole machine at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// kvmclock: nanoseconds since the machine booted, frozen time not counted.
    pub kvmclock_ns: u64,
}

/// What an engine needs to make a partition.
#[derive(Clone)]
pub struct PartitionConfig {
    pub memory: GuestMemory,
    /// 1 to 16.
    pub vcpus: u32,
    /// Leaves common to all vCPUs; the engine fills in the APIC id of each (leaves 1, 0xb).
    pub cpuid: Vec<CpuidLeaf>,
    /// Guest TSC frequency in kHz; `None`: the engine's natural one (reported by
    /// [`Partition::tsc_khz`] and then part of the machine).
    pub tsc_khz: Option<u32>,
    /// Go on although this host's KVM does not govern the CPU template (DESIGN.md §9).
    pub force_template: bool,
    /// Time is counted in instructions, vCPUs execute in rounds, random numbers are those of a fixed seed: from the
    /// same state and with the same inputs at the same exits every run is the same. Not every engine can.
    pub repeatable: bool,
}

/// Reads what ran often in a machine before it was frozen, hottest first; it may take milliseconds.
pub type HotSource = Box<dyn FnOnce() -> Vec<HotBlock> + Send>;

/// How it becomes known which pages of memory a machine's vCPUs write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Each passes guestmem's gate before it happens.
    Gated,
    /// The engine keeps a log, to be asked for: [`Partition::take_written`].
    Logged,
    /// Not at all: any page may have been written.
    Unseen,
}

/// Opens what [`Vcpu::keep_code`] of each vCPU wrote, one after the other: made sure that nobody else wrote it, and that it
/// belongs to the state which the machine was brought back from.
pub type CodeSource = Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>;

/// A machine without devices. The IOAPIC is ours on every engine; local APICs are the engine's.
pub trait Partition: Send + Sync {
    fn engine(&self) -> EngineKind;

    /// Makes vCPU `id` (0 is the boot processor) in its reset state: application processors wait
    /// for INIT.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error>;

    /// Delivers an interrupt message; callable from any thread, wakes a halted vCPU.
    fn signal_msi(&self, msi: Msi) -> Result<(), Error>;

    /// Delivers an edge on IOAPIC pin `pin`, which is this message now; as [`Partition::signal_msi`], for engines
    /// that have a shorter way for a message that comes again and again.
    ///
    /// # Errors
    /// The engine's.
    fn pulse(&self, pin: u8, msi: Msi) -> Result<(), Error> {
        let _ = pin;
        self.signal_msi(msi)
    }

    /// Makes 4-byte stores of `value` at guest-physical `address` an event instead of an exit: it is
    /// raised by each. `None` on an engine that makes exits of all stores.
    ///
    /// # Errors
    /// The engine's.
    fn doorbell(&self, address: u64, value: u32) -> Result<Option<Event>, Error> {
        let _ = (address, value);
        Ok(None)
    }

    /// Guest TSC frequency in kHz.
    fn tsc_khz(&self) -> u32;

    /// Reads the clock while all vCPUs are stopped.
    fn clock(&self) -> Result<ClockState, Error>;

    /// Sets the clock before any vCPU runs; it starts to count from there at the first `run`.
    fn set_clock(&self, clock: &ClockState) -> Result<(), Error>;

    /// Says where to ask which code will run often. An engine that has a use for it asks once, when the machine has
    /// something to do, on a thread that no vCPU waits for; what the guest sees does not depend on it.
    fn foretell(&self, _source: HotSource) {}

    /// Says where the code is that the engine made of the guest's before the machine was frozen. It asks as in
    /// [`Partition::foretell`], if it has a use for it; what the guest sees does not depend on it.
    fn offer_code(&self, _source: CodeSource) {}

    /// Asks now, here: in a process that others are split off from, which then have the answer in common.
    fn foretold_now(&self) {}

    /// How writes of its vCPUs become known.
    fn writes(&self) -> Writes {
        Writes::Gated
    }

    /// Adds the pages that vCPUs wrote behind guestmem's back since the last call to `words`: page n is bit n % 64 of
    /// word n / 64, as in [`GuestMemory::dirty_bits`]. vCPUs may run meanwhile: a page that is written after it was
    /// reported is reported again.
    ///
    /// # Errors
    /// The engine's.
    fn take_written(&self, words: &mut [u64]) -> Result<(), Error> {
        let _ = words;
        Ok(())
    }
}
