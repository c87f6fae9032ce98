//! Restoring: the walk of `save.rs` backwards. Nothing is read but the small sections; memory is
//! mapped.

use artifact::{MachineFile, SectionKind};
use bus::lock;
use snapshot::{MachineState, PartState};

use crate::Error;
use crate::builder::{self, Outfit};
use crate::machine::{Machine, MachineConfig, Sink};

/// Most bytes of CPU or device state.
const STATE_CAP: u64 = 64 << 20;

/// The CPU state of a frozen machine.
pub(crate) fn read_state(file: &MachineFile) -> Result<MachineState, Error> {
    let section = file.require(SectionKind::CpuState, 0)?;
    Ok(MachineState::decode(section.version, &file.read_section(section, STATE_CAP)?)?)
}

pub(crate) fn read_parts(file: &MachineFile) -> Result<Vec<PartState>, Error> {
    let section = file.require(SectionKind::DeviceState, 0)?;
    Ok(PartState::decode_all(section.version, &file.read_section(section, STATE_CAP)?)?)
}

/// The frozen machine's devices: they decide whether there is a network or a volume, whatever is wanted now.
fn outfit(config: &MachineConfig, parts: &[PartState]) -> Result<Outfit, Error> {
    let outfit = Outfit::of_saved(parts);
    if config.net.is_some() && !outfit.network {
        return Err(Error::NoNetworkDevice);
    }
    if !config.volumes.is_empty() && !outfit.volumes {
        return Err(Error::NoVolumeSlots);
    }
    if !config.folders.is_empty() && !outfit.folders {
        return Err(Error::NoFolderDevice);
    }
    Ok(outfit)
}

impl Machine {
    /// Brings the frozen machine in `file` back, paused. `parent`: the file that it builds on.
    /// `config.scratch` holds the disk already, with the changes of both.
    ///
    /// # Errors
    /// The files'; a state that does not fit this machine, this version or this host.
    pub fn restore(
        config: MachineConfig,
        file: &MachineFile,
        parent: Option<&MachineFile>,
        console: Sink,
    ) -> Result<Self, Error> {
        let state = read_state(file)?;
        if state.vcpus.len() != config.vcpus as usize {
            let what = format!("{} vCPU states for {} vCPUs", state.vcpus.len(), config.vcpus);
            return Err(Error::Mismatch(what));
        }
        let memory = builder::memory(&config)?;
        let origin = snapshot::map_memory(file, parent, &memory)?;
        let cpu = builder::Cpu {
            template_version: state.template_version,
            cpuid: state.cpuid,
            tsc_khz: Some(state.tsc_khz),
        };
        let parts = read_parts(file)?;
        let outfit = outfit(&config, &parts)?;
        let mut machine = builder::build(config, memory, cpu, outfit, console)?;
        machine.origin = origin;
        machine.disk_below = usize::from(parent.unwrap_or(file).section(SectionKind::DiskDeltaMap).is_some());
        machine.partition.set_clock(&state.clock)?;
        for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
            lock(vcpu).restore(state)?;
        }
        machine.parts.restore(&parts)?;
        machine.parts.resume();
        Ok(machine)
    }
}
