//! [`KvmPartition`]: what the vCPUs of a machine share.
//!
//! The order of the calls matters (DESIGN.md §8): since Linux 6.18 a memory slot that is set after the
//! interrupt controller exists waits milliseconds. There is no PIT, and CPUID is the machine's own, so
//! KVM is not asked what it supports.

#![allow(unsafe_code)] // KVM_SET_USER_MEMORY_REGION takes an address.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ::host::Event;
use arch::x86_64::cpuid::{for_vcpu, lookup};
use arch::x86_64::regs::Cr4;
use guestmem::GuestMemory;
use hv::{ClockState, CpuidLeaf, EngineKind, Error, Msi, Partition, PartitionConfig, Vcpu, Writes};
use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X2APIC_API, KVM_MEM_LOG_DIRTY_PAGES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_clock_data, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::abi::{ENGINE, capability, host};
use crate::events::{self, IOAPIC_PINS, MSI_LEVEL, Routes, lock};
use crate::probe;
use crate::vcpu::KvmVcpu;
use serde::{Deserialize, Serialize};

const MAX_VCPUS: u32 = 16;
/// Pages that KVM on Intel needs for itself, at the end of the device hole, where neither RAM nor a
/// device is: one for the identity map, three for a task state segment.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;
/// A guest TSC this near to the wanted one is not scaled (parts per million; KVM's own tolerance).
const TSC_TOLERANCE_PPM: u64 = 250;

/// What is known about this host's KVM when a machine is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Abilities {
    /// TSC frequency in kHz without scaling.
    pub(crate) host_khz: u32,
    /// IA32_TSC can be set.
    pub(crate) time_travels: bool,
    /// A page that the guest wrote is in the dirty log.
    pub(crate) dirty_log: bool,
    /// SYSCALL in ring 3 goes on in ring 0.
    pub(crate) system_call: bool,
}

pub(crate) struct Shared {
    pub(crate) vm: VmFd,
    pub(crate) memory: GuestMemory,
    pub(crate) tsc_khz: u32,
    /// KVM_SET_TSC_KHZ is needed on each vCPU.
    pub(crate) scaled: bool,
    pub(crate) time_travels: bool,
    /// What vCPUs write is in the dirty log.
    dirty_log: bool,
    /// System calls enter the guest's kernel: nothing for `entry` to do.
    pub(crate) system_call: bool,
    pub(crate) has_xsave: bool,
    /// KVM leaves the pending events alone when it refuses an instruction.
    pub(crate) clean_refusals: bool,
    /// CR4 bits that the machine's CPUID does not offer, but that a software KVM shows to the guest's
    /// kernel nevertheless (FSGSBASE, SMEP and SMAP were seen).
    pub(crate) foreign_cr4: u64,
    /// Instructions that `x86cpu` executed.
    pub(crate) assists: AtomicU64,
    cpuid: Vec<CpuidLeaf>,
    vcpus: u32,
    /// Bit i: vCPU i was made.
    made: AtomicU32,
    /// Where interrupt events and acknowledgements go.
    routes: Mutex<Routes>,
}

/// A machine without devices, executed by KVM.
pub struct KvmPartition {
    shared: Arc<Shared>,
}

impl KvmPartition {
    /// Makes the virtual machine with its memory and interrupt routing.
    ///
    /// # Errors
    /// [`Error::Host`] when `/dev/kvm` cannot be used; [`Error::Unsupported`] for a number of vCPUs
    /// outside of 1 to 16, for a repeatable run, for a TSC frequency that this host can neither run at nor scale to, and,
    /// unless `force_template`, where this host's KVM does not govern the CPU template.
    pub fn new(config: PartitionConfig) -> Result<Self, Error> {
        if config.repeatable {
            return Err(Error::Unsupported {
                engine: ENGINE,
                what: "a run that can be repeated to the bit".into(),
                advice: "use `--engine soft`, which counts time in instructions",
            });
        }
        let found = probe::found()?;
        if !config.force_template
            && let Some(why) = &found.refusal
        {
            return Err(Error::Unsupported {
                engine: ENGINE,
                what: format!("this host's KVM cannot offer the machine's CPU: {why}"),
                advice: "use `--engine soft`, which needs no KVM",
            });
        }
        Self::build(config, found.abilities)
    }

