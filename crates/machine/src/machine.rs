//! [`Machine`]: what the crates above hold.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use artifact::MachineFile;
use bus::lock;
use disk::{Disk, Overlay};
use guestmem::GuestMemory;
use hv::{CodeSource, CpuidLeaf, EngineKind, Partition, Vcpu};
use snapshot::Origin;

use crate::Error;
use crate::builder::{self, Devices, Outfit};
use crate::doorbells::{Doorbells, Ringing};
use crate::engine::{self, EngineChoice};
use crate::error::host;
use crate::lifecycle::Outcome;
use crate::parts::Parts;
use crate::vcpu_thread::{self, World};

/// The kernel command line that every machine gets (guest/kernel/README.md has the reasons).
pub const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check noreplace-smp \
     initcall_blacklist=slab_late_init rcupdate.rcu_expedited=1 swiotlb=noforce \
     sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=60 \
     dummy.numdummies=0";

/// How long a guest may take to answer a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Takes what the guest writes to its serial console.
pub type Sink = Box<dyn Fn(&[u8]) + Send + Sync>;

/// What a machine is made of.
pub struct MachineConfig {
    pub engine: EngineChoice,
    pub force_template: bool,
    /// 1 to 16.
    pub vcpus: u32,
    /// Bytes.
    pub memory: u64,
    /// TSC frequency of a machine that boots, in kHz; the engine's own when absent. One that is restored keeps its own.
    pub tsc_khz: Option<u32>,
    /// The read-only root image (/dev/vda).
    pub root: Arc<dyn Disk>,
    /// The writable disk (/dev/vdb).
    pub scratch: Arc<Overlay>,
    /// The network that it is on, if any.
    pub net: Option<netstack::Config>,
    /// Runs are the same to the bit: from the same state, with what was sent to the guest before it runs
    /// ([`Machine::begin_connect`]). Then it can be asked nothing, and ends when the guest has closed those streams.
    pub repeatable: bool,
    /// Disks outside the machine file, at most [`crate::VOLUME_SLOTS`]: /dev/vdc and on.
    pub volumes: Vec<Arc<dyn Disk>>,
    /// Folders of the host that it may use.
    pub folders: Vec<hostfs::Folder>,
}

impl MachineConfig {
    /// A machine with these disks and nothing else.
    pub fn new(
        engine: EngineChoice,
        vcpus: u32,
        memory: u64,
        root: Arc<dyn Disk>,
        scratch: Arc<Overlay>,
    ) -> Self {
        Self {
            engine,
            force_template: false,
            vcpus,
            memory,
            tsc_khz: None,
            root,
            scratch,
            net: None,
            repeatable: false,
            volumes: Vec::new(),
            folders: Vec::new(),
        }
    }
}

/// A machine: paused, running or ended.
pub struct Machine {
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) memory: GuestMemory,
    pub(crate) world: Arc<World>,
    pub(crate) parts: Parts,
    pub(crate) vcpus: Vec<Arc<Mutex<Box<dyn Vcpu>>>>,
    pub(crate) devices: Devices,
    pub(crate) scratch: Arc<Overlay>,
    pub(crate) cpuid: Vec<CpuidLeaf>,
    pub(crate) template_version: u32,
    /// Where its memory was mapped from; nothing for a booted machine.
    pub(crate) origin: Origin,
    /// Those files, and the parent of the first, where the engine makes nobody pass guestmem's gate.
    pub(crate) files: [Option<Arc<MachineFile>>; 2],
    /// How many of the disk's layers are those of the file that it was restored from, or of that
    /// file's parent where it has one.
    pub(crate) disk_below: usize,
    /// The file that says what ran often before the machine was brought back, if it does.
    pub(crate) foretelling: Option<Arc<MachineFile>>,
    pub(crate) doorbells: Arc<Doorbells>,
    ringing: Mutex<Option<Ringing>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the builder puts together.
pub(crate) struct Assembly {
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) memory: GuestMemory,
    pub(crate) world: Arc<World>,
    pub(crate) parts: Parts,
    pub(crate) doorbells: Arc<Doorbells>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) devices: Devices,
    pub(crate) scratch: Arc<Overlay>,
    pub(crate) cpu: builder::Cpu,
}

/// Tells the agent how to set the network device up (`guest/agent/src/network.rs`).
fn network_words() -> String {
    use netstack::{GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6, PREFIX_V4, PREFIX_V6};
    format!(" smolvm.net={GUEST_V4}/{PREFIX_V4},{GATEWAY_V4},{GUEST_V6}/{PREFIX_V6},{GATEWAY_V6}")
}

