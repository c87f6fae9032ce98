//! What this host's KVM is worth: found out by running guest code, in a few milliseconds, once in the
//! life of the process; or remembered from an earlier one (`remembered.rs`).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use arch::x86_64::cpuid::{lookup, portable};
use arch::x86_64::msr;
use arch::x86_64::regs::gpr;
use hv::{Error, Exit, Partition, PartitionConfig, Vcpu};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use crate::abi::{self, ENGINE, host};
use crate::kick::Watchdog;
use crate::remembered;
use crate::tiny::{self, DEVICE, DONE, FAULT_PORT};
use crate::vcpu::KvmVcpu;
use crate::vm::{Abilities, KvmPartition, open};

/// The only version of the interface that there ever was (KVM: Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// Without these no machine can be made.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::SplitIrqchip, "split interrupt controller"),
    (Cap::X2ApicApi, "32-bit APIC ids"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::SignalMsi, "message-signalled interrupts"),
    (Cap::TscDeadlineTimer, "TSC-deadline timer"),
    (Cap::Debugregs, "debug registers"),
    (Cap::VcpuEvents, "pending events"),
];
/// Below this many million supervisor instructions a second KVM interprets them, and the soft engine
/// does that faster.
const SLOW_MIPS: f64 = 200.0;
/// Rounds of the first speed loop, of two instructions each: 2 ms where they are interpreted.
const ROUNDS: u32 = 2_000;
/// A KVM on which the tiny programs take longer is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// #UD.
const INVALID_OPCODE: u8 = 6;
/// The TSC value of the test, far from what any host's counter shows.
const TSC_MARK: u64 = 1 << 60;

/// What the probe saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) abilities: Abilities,
    /// Why the CPU template cannot be kept here.
    pub(crate) refusal: Option<String>,
    pub(crate) supervisor_mips: f64,
    pub(crate) cpuid_governed: bool,
    pub(crate) kernel_cpuid_governed: bool,
    pub(crate) xgetbv_governed: bool,
    pub(crate) avx_governed: bool,
    /// The TSC that was set is read back by KVM, by RDTSC in ring 0, in ring 3.
    pub(crate) tsc_reads: [bool; 3],
    pub(crate) scaling: bool,
}

/// Opens KVM and looks, or remembers.
pub(crate) fn found() -> Result<&'static Found, Error> {
    static FOUND: OnceLock<Found> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let found = match remembered::read() {
        Some(found) => found,
        None => {
            let found = probe()?;
            remembered::write(&found);
            found
        }
    };
    Ok(FOUND.get_or_init(|| found))
}

/// Frequency in kHz of this host's TSC as KVM gives it to guests. Asked of an empty machine, without the
/// probe: below a millisecond the first time.
///
/// # Errors
/// `/dev/kvm` cannot be used.
pub fn host_tsc_khz() -> Result<u32, Error> {
    static KHZ: OnceLock<u32> = OnceLock::new();
    if let Some(khz) = KHZ.get() {
        return Ok(*khz);
    }
    let vm = open()?.create_vm().map_err(host("KVM_CREATE_VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(host("KVM_CREATE_VCPU"))?;
    let khz = vcpu.get_tsc_khz().map_err(host("KVM_GET_TSC_KHZ"))?;
    Ok(*KHZ.get_or_init(|| khz))
}

/// Whether this processor has VMX or SVM (SDM vol. 2, CPUID leaf 1 ECX bit 5; APM vol. 3, leaf
/// 0x80000001 ECX bit 2), also when the host is a virtual machine itself.
pub(crate) fn has_virtualisation() -> bool {
    let (basic, extended) = (std::arch::x86_64::__cpuid(1), std::arch::x86_64::__cpuid(0x8000_0001));
    basic.ecx & 1 << 5 != 0 || extended.ecx & 1 << 2 != 0
}

/// Whether KVM runs our machines well here: really virtualised and not interpreted, the CPU template
/// kept, the TSC restorable. Where the processor can virtualise it runs guest code the first time, for
/// a few milliseconds; where not, a `/dev/kvm` is a software one, and that is known without.
///
/// # Errors
/// Why not, for a person.
pub fn works_well() -> Result<(), String> {
    drop(open().map_err(|e| e.to_string())?);
    if !has_virtualisation() {
        return Err(
            "this processor offers no hardware virtualisation, so this host's KVM is a software one".into()
        );
    }
    let found = found().map_err(|e| e.to_string())?;
    if let Some(why) = &found.refusal {
        return Err(format!("this host's KVM does not keep the guest's CPU as defined: {why}"));
    }
    if found.supervisor_mips < SLOW_MIPS {
        return Err(format!(
            "this host's KVM runs kernel code at {:.1} million instructions a second: it interprets it",
            found.supervisor_mips
        ));
    }
    if !found.abilities.time_travels {
        return Err("this host's KVM cannot set the guest's TSC, so saved time does not come back".into());
    }
    Ok(())
}

/// What is missing for any machine at all.
pub(crate) fn lacking(kvm: &Kvm) -> Result<(), Error> {
    let version = kvm.get_api_version();
    let missing: Vec<_> =
        NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, n)| *n).collect();
    let what = if version != API_VERSION {
        format!("/dev/kvm speaks version {version} of its interface instead of {API_VERSION}")
    } else if !missing.is_empty() {
        format!("this kernel's KVM lacks: {}", missing.join(", "))
    } else {
        return Ok(());
    };
    Err(Error::Unsupported { engine: ENGINE, what, advice: "use `--engine soft`" })
}

