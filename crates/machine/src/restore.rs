//! Restoring: the walk of `save.rs` backwards. Nothing is read but the small sections; memory is
//! mapped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use artifact::{MachineFile, SectionKind};
use bus::lock;
use guestmem::GuestMemory;
use hv::{Learnt, Writes};
use snapshot::{HotBlocks, MachineState, Origin, PartState, WorkingSet};

use crate::Error;
use crate::builder::{self, Outfit};
use crate::error::host;
use crate::examine;
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

/// Has the host read what a resume of these files, from which `memory` comes, touches first, where it is not in its
/// memory. The receiver: of the end of what the guest is not to run without, where there is any.
fn read_ahead<'a>(
    files: impl Iterator<Item = &'a MachineFile>,
    memory: &GuestMemory,
) -> Result<Option<Receiver<()>>, Error> {
    let mut cold = Vec::new();
    for file in files {
        if let Some(set) = WorkingSet::read(file)?.filter(|set| set.is_cold(file.file())) {
            cold.push((set, file.file().try_clone().map_err(host("reading the machine file ahead"))?));
        }
    }
    if cold.is_empty() {
        return Ok(None);
    }
    memory.expect_reader();
    let (first, is_there) = channel();
    let its = memory.clone();
    let reader = move || {
        cold.iter().for_each(|(set, file)| set.read_first(file));
        // Nobody waits any more where the resume failed.
        let _ = first.send(());
        cold.iter().for_each(|(set, file)| set.read_rest(file));
        its.reader_is_done();
    };
    if std::thread::Builder::new().name("read-ahead".into()).spawn(reader).is_err() {
        // A host without another thread reads what is touched.
        memory.reader_is_done();
    }
    Ok(Some(is_there))
}

/// A frozen machine as far as all machines that are brought back from it are equal: to be made once where many are
/// split off as processes of their own.
pub struct Template {
    state: MachineState,
    parts: Vec<PartState>,
    memory: GuestMemory,
    origin: Origin,
    /// Where it came from: the file, and the one that it builds on.
    files: [Option<Arc<MachineFile>>; 2],
    /// Layers of the disk that are the file's, or its parent's.
    disk_below: usize,
    /// Says what ran often; to be read when that is wanted.
    foretelling: Option<Arc<MachineFile>>,
    /// By vCPU.
    learnt: Vec<Box<dyn Learnt>>,
}

impl Template {
    /// Reads the frozen machine in `file`, of so much memory. `parent`: the file that it builds on.
    ///
    /// # Errors
    /// The files'; the host has no address space.
    pub fn read(file: &MachineFile, parent: Option<&MachineFile>, memory: u64) -> Result<Self, Error> {
        let state = read_state(file)?;
        let memory = builder::memory(memory)?;
        let origin = snapshot::map_memory(file, parent, &memory)?;
        let parts = read_parts(file)?;
        let disk_below = usize::from(parent.unwrap_or(file).section(SectionKind::DiskDeltaMap).is_some());
        let [file, parent] =
            [Some(file), parent].map(|file| file.map(|file| file.again().map(Arc::new)).transpose());
        let (file, parent) = (file?, parent?);
        let foretelling = file.clone().filter(|file| file.section(SectionKind::HotBlocks).is_some());
        let (files, learnt) = ([file, parent], Vec::new());
        Ok(Self { state, parts, memory, origin, files, disk_below, foretelling, learnt })
    }

    /// From now on what is touched of the memory is noted, for [`Machine::touched`].
    ///
    /// # Errors
    /// The host's.
    pub fn note_touches(&self) -> Result<(), Error> {
        self.memory.note_touches().map_err(host("noting what is touched of the memory"))
    }

    /// Whether the machine has a network device: that takes descriptors and a thread of its process, even without a
    /// network.
    pub fn has_network(&self) -> bool {
        Outfit::of_saved(&self.parts).network
    }

    /// Takes what the engine learnt in a machine that was brought back from the same files, and maps what that touched.
    pub fn learn(&mut self, from: &Machine) {
        self.memory.touch_as(&from.memory);
        self.learnt = from.vcpus.iter().filter_map(|vcpu| lock(vcpu).take_learnt()).collect();
        self.learnt.iter_mut().for_each(|learnt| learnt.fit(&self.memory));
    }
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
        let template = Template::read(file, parent, config.memory)?;
        // After what was waited for: that would come behind it.
        let first = read_ahead([parent, Some(file)].into_iter().flatten(), &template.memory)?;
        let machine = Self::restore_from(config, template, console)?;
        if let Some(first) = first {
            // It cannot come where there was no thread.
            let _ = first.recv();
        }
        Ok(machine)
    }

    /// The same from a template, which is used up.
    ///
    /// # Errors
    /// As [`Machine::restore`].
    pub fn restore_from(config: MachineConfig, from: Template, console: Sink) -> Result<Self, Error> {
        let Template { state, parts, memory, origin, files, disk_below, foretelling, learnt } = from;
        if state.vcpus.len() != config.vcpus as usize {
            let what = format!("{} vCPU states for {} vCPUs", state.vcpus.len(), config.vcpus);
            return Err(Error::Mismatch(what));
        }
        examine::require(&state, &parts)?;
        let cpu = builder::Cpu {
            template_version: state.template_version,
            cpuid: state.cpuid,
            tsc_khz: Some(state.tsc_khz),
        };
        let outfit = outfit(&config, &parts)?;
        let mut machine = builder::build(config, memory, cpu, outfit, console)?;
        (machine.origin, machine.disk_below) = (origin, disk_below);
        if machine.partition.writes() != Writes::Gated {
            machine.files = files;
        }
        machine.partition.set_clock(&state.clock)?;
        for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
            lock(vcpu).restore(state)?;
        }
        for (vcpu, learnt) in machine.vcpus.iter().zip(learnt) {
            lock(vcpu).learn(learnt);
        }
        if let Some(file) = foretelling {
            let (from, memory) = (Arc::clone(&file), machine.memory.clone());
            machine.partition.foretell(Box::new(move || HotBlocks::read(&from, &memory).into_blocks()));
            machine.foretelling = Some(file);
        }
        machine.parts.restore(&parts)?;
        machine.parts.resume();
        Ok(machine)
    }
}
