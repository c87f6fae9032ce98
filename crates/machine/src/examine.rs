//! Can this host run a machine file, and if not, what is missing: `smolvm doctor FILE`.

use arch::x86_64::cpuid::{PORTABLE_VERSION, portable};
use arch::x86_64::features;
use artifact::{MachineFile, SectionKind};
use hv::{CpuidLeaf, EngineKind};
use serde::Serialize;
use snapshot::{MachineState, PartState, STATE_VERSION};

use crate::builder::Outfit;
use crate::engine::{self, EngineChoice};
use crate::restore::{read_parts, read_state};
use crate::{EngineReport, Error};

/// What a machine file holds of a run.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Nothing: it boots.
    Base,
    Frozen(Box<Examined>),
    /// A frozen machine in versions that this smolvm does not read: each, by its name.
    Newer(Vec<String>),
}

/// What a frozen machine is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Examined {
    /// Version of the CPU template that its guest saw.
    pub template_version: u32,
    /// What its CPU offers, as Linux names it.
    pub features: Vec<String>,
    pub vcpus: usize,
    pub tsc_khz: u32,
    /// The engine that ran it last.
    pub frozen_on: EngineKind,
    /// Nanoseconds since the Unix epoch.
    pub frozen_realtime_ns: u64,
    pub devices: Vec<String>,
    /// Version of the devices' saved states, and of the vCPUs'.
    pub state_version: u32,
    #[serde(skip)]
    cpuid: Vec<CpuidLeaf>,
}

/// Whether and how this host runs it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub engine: EngineReport,
    /// Each thing that is missing, by name; none: it runs.
    pub missing: Vec<String>,
}

/// Reads the frozen state of a file.
///
/// # Errors
/// The file's.
pub fn examine(file: &MachineFile) -> Result<Seen, Error> {
    if file.section(SectionKind::CpuState).is_none() {
        return Ok(Seen::Base);
    }
    let kinds = [(SectionKind::CpuState, "CPU state"), (SectionKind::DeviceState, "device state")];
    let versions = kinds.iter().filter_map(|(kind, name)| Some((file.section(*kind)?.version, *name)));
    let newer: Vec<String> = versions
        .filter(|(version, _)| *version != STATE_VERSION)
        .map(|(version, name)| format!("{name} version {version} (this smolvm reads {STATE_VERSION})"))
        .collect();
    if !newer.is_empty() {
        return Ok(Seen::Newer(newer));
    }
    let devices = read_parts(file)?.into_iter().map(|part| part.name).collect();
    Ok(Seen::Frozen(Box::new(Examined::new(read_state(file)?, devices))))
}

impl Seen {
    /// What is known of it.
    pub fn examined(&self) -> Option<&Examined> {
        if let Self::Frozen(examined) = self { Some(examined) } else { None }
    }

    fn missing(&self) -> Vec<String> {
        match self {
            Self::Base => Vec::new(),
            Self::Frozen(examined) => examined.missing(),
            Self::Newer(newer) => newer.clone(),
        }
    }
}

impl Examined {
    fn new(state: MachineState, devices: Vec<String>) -> Self {
        Self {
            template_version: state.template_version,
            features: features::offered(&state.cpuid),
            vcpus: state.vcpus.len(),
            tsc_khz: state.tsc_khz,
            frozen_on: state.engine,
            frozen_realtime_ns: state.frozen_realtime_ns,
            devices,
            state_version: STATE_VERSION,
            cpuid: state.cpuid,
        }
    }

    fn missing(&self) -> Vec<String> {
        let cpu = missing_of_cpu(self.template_version, &self.cpuid, self.vcpus, self.tsc_khz);
        cpu.into_iter().chain(missing_devices(self.devices.iter().map(String::as_str))).collect()
    }
}

/// What a frozen machine's CPU has and no engine of this smolvm would go on with.
fn missing_of_cpu(version: u32, cpuid: &[CpuidLeaf], vcpus: usize, tsc_khz: u32) -> Vec<String> {
    let mut missing = Vec::new();
    if version > PORTABLE_VERSION {
        missing.push(format!("CPU template version {version} (this smolvm has up to {PORTABLE_VERSION})"));
    }
    let ours = portable(vcpus.try_into().unwrap_or(1), tsc_khz);
    let lacking = features::missing(cpuid, &ours);
    missing.extend(lacking.into_iter().map(|name| format!("CPU feature {name}")));
    missing
}