    pub(crate) fn build(config: PartitionConfig, abilities: Abilities) -> Result<Self, Error> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            let what = format!("a machine of {} vCPUs", config.vcpus);
            return Err(Error::Unsupported { engine: ENGINE, what, advice: "ask for 1 to 16 vCPUs" });
        }
        let kvm = open()?;
        let (tsc_khz, scaled) = frequency(&kvm, &config, abilities.host_khz)?;
        let vm = kvm.create_vm().map_err(host("KVM_CREATE_VM"))?;
        set_memory(&vm, &config.memory)?;
        let clean_refusals = set_capabilities(&vm)?;
        let shared = Shared {
            has_xsave: vm.check_extension(Cap::Xsave),
            vm,
            memory: config.memory,
            tsc_khz,
            scaled,
            time_travels: abilities.time_travels,
            dirty_log: abilities.dirty_log,
            system_call: abilities.system_call,
            clean_refusals,
            foreign_cr4: foreign_cr4(&config.cpuid),
            assists: AtomicU64::new(0),
            cpuid: config.cpuid,
            vcpus: config.vcpus,
            made: AtomicU32::new(0),
            routes: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn vcpu(&self, id: u32) -> Result<KvmVcpu, Error> {
        let exists = id < self.shared.vcpus;
        if !exists || self.shared.made.fetch_or(1 << id, Ordering::AcqRel) & (1 << id) != 0 {
            let what = format!("vCPU {id} of a machine of {}", self.shared.vcpus);
            return Err(Error::Unsupported { engine: ENGINE, what, advice: "make each vCPU once, from 0" });
        }
        let fd = self.shared.vm.create_vcpu(id.into()).map_err(host("KVM_CREATE_VCPU"))?;
        let leaves = for_vcpu(&self.shared.cpuid, id);
        fd.set_cpuid2(&crate::convert::cpuid(&leaves)?).map_err(crate::abi::refused("CPUID"))?;
        if self.shared.scaled {
            fd.set_tsc_khz(self.shared.tsc_khz).map_err(host("KVM_SET_TSC_KHZ"))?;
        }
        // Only what CPUID offers: a guest must not find KVM's other paravirtual MSRs. Older kernels
        // cannot, and then nothing but the guest's own curiosity finds them.
        let _ = fd.enable_cap(&capability(KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1));
        KvmVcpu::new(fd, id, leaves, Arc::clone(&self.shared))
    }

    /// Instructions that KVM refused and the soft CPU executed, since the machine was made.
    pub fn assists(&self) -> u64 {
        self.shared.assists.load(Ordering::Relaxed)
    }

    /// Whether saved TSC values are loaded. Where not (a software KVM, forced), the guest's TSC jumps at
    /// a restore; its deadline and clock are right nevertheless.
    pub fn restores_tsc(&self) -> bool {
        self.shared.time_travels
    }
}

/// Opens `/dev/kvm`.
pub(crate) fn open() -> Result<Kvm, Error> {
    Kvm::new().map_err(host(
        "opening /dev/kvm (is the module loaded, and may this user open it? `--engine soft` needs neither)",
    ))
}

/// Whether a guest made for `wanted` kHz runs at `host_khz` without scaling.
pub fn same_rate(wanted: u32, host_khz: u32) -> bool {
    u64::from(wanted.abs_diff(host_khz)) * 1_000_000 <= u64::from(wanted) * TSC_TOLERANCE_PPM
}

/// The guest's TSC frequency and whether it must be scaled to.
fn frequency(kvm: &Kvm, config: &PartitionConfig, host_khz: u32) -> Result<(u32, bool), Error> {
    let Some(wanted) = config.tsc_khz else { return Ok((host_khz, false)) };
    if same_rate(wanted, host_khz) {
        return Ok((wanted, false));
    }
    if kvm.check_extension(Cap::TscControl) && wanted != 0 {
        return Ok((wanted, true));
    }
    if config.force_template {
        // Intervals in ticks are then off by the ratio; the clock is not.
        return Ok((host_khz, false));
    }
    Err(Error::Unsupported {
        engine: ENGINE,
        what: format!(
            "the machine's TSC runs at {wanted} kHz, this host's at {host_khz} kHz, and its processor cannot \
             scale it"
        ),
        advice: "use `--engine soft`",
    })
}

