//! Puts a machine together: memory first, then the engine, then every device in its place.
//!
//! The order of memory before everything else matters to KVM: memory slots are set before the
//! interrupt controller exists (DESIGN.md §8). The order of parts is part of the saved format.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use boot::{AcpiConfig, VirtioSlot, layout};
use bus::{Bus, BusDevice, IrqLine, Saved, lock};
use devices::balloon::Balloon;
use devices::blk::Blk;
use devices::console::Console;
use devices::fs::Fs;
use devices::ioapic::{IoApic, Message, MsiSink};
use devices::net::Net;
use devices::power::{Power, PowerEvent};
use devices::rng::Rng;
use devices::serial::Serial;
use devices::vmgenid::{Ged, VmGenId};
use devices::vsock::{Vsock, VsockHandle};
use disk::{Disk, NoDisk};
use guestmem::GuestMemory;
use hv::{CpuidLeaf, Msi, Partition, PartitionConfig};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use snapshot::PartState;
use virtio::{MmioTransport, VirtioDevice};

use crate::Error;
use crate::counters::Questions;
use crate::doorbells::Doorbells;
use crate::engine;
use crate::error::host;
use crate::lifecycle::{Control, Outcome};
use crate::machine::{Assembly, Machine, MachineConfig, Sink};
use crate::parts::{Parts, Plain, Virtio};
use crate::vcpu_thread::World;

/// The guest's context id on vsock.
const GUEST_CID: u64 = 3;
/// virtio-mmio devices that every machine has, in the order of their slots.
const VIRTIO_DEVICES: usize = 5;

/// Devices whose state travels, in the order of the saved format; those of an [`Outfit`] come after them.
pub(crate) const PART_NAMES: [&str; 8] =
    ["ioapic", "serial", "ged", "blk0", "blk1", "vsock", "rng", "console"];

/// The network device's name in the saved format.
pub(crate) const NET: &str = "net";
/// The balloon's. Machines that were frozen before it existed have none.
pub(crate) const BALLOON: &str = "balloon";
/// The balloon's slot: the last, whatever other devices there are.
const BALLOON_SLOT: usize = layout::VIRTIO_SLOTS - 1;

/// Slots for volumes: names in the saved format, and what the guest reads as their serial numbers.
pub(crate) const VOLUMES: [&str; VOLUME_SLOTS] = ["volume0", "volume1", "volume2", "volume3"];

/// Volumes that a machine can have at once.
pub const VOLUME_SLOTS: usize = 4;

/// The name of the device for folders in the saved format.
pub(crate) const FS: &str = "fs";

/// Which of the devices there are that not every machine has, in the order of their virtio slots. A device keeps
/// slot and interrupt for the life of a frozen machine, so a kind that is invented later goes to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outfit {
    pub(crate) network: bool,
    /// All of [`VOLUMES`], or none, as in machines of before there were any.
    pub(crate) volumes: bool,
    /// In a slot of its own, the last.
    pub(crate) balloon: bool,
    /// The device for folders; not in machines of before there was one.
    pub(crate) folders: bool,
}

impl Outfit {
    /// That of a machine that was saved with these parts.
    pub(crate) fn of_saved(parts: &[PartState]) -> Self {
        let has = |name: &str| parts.iter().any(|part| part.name == name);
        Self { network: has(NET), volumes: has(VOLUMES[0]), balloon: has(BALLOON), folders: has(FS) }
    }

    fn devices(self) -> usize {
        let volumes = if self.volumes { VOLUME_SLOTS } else { 0 };
        VIRTIO_DEVICES + usize::from(self.network) + volumes + usize::from(self.folders)
    }

    /// Names of every device that a machine of this version can have, in the saved format.
    pub(crate) fn known() -> impl Iterator<Item = &'static str> {
        PART_NAMES.into_iter().chain([NET]).chain(VOLUMES).chain([FS]).chain([BALLOON])
    }
}