fn missing_devices<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    let unknown = names.filter(|name| Outfit::known().all(|known| known != *name));
    unknown.map(|name| format!("device `{}`", name.escape_debug()))
}

/// Refuses a frozen machine that this smolvm would go on with wrongly, by the name of each thing that is missing.
pub(crate) fn require(state: &MachineState, parts: &[PartState]) -> Result<(), Error> {
    let mut missing = missing_of_cpu(state.template_version, &state.cpuid, state.vcpus.len(), state.tsc_khz);
    missing.extend(missing_devices(parts.iter().map(|part| part.name.as_str())));
    if missing.is_empty() { Ok(()) } else { Err(Error::Missing(missing.join(", "))) }
}

/// Decides for a machine with `memory` bytes, frozen or to be booted.
pub fn verdict(choice: EngineChoice, seen: &Seen, memory: u64) -> Verdict {
    let mut chosen = engine::choose(choice);
    let mut missing = seen.missing();
    if chosen.engine == EngineKind::Kvm {
        let obstacles = kvm_obstacles(choice, seen.examined());
        if choice == EngineChoice::Auto && !obstacles.is_empty() {
            chosen = EngineReport { engine: EngineKind::Soft, why: obstacles.join("; ") };
        } else {
            missing.extend(obstacles);
        }
    }
    let have = host::memory_bytes();
    if memory > have {
        missing.push(format!("{} MiB of memory (this host has {} MiB)", memory >> 20, have >> 20));
    }
    Verdict { engine: chosen, missing }
}

/// Why KVM here would refuse it.
fn kvm_obstacles(choice: EngineChoice, state: Option<&Examined>) -> Vec<String> {
    let report = hv_kvm::report();
    let mut obstacles = Vec::new();
    if choice == EngineChoice::Kvm {
        let right =
            |fact: &hv_kvm::Fact| format!("a KVM whose {} is right (here: {})", fact.name, fact.value);
        obstacles.extend(report.refusals().map(right));
        if obstacles.is_empty() && report.supervisor_mips.is_none() {
            obstacles.push(format!("a KVM that works: {}", report.reason));
        }
    }
    if let (Some(state), Some(khz)) = (state, report.tsc_khz)
        && !hv_kvm::same_rate(state.tsc_khz, khz)
        && !report.scales_tsc()
    {
        obstacles
            .push(format!("TSC scaling (the machine counts at {} kHz, this host at {khz})", state.tsc_khz));
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv::ClockState;

    fn frozen(version: u32, change: impl Fn(&mut CpuidLeaf), devices: &[&str]) -> Seen {
        let mut cpuid = portable(1, 1_000_000);
        cpuid.iter_mut().for_each(change);
        let state = MachineState {
            template_version: version,
            cpuid,
            tsc_khz: 1_000_000,
            clock: ClockState::default(),
            frozen_realtime_ns: 0,
            engine: EngineKind::Soft,
            vcpus: Vec::new(),
        };
        Seen::Frozen(Box::new(Examined::new(state, devices.iter().map(|d| (*d).to_owned()).collect())))
    }

    #[test]
    fn what_this_smolvm_freezes_it_runs() {
        let verdict = verdict(
            EngineChoice::Soft,
            &frozen(1, |_| {}, &["blk0", "vsock", "net", "volume3", "balloon"]),
            1 << 20,
        );
        assert_eq!((verdict.engine.engine, verdict.missing), (EngineKind::Soft, Vec::<String>::new()));
    }

    #[test]
    fn each_missing_thing_is_named() {
        let avx = |leaf: &mut CpuidLeaf| {
            if leaf.leaf == 1 {
                leaf.ecx |= 1 << 28;
            }
        };
        let seen = frozen(PORTABLE_VERSION + 1, avx, &["blk0", "gpu"]);
        let missing = verdict(EngineChoice::Soft, &seen, u64::MAX).missing.join("\n");
        for name in ["CPU template version 2", "CPU feature avx", "device `gpu`", "MiB of memory"] {
            assert!(missing.contains(name), "{name}: {missing}");
        }
    }
}