impl Machine {
    /// Loads a kernel into a fresh machine, paused before its first instruction.
    ///
    /// # Errors
    /// What does not fit, what the engine or the host refuses.
    pub fn boot(
        config: MachineConfig,
        kernel: &[u8],
        initramfs: &[u8],
        command_line: &str,
        console: Sink,
    ) -> Result<Self, Error> {
        let memory = builder::memory(config.memory)?;
        let mut rng_seed = [0; 32];
        if !config.repeatable {
            ::host::fill_random(&mut rng_seed).map_err(host("asking the host for random numbers"))?;
        }
        let outfit = Outfit { network: config.net.is_some(), volumes: true, folders: true, balloon: true };
        let command_line =
            &format!("{command_line}{}", if outfit.network { network_words() } else { String::new() });
        let acpi = builder::acpi(config.vcpus, outfit);
        let boot = boot::BootConfig { kernel, initramfs, command_line, rng_seed, acpi };
        let loaded = boot::load(&memory, &boot)?;
        let tsc_khz = match config.tsc_khz {
            _ if config.repeatable => engine::SOFT_TSC_KHZ,
            Some(khz) => khz,
            None => engine::natural_tsc_khz(config.engine)?,
        };
        let cpu = builder::Cpu::template(config.vcpus, tsc_khz);
        let machine = builder::build(config, memory, cpu, outfit, console)?;
        if let Some(first) = machine.vcpus.first() {
            lock(first).restore(&loaded.vcpu)?;
        }
        Ok(machine)
    }

    pub(crate) fn assemble(parts: Assembly) -> Self {
        let vcpus: Vec<_> = parts.vcpus.into_iter().map(|v| Arc::new(Mutex::new(v))).collect();
        for vcpu in &vcpus {
            parts.world.control.add_vcpu(lock(vcpu).kicker());
        }
        Self {
            partition: parts.partition,
            memory: parts.memory,
            world: parts.world,
            parts: parts.parts,
            vcpus,
            devices: parts.devices,
            scratch: parts.scratch,
            cpuid: parts.cpu.cpuid,
            template_version: parts.cpu.template_version,
            origin: Origin::default(),
            files: [None, None],
            disk_below: 0,
            foretelling: None,
            doorbells: parts.doorbells,
            ringing: Mutex::default(),
            threads: Mutex::default(),
        }
    }

    /// Starts the vCPUs' threads, which wait for [`Machine::let_run`]; does nothing once they are there.
    pub fn make_ready(&self) {
        let mut threads = lock(&self.threads);
        if threads.is_empty() {
            for (id, vcpu) in self.vcpus.iter().enumerate() {
                let (world, vcpu) = (self.world.clone(), vcpu.clone());
                let body = move || vcpu_thread::run(&world, id, &vcpu);
                match thread::Builder::new().name(format!("vcpu{id}")).spawn(body) {
                    Ok(handle) => threads.push(handle),
                    Err(e) => {
                        return self.world.control.end(Outcome::Failed(format!("starting a thread: {e}")));
                    }
                }
            }
        }
        if let Err(e) = self.answer_doorbells() {
            let outcome = Outcome::Failed(format!("waiting for the guest's notifications: {e}"));
            self.world.control.end(outcome);
        }
    }

    /// Has each vCPU call `hook` when it has executed its first instructions, where the engine can stop there. Before it
    /// runs.
    pub fn after_first(&self, hook: impl Fn() + Clone + Send + 'static) {
        for vcpu in &self.vcpus {
            lock(vcpu).after_first(Box::new(hook.clone()));
        }
    }

    /// Lets the vCPUs run; what the guest says to its sockets waits until they are served ([`Machine::serve`]).
    pub fn let_run(&self) {
        self.make_ready();
        self.world.control.resume();
    }

    /// Serves the guest's sockets.
    pub fn serve(&self) {
        if let Err(e) = self.devices.vsock.start_io() {
            self.world.control.end(Outcome::Failed(format!("serving the guest's sockets: {e}")));
        }
    }

    /// Lets the machine run: the vCPUs first, since nothing of what the guest says is needed at once.
    pub fn resume(&self) {
        self.let_run();
        self.serve();
    }

    fn answer_doorbells(&self) -> io::Result<()> {
        let mut ringing = lock(&self.ringing);
        if ringing.is_none() {
            *ringing = self.doorbells.start()?;
        }
        Ok(())
    }