fn set_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, (gpa, size, address)) in (0u32..).zip(memory.regions()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: address.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping that `memory` owns; `Shared` keeps a clone for as long as the
        // VM's descriptor is open, and nobody holds Rust references into guest memory.
        unsafe { vm.set_user_memory_region(region) }.map_err(host("KVM_SET_USER_MEMORY_REGION"))?;
    }
    vm.set_identity_map_address(IDENTITY_MAP).map_err(host("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS).map_err(host("KVM_SET_TSS_ADDR"))
}

/// Feature bits of CR4 that the machine's CPUID does not offer (SDM vol. 2, leaf 1 ECX, leaf 7 EBX and
/// ECX).
fn foreign_cr4(leaves: &[CpuidLeaf]) -> u64 {
    let (basic, seven) = (lookup(leaves, 1, 0), lookup(leaves, 7, 0));
    let features = [
        (basic.ecx, 17, Cr4::PCIDE),
        (basic.ecx, 26, Cr4::OSXSAVE),
        (seven.ebx, 0, Cr4::FSGSBASE),
        (seven.ebx, 7, Cr4::SMEP),
        (seven.ebx, 20, Cr4::SMAP),
        (seven.ecx, 2, Cr4::UMIP),
        (seven.ecx, 3, Cr4::PKE),
    ];
    features.iter().filter(|(word, bit, _)| word >> bit & 1 == 0).fold(0, |sum, (.., flag)| sum | flag.bits())
}

/// Interrupt controllers and the like; after the memory. Returns whether refusals are clean.
fn set_capabilities(vm: &VmFd) -> Result<bool, Error> {
    let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    vm.enable_cap(&capability(KVM_CAP_X2APIC_API, flags.into())).map_err(host("KVM_CAP_X2APIC_API"))?;
    let clean = vm.enable_cap(&capability(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)).is_ok();
    vm.enable_cap(&capability(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS.into()))
        .map_err(host("KVM_CAP_SPLIT_IRQCHIP"))?;
    Ok(clean)
}

impl Shared {
    /// Makes KVM tell when the vCPU acknowledges this level-triggered vector.
    pub(crate) fn watch_level(&self, apic_id: u32, vector: u8) -> Result<(), Error> {
        let address = 0xfee0_0000 | u64::from(apic_id & 0xff) << 12;
        self.watch(Msi { address, data: MSI_LEVEL | u32::from(vector) })
    }

    fn watch(&self, msi: Msi) -> Result<(), Error> {
        lock(&self.routes).watch(&self.vm, msi)
    }
}

/// Whether it is in the local APICs' window (SDM vol. 3, 11.11.1).
fn is_interrupt(msi: Msi) -> bool {
    msi.address >> 20 == 0xfee
}

impl Partition for KvmPartition {
    fn engine(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(self.vcpu(id)?))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), Error> {
        // Outside of the local APICs' window a message goes nowhere, as on a bus.
        if !is_interrupt(msi) {
            return Ok(());
        }
        if msi.data & MSI_LEVEL != 0 {
            self.shared.watch(msi)?;
        }
        let message = kvm_msi { address_lo: msi.address as u32, data: msi.data, ..Default::default() };
        // 0: the guest blocks it; that is its business.
        self.shared.vm.signal_msi(message).map(|_| ()).map_err(host("KVM_SIGNAL_MSI"))
    }

    fn pulse(&self, pin: u8, msi: Msi) -> Result<(), Error> {
        let event = msi.data & MSI_LEVEL == 0 && is_interrupt(msi);
        if event && lock(&self.shared.routes).pulse(&self.shared.vm, pin, msi)? {
            return Ok(());
        }
        self.signal_msi(msi)
    }

    fn doorbell(&self, address: u64, value: u32) -> Result<Option<Event>, Error> {
        events::doorbell(&self.shared.vm, address, value).map(Some)
    }

    fn tsc_khz(&self) -> u32 {
        self.shared.tsc_khz
    }

    fn clock(&self) -> Result<ClockState, Error> {
        let clock = self.shared.vm.get_clock().map_err(host("KVM_GET_CLOCK"))?;
        Ok(ClockState { kvmclock_ns: clock.clock })
    }

    fn set_clock(&self, clock: &ClockState) -> Result<(), Error> {
        let data = kvm_clock_data { clock: clock.kvmclock_ns, ..Default::default() };
        self.shared.vm.set_clock(&data).map_err(host("KVM_SET_CLOCK"))
    }

    fn writes(&self) -> Writes {
        if self.shared.dirty_log { Writes::Logged } else { Writes::Unseen }
    }

    fn take_written(&self, words: &mut [u64]) -> Result<(), Error> {
        let memory = &self.shared.memory;
        for (slot, (gpa, size, _)) in (0u32..).zip(memory.regions()) {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let log = self.shared.vm.get_dirty_log(slot, size).map_err(host("KVM_GET_DIRTY_LOG"))?;
            // A region begins at the first page of a word: where there are two, the second begins at 3 GiB.
            let first = memory.page_index(gpa).unwrap_or(usize::MAX) / 64;
            for (word, written) in words.iter_mut().skip(first).zip(log) {
                *word |= written;
            }
        }
        Ok(())
    }
}