/// How a tiny program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Done,
    Fault(u8),
    /// KVM could not run it.
    Broken,
}

/// One vCPU for the tiny programs.
struct Bench {
    memory: guestmem::GuestMemory,
    partition: KvmPartition,
    vcpu: KvmVcpu,
}

impl Bench {
    fn new() -> Result<Self, Error> {
        let memory = tiny::memory(&[])?;
        // The frequency is not known yet and does not matter here.
        let config = PartitionConfig {
            memory: memory.clone(),
            vcpus: 1,
            cpuid: portable(1, 1_000_000),
            tsc_khz: None,
            force_template: true,
            repeatable: false,
        };
        let abilities =
            Abilities { host_khz: 1_000_000, time_travels: false, dirty_log: true, system_call: true };
        let partition = KvmPartition::build(config, abilities)?;
        let vcpu = partition.vcpu(0)?;
        Ok(Self { memory, partition, vcpu })
    }

    /// Runs `program` at `cpl` until it ends.
    fn run(&mut self, cpl: u8, program: &[u8]) -> Result<Ending, Error> {
        self.load(cpl, program)?;
        self.go()
    }

    fn load(&mut self, cpl: u8, program: &[u8]) -> Result<(), Error> {
        let code = [program, &DONE].concat();
        self.memory
            .write(tiny::CODE, &code)
            .map_err(|e| Error::BadState { engine: ENGINE, what: e.to_string() })?;
        self.vcpu.restore(&tiny::state(cpl))
    }

    fn go(&mut self) -> Result<Ending, Error> {
        Ok(match self.vcpu.run()? {
            Exit::MmioWrite { gpa: DEVICE, .. } => Ending::Done,
            Exit::PioWrite { port: FAULT_PORT, data: [vector] } => Ending::Fault(*vector),
            _ => Ending::Broken,
        })
    }

    /// A bit for each page that was written since the last call.
    fn written(&self) -> Result<Vec<u64>, Error> {
        let mut words = vec![0; self.memory.page_count().div_ceil(64)];
        self.partition.take_written(&mut words)?;
        Ok(words)
    }

    fn gpr(&mut self, number: usize) -> Result<u64, Error> {
        Ok(self.vcpu.save()?.gpr[number])
    }
}

fn probe() -> Result<Found, Error> {
    let kvm = open()?;
    lacking(&kvm)?;
    let mut bench = Bench::new()?;
    let _watchdog = Watchdog::new(bench.vcpu.kicker(), PATIENCE);
    let host_khz = host_tsc_khz()?;
    let supervisor_mips = speed(&mut bench, ROUNDS)?;
    let cpuid_governed = cpuid_at_user(&mut bench)?;
    let kernel_cpuid_governed = cpuid_in_kernel(&mut bench)?;
    let system_call = system_call(&mut bench)?;
    // XGETBV, then VXORPS: both are #UD without CR4.OSXSAVE, which the template does not offer.
    let xgetbv_governed = is_undefined(&mut bench, &[0x31, 0xc9, 0x0f, 0x01, 0xd0])?;
    let avx_governed = is_undefined(&mut bench, &[0xc5, 0xfc, 0x57, 0xc0])?;
    let tsc_reads = tsc(&mut bench)?;
    let leaks = [
        (kernel_cpuid_governed, "CPUID in the guest's kernel offers features that were not asked for"),
        (system_call, "SYSCALL does not enter the guest's kernel"),
        (cpuid_governed, "CPUID at user level gives the host's values"),
        (xgetbv_governed, "XGETBV works at user level"),
        (avx_governed, "AVX instructions work at user level"),
    ];
    let leaks: Vec<_> = leaks.iter().filter(|(good, _)| !good).map(|(_, what)| *what).collect();
    Ok(Found {
        abilities: Abilities {
            host_khz,
            time_travels: tsc_reads == [true; 3],
            dirty_log: dirty_log(&mut bench)?,
            system_call,
        },
        refusal: (!leaks.is_empty()).then(|| leaks.join(", ")),
        supervisor_mips,
        cpuid_governed,
        kernel_cpuid_governed,
        xgetbv_governed,
        avx_governed,
        tsc_reads,
        scaling: kvm.check_extension(Cap::TscControl),
    })
}