/// The CPU as the guest sees it.
pub(crate) struct Cpu {
    pub(crate) template_version: u32,
    pub(crate) cpuid: Vec<CpuidLeaf>,
    pub(crate) tsc_khz: Option<u32>,
}

impl Cpu {
    /// The portable template for a fresh machine.
    pub(crate) fn template(vcpus: u32, tsc_khz: u32) -> Self {
        Self {
            template_version: arch::x86_64::cpuid::PORTABLE_VERSION,
            cpuid: arch::x86_64::cpuid::portable(vcpus, tsc_khz),
            tsc_khz: Some(tsc_khz),
        }
    }
}

/// What outsiders talk to.
pub(crate) struct Devices {
    pub(crate) vsock: VsockHandle,
    generation: Arc<VmGenId>,
    repeatable: bool,
    pub(crate) net: Option<netstack::Reporter>,
    pub(crate) balloon: Option<Arc<Balloon>>,
    pub(crate) folders: Option<Arc<Fs>>,
}

impl Devices {
    /// A fresh identifier; the guest is told.
    pub(crate) fn new_generation(&self) -> io::Result<[u8; 16]> {
        if self.repeatable {
            let id = *b"repeatable run..";
            return self.generation.renew_as(id).map(|()| id);
        }
        self.generation.renew()
    }
}

fn slot(index: usize) -> VirtioSlot {
    VirtioSlot {
        base: layout::VIRTIO_BASE + index as u64 * layout::VIRTIO_STRIDE,
        size: layout::VIRTIO_STRIDE,
        gsi: layout::VIRTIO_GSI + index as u32,
    }
}

/// What the ACPI tables of a machine describe.
pub(crate) fn acpi(vcpus: u32, outfit: Outfit) -> AcpiConfig {
    let slots = (0..outfit.devices()).chain(outfit.balloon.then_some(BALLOON_SLOT));
    AcpiConfig { vcpus, virtio: slots.map(slot).collect() }
}

/// Fresh memory of so many bytes.
pub(crate) fn memory(bytes: u64) -> Result<GuestMemory, Error> {
    GuestMemory::new(bytes).map_err(host("reserving the machine's memory"))
}

/// The same random bytes in every run.
fn seeded() -> Rng {
    let sequence = Mutex::new(StdRng::seed_from_u64(0));
    Rng::new(move |to| {
        lock(&sequence).fill_bytes(to);
        Ok(())
    })
}

/// Sends the IOAPIC's messages to the engine.
struct ToEngine(Arc<dyn Partition>);

impl MsiSink for ToEngine {
    fn send(&self, pin: u8, Message { address, data }: Message) {
        // An address that no local APIC has is the guest's mistake: the message is lost.
        let _ = self.0.pulse(pin, Msi { address, data });
    }
}

/// Builds a machine around `memory`, paused, all devices in their reset state.
pub(crate) fn build(
    mut config: MachineConfig,
    memory: GuestMemory,
    cpu: Cpu,
    outfit: Outfit,
    console: Sink,
) -> Result<Machine, Error> {
    let partition: Arc<dyn Partition> = engine::partition(
        config.engine,
        PartitionConfig {
            memory: memory.clone(),
            vcpus: config.vcpus,
            cpuid: cpu.cpuid.clone(),
            tsc_khz: cpu.tsc_khz,
            force_template: config.force_template,
            repeatable: config.repeatable,
        },
    )?
    .into();
    let control = Arc::new(Control::new());
    let mut board = Board::new(memory.clone(), partition.clone())?;
    let devices = board.populate(&mut config, outfit, console, control.clone())?;
    let (ioapic, streams) = (board.ioapic.clone(), devices.vsock.clone());
    let world = World {
        mmio: board.mmio,
        pio: board.pio,
        eoi: Box::new(move |vector| ioapic.end_of_interrupt(vector)),
        control,
        ended: Box::new(move || streams.close()),
        first_run_ns: OnceLock::new(),
        questions: Questions::default(),
    };
    let vcpus = (0..config.vcpus).map(|id| partition.create_vcpu(id)).collect::<Result<_, _>>()?;
    Ok(Machine::assemble(Assembly {
        partition,
        memory,
        world: Arc::new(world),
        parts: board.parts,
        doorbells: Arc::new(board.doorbells),
        vcpus,
        devices,
        scratch: config.scratch,
        cpu,
    }))
}