    /// Stops the vCPUs at instruction boundaries.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn pause(&self) -> Result<(), Error> {
        if self.world.control.pause() {
            return Ok(());
        }
        Err(Error::Ended(self.outcome().map_or_else(String::new, |o| o.to_string())))
    }

    /// Ends the machine now.
    pub fn end(&self) {
        self.world.control.end(Outcome::Stopped);
    }

    /// Waits until the machine ends, at most `limit`.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Outcome> {
        self.world.control.wait(limit)
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.wait(Some(Duration::ZERO))
    }

    /// What the guest will write to its disk is kept in a file in `dir`. Before it runs.
    pub fn keep_disk_in(&self, dir: &Path) {
        self.scratch.keep_in(dir);
    }

    /// CLOCK_MONOTONIC in nanoseconds just before the first guest instruction, once that was.
    pub fn first_run_ns(&self) -> Option<u64> {
        self.world.first_run_ns.get().copied()
    }

    /// Where the guest's memory lies in this process: address and bytes. For measuring what is ours beside it.
    pub fn memory_place(&self) -> (usize, u64) {
        (self.memory.place(), self.memory.size())
    }

    /// The pages of memory that were touched so far, of a machine whose [`crate::Template`] notes them, in the order of
    /// their first touch.
    pub fn touched(&self) -> Vec<u64> {
        self.memory.touched().into_iter().map(|page| page as u64).collect()
    }

    /// Asks now what is known of the code that will run: before processes are split off, which then have it in common.
    pub fn foretold_now(&self) {
        self.partition.foretold_now();
    }

    /// Writes the code that the engine has made of the guest's, of a machine that stands still; whether there is any.
    ///
    /// # Errors
    /// The writer's.
    pub fn keep_code(&self, to: &mut dyn Write) -> io::Result<bool> {
        let mut any = false;
        for vcpu in &self.vcpus {
            any |= lock(vcpu).keep_code(to)?;
        }
        Ok(any)
    }

    /// Says where the code is that [`Machine::keep_code`] wrote when the machine was frozen into the state that it was
    /// brought back from. Before it runs.
    pub fn offer_code(&self, source: CodeSource) {
        self.partition.offer_code(source);
    }

    pub fn engine(&self) -> EngineKind {
        self.partition.engine()
    }

    /// What its network did; `None` without one.
    pub fn network(&self) -> Option<netstack::NetReport> {
        self.devices.net.as_ref().map(netstack::Reporter::report)
    }

    /// The folders that its agent can mount.
    pub fn folders(&self) -> Vec<hostfs::Placed> {
        self.devices.folders.as_ref().map(|device| device.placed()).unwrap_or_default()
    }

    /// Where in the guest it had folders when it was frozen that it has not been given now.
    pub fn missing_folders(&self) -> Vec<String> {
        self.devices.folders.as_ref().map(|device| device.missing()).unwrap_or_default()
    }

    /// Guest instructions executed, where the engine counts them; the machine must be paused or
    /// ended to have an exact value.
    pub fn instructions(&self) -> Option<u64> {
        self.vcpus.iter().map(|v| lock(v).counters().instructions).sum()
    }

    /// A stream to a vsock port of the guest.
    ///
    /// # Errors
    /// Nothing listens there, or the guest does not answer within [`CONNECT_TIMEOUT`].
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.devices.vsock.connect(port, CONNECT_TIMEOUT).map_err(io::Error::other)
    }

    /// A stream to a vsock port of the guest whose answer is not waited for: what is written reaches the guest when
    /// it runs; if it refuses, the stream ends.
    ///
    /// # Errors
    /// The guest's sockets are not up; the host's.
    pub fn begin_connect(&self, port: u32) -> io::Result<UnixStream> {
        self.devices.vsock.begin(port).map_err(io::Error::other)
    }

    /// Asks the guest to make do with `keep` bytes of its memory and give up the rest, which goes back to the host; with
    /// all of its memory: to take all of it back. It does so in its own time, as far as it can, and takes memory back
    /// before it would end a program for want of it.
    ///
    /// # Errors
    /// [`Error::NoBalloon`].
    pub fn balloon(&self, keep: u64) -> Result<(), Error> {
        let balloon = self.devices.balloon.as_ref().ok_or(Error::NoBalloon)?;
        balloon.want(self.memory.size().saturating_sub(keep));
        Ok(())
    }

    /// Bytes that the guest gave up for [`Machine::balloon`], by its word.
    pub fn ballooned(&self) -> u64 {
        self.devices.balloon.as_ref().map_or(0, |balloon| balloon.size().min(self.memory.size()))
    }

    /// Gives the machine a new generation (VMGenID) and tells the guest; returns it.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn new_generation(&self) -> Result<[u8; 16], Error> {
        self.devices.new_generation().map_err(host("giving the machine a new generation"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
        drop(lock(&self.ringing).take());
        self.parts.pause();
    }
}