/// Million instructions a second in ring 0.
fn speed(bench: &mut Bench, rounds: u32) -> Result<f64, Error> {
    // mov ecx, rounds; 1: dec ecx; jnz 1b
    let mut code = vec![0xb9];
    code.extend(rounds.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]);
    bench.load(0, &code)?;
    let start = Instant::now();
    let ending = bench.go()?;
    let took = start.elapsed();
    let instructions = 2.0 * f64::from(rounds);
    Ok(if ending == Ending::Done { instructions / took.as_secs_f64().max(1e-9) / 1e6 } else { 0.0 })
}

/// The speed over about 10 ms, for a figure worth printing.
pub(crate) fn steady_speed() -> Result<f64, Error> {
    let mut bench = Bench::new()?;
    let first = speed(&mut bench, ROUNDS)?;
    let rounds = (first.clamp(0.2, 4_000.0) * 5_000.0) as u32;
    speed(&mut bench, rounds)
}

/// Whether CPUID in ring 3 gives the template's signature.
fn cpuid_at_user(bench: &mut Bench) -> Result<bool, Error> {
    // mov eax, 1; xor ecx, ecx; cpuid
    let ending = bench.run(3, &[0xb8, 1, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2])?;
    let wanted = u64::from(lookup(&portable(1, 1_000_000), 1, 0).eax);
    Ok(ending == Ending::Done && bench.gpr(gpr::RAX)? == wanted)
}

/// Whether CPUID in ring 0 offers no other features of leaf 7 (SMEP, SMAP, FSGSBASE) than the template.
fn cpuid_in_kernel(bench: &mut Bench) -> Result<bool, Error> {
    // mov eax, 7; xor ecx, ecx; cpuid
    let ending = bench.run(0, &[0xb8, 7, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2])?;
    let wanted = u64::from(lookup(&portable(1, 1_000_000), 7, 0).ebx);
    Ok(ending == Ending::Done && bench.gpr(gpr::RBX)? == wanted)
}

/// Whether SYSCALL in ring 3 goes on in ring 0, where its handler may use OUT. A software KVM was seen to
/// go on at LSTAR in ring 3.
fn system_call(bench: &mut Bench) -> Result<bool, Error> {
    const HANDLER: u8 = 0x77;
    bench.load(3, &[0x0f, 0x05])?;
    let mut state = tiny::state(3);
    // CS 8 and SS 0x10 in the kernel, CS 0x2b and SS 0x23 after SYSRET.
    state.msrs.star = 0x001b_0008_0000_0000;
    state.msrs.lstar = tiny::handler(HANDLER);
    bench.vcpu.restore(&state)?;
    Ok(bench.go()? == Ending::Fault(HANDLER))
}

fn is_undefined(bench: &mut Bench, code: &[u8]) -> Result<bool, Error> {
    Ok(bench.run(3, code)? == Ending::Fault(INVALID_OPCODE))
}

/// Sets the TSC and reads it: through KVM, in ring 0, in ring 3.
fn tsc(bench: &mut Bench) -> Result<[bool; 3], Error> {
    // A quarter of the mark is ten years of ticks.
    let near = |value: u64| value.wrapping_sub(TSC_MARK) < TSC_MARK / 4;
    let refused = abi::set_msrs(&bench.vcpu.fd, &[(msr::IA32_TSC, TSC_MARK)])?;
    let [own] = abi::get_msrs(&bench.vcpu.fd, [msr::IA32_TSC])?;
    let mut out = [refused.is_empty() && own.is_some_and(near), false, false];
    for (slot, cpl) in [(1, 0), (2, 3)] {
        // rdtsc; shl rdx, 32; or rax, rdx
        let code = [0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0];
        let ending = bench.run(cpl, &code)?;
        out[slot] = ending == Ending::Done && near(bench.gpr(gpr::RAX)?);
    }
    Ok(out)
}

/// Whether the log tells of a page that the guest wrote.
fn dirty_log(bench: &mut Bench) -> Result<bool, Error> {
    bench.written()?;
    // mov [DATA], eax
    let mut code = vec![0x89, 0x04, 0x25];
    code.extend((tiny::DATA as u32).to_le_bytes());
    let ending = bench.run(3, &code)?;
    let written = bench.written()?;
    let page = bench.memory.page_index(tiny::DATA);
    let seen =
        page.is_some_and(|page| written.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0));
    Ok(ending == Ending::Done && seen)
}