/// Buses and parts while they are being filled.
struct Board {
    memory: GuestMemory,
    partition: Arc<dyn Partition>,
    mmio: Bus,
    pio: Bus,
    parts: Parts,
    ioapic: Arc<IoApic>,
    doorbells: Doorbells,
    next_slot: usize,
}

impl Board {
    fn new(memory: GuestMemory, partition: Arc<dyn Partition>) -> Result<Self, Error> {
        let ioapic = IoApic::new(Arc::new(ToEngine(partition.clone())));
        let mut this = Self {
            memory,
            partition,
            mmio: Bus::new(),
            pio: Bus::new(),
            parts: Parts::default(),
            ioapic: ioapic.clone(),
            doorbells: Doorbells::default(),
            next_slot: 0,
        };
        this.mmio_part("ioapic", layout::IOAPIC_BASE, 0x1000, ioapic)?;
        Ok(this)
    }

    fn line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        self.ioapic.line(gsi as u8)
    }

    fn mmio_part<D>(&mut self, name: &'static str, base: u64, len: u64, device: Arc<D>) -> Result<(), Error>
    where
        D: BusDevice + Saved + 'static,
    {
        self.mmio.insert(base, len, name, device.clone())?;
        self.parts.push(Plain(name, device));
        Ok(())
    }

    /// The next virtio-mmio slot.
    fn virtio<D: VirtioDevice + 'static>(&mut self, name: &'static str, device: Arc<D>) -> Result<(), Error> {
        self.next_slot += 1;
        self.virtio_at(self.next_slot - 1, name, device)
    }

    fn virtio_at<D: VirtioDevice + 'static>(
        &mut self,
        index: usize,
        name: &'static str,
        device: Arc<D>,
    ) -> Result<(), Error> {
        let slot = slot(index);
        let queues = device.queue_sizes().len();
        let transport = Arc::new(MmioTransport::new(self.memory.clone(), device, self.line(slot.gsi)));
        for queue in 0..queues {
            let address = slot.base + virtio::QUEUE_NOTIFY;
            let Some(event) = self.partition.doorbell(address, queue as u32)? else { break };
            let transport = transport.clone();
            self.doorbells.add(event, Box::new(move || transport.notify(queue)));
        }
        self.mmio.insert(slot.base, layout::VIRTIO_STRIDE, name, transport.clone())?;
        self.parts.push(Virtio(name, transport));
        Ok(())
    }

    /// The network device; without `config` it has no carrier.
    fn network(&mut self, config: Option<netstack::Config>) -> Result<Option<netstack::Reporter>, Error> {
        let net = Arc::new(Net::new(config).map_err(host("starting the machine's network"))?);
        let reporter = net.reporter();
        self.virtio(NET, net)?;
        Ok(Some(reporter))
    }

    /// A device for each slot; what is in `disks` is in the first ones.
    fn volumes(&mut self, disks: &[Arc<dyn Disk>]) -> Result<(), Error> {
        for (slot, name) in VOLUMES.into_iter().enumerate() {
            let disk = disks.get(slot).cloned().unwrap_or_else(|| Arc::new(NoDisk));
            self.virtio(name, Arc::new(Blk::slot(disk, name)))?;
        }
        Ok(())
    }

    fn balloon(&mut self) -> Result<Arc<Balloon>, Error> {
        let balloon = Arc::new(Balloon::new());
        self.virtio_at(BALLOON_SLOT, BALLOON, balloon.clone())?;
        Ok(balloon)
    }

    /// The device for folders, with or without any.
    fn folders(&mut self, folders: Vec<hostfs::Folder>) -> Result<Arc<Fs>, Error> {
        let device = Arc::new(Fs::new(folders));
        self.virtio(FS, device.clone())?;
        Ok(device)
    }

    /// Every device, in the order of the saved format.
    fn populate(
        &mut self,
        config: &mut MachineConfig,
        outfit: Outfit,
        console: Sink,
        control: Arc<Control>,
    ) -> Result<Devices, Error> {
        let console = Arc::new(console);
        let serial_out = console.clone();
        let output = Box::new(move |bytes: &[u8]| serial_out(bytes));
        let serial = Arc::new(Serial::new(self.line(layout::SERIAL_GSI), output));
        self.pio.insert(layout::SERIAL_PORT.into(), 8, "serial", serial.clone())?;
        self.parts.push(Plain("serial", serial));

        let ged = Arc::new(Ged::new(self.line(layout::GED_GSI)));
        self.mmio_part("ged", layout::GED_BASE, layout::GED_SIZE, ged.clone())?;
        let generation = Arc::new(VmGenId::new(self.memory.clone(), layout::VMGENID, ged));
        let at_end = control.clone();
        let power = Power::new(move |event| {
            control.end(match event {
                PowerEvent::Shutdown => Outcome::PowerOff,
                PowerEvent::Reset => Outcome::Reset,
            });
        });
        self.mmio.insert(layout::POWER_BASE, devices::power::SIZE, "power", Arc::new(power))?;

        self.virtio("blk0", Arc::new(Blk::new(config.root.clone(), "root")))?;
        let scratch: Arc<dyn Disk> = config.scratch.clone();
        self.virtio("blk1", Arc::new(Blk::new(scratch, "scratch")))?;
        let vsock = Arc::new(match config.repeatable {
            true => Vsock::scripted(GUEST_CID, move || at_end.end(Outcome::Stopped)),
            false => Vsock::new(GUEST_CID),
        });
        let handle = vsock.handle();
        self.virtio("vsock", vsock)?;
        self.virtio("rng", Arc::new(if config.repeatable { seeded() } else { Rng::from_host() }))?;
        let output = Box::new(move |bytes: &[u8]| console(bytes));
        self.virtio("console", Arc::new(Console::new(output)))?;
        let net = if outfit.network { self.network(config.net.take())? } else { None };
        if outfit.volumes {
            self.volumes(&config.volumes)?;
        }
        let folders =
            if outfit.folders { Some(self.folders(std::mem::take(&mut config.folders))?) } else { None };
        let balloon = if outfit.balloon { Some(self.balloon()?) } else { None };
        Ok(Devices { vsock: handle, generation, repeatable: config.repeatable, net, balloon, folders })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(names: &[&str]) -> Vec<PartState> {
        names.iter().map(|name| PartState::new(name, &0u8).expect("a state")).collect()
    }

    #[test]
    fn a_saved_machine_has_the_devices_that_it_was_frozen_with() {
        let of = |names: &[&str]| Outfit::of_saved(&saved(names));
        assert_eq!(
            of(&PART_NAMES),
            Outfit { network: false, volumes: false, folders: false, balloon: false }
        );
        assert_eq!(
            of(&["blk0", "net"]),
            Outfit { network: true, volumes: false, folders: false, balloon: false }
        );
        let all = [&PART_NAMES[..], &[NET], &VOLUMES, &[FS], &[BALLOON]].concat();
        assert_eq!(of(&all), Outfit { network: true, volumes: true, folders: true, balloon: true });
        assert!(of(&all).devices() <= BALLOON_SLOT, "the last slot is the balloon's");
        assert_eq!(Outfit::known().collect::<Vec<_>>(), all);
    }
}
