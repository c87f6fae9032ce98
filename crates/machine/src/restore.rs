//! Restoring: the walk of `save.rs` backwards. Nothing is read but the small sections; memory is
//! mapped.

use artifact::{MachineFile, SectionKind};
use bus::lock;
use snapshot::{MachineState, PartState};

use crate::Error;
use crate::builder::{self, Network};
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

/// The frozen machine's device decides whether there is one; whether it has a carrier is the caller's.
fn network(config: Option<netstack::Config>, parts: &[PartState]) -> Result<Network, Error> {
    match (parts.iter().any(|part| part.name == builder::NET), config) {
        (true, Some(config)) => Ok(Network::Up(config)),
        (true, None) => Ok(Network::Down),
        (false, None) => Ok(Network::Absent),
        (false, Some(_)) => Err(Error::NoNetworkDevice),
    }
}

impl Machine {
    /// Brings the frozen machine in `file` back, paused. `parent`: the file that it builds on.
    /// `config.scratch` holds the disk already, with the changes of both.
    ///
    /// # Errors
    /// The files'; a state that does not fit this machine, this version or this host.
    pub fn restore(
        mut config: MachineConfig,
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
        let network = network(config.net.take(), &parts)?;
        let mut machine = builder::build(config, memory, cpu, network, console)?;
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
