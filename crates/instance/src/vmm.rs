//! [`Vmm`]: one machine and its agent, from start to end.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_protocol::{
    AGENT_PORT, Client, ExecSpec, HookSet, MountSpec, Power, Probe, ReadySpec, Reply, Request, RestoreReason,
    RestoredReport, RestoredSpec,
};
use artifact::{Digest, MachineFile, MachineFileWriter};
use disk::Disk;
use host::Rendezvous;
use machine::{EngineChoice, Machine, MachineConfig, Outcome, Watch};
use serde::Serialize;
use snapshot::SnapshotInfo;
use spec::{Hooks, MachineSpec, ReadyCheck};

use crate::error::Error;
use crate::folders::{self, SharedFolder};
use crate::logs::{self, Saving};
use crate::media::{self, Media};
use crate::net::NetOptions;
use crate::volumes::{self, VolumeMount};

mod console;
mod rehearsal;
mod save;
mod service;
mod working_set;
pub use console::Console;
pub use rehearsal::{Frozen, Own};
pub(crate) use save::write_base;
pub use save::{FreezeReport, SnapshotTarget, copy_base};
pub use service::Main;

/// How to run a machine.
#[derive(Clone, Debug)]
pub struct VmmOptions {
    pub engine: EngineChoice,
    /// Go on although this host's KVM does not govern the CPU template.
    pub force_template: bool,
    /// See [`MachineConfig::tsc_khz`].
    pub tsc_khz: Option<u32>,
    /// Directory for the private layer of the disk (same file system as the instance).
    pub scratch_dir: PathBuf,
    /// Where the serial console is kept, bounded.
    pub kernel_log: Option<PathBuf>,
    /// How long the agent may take to answer after a cold boot.
    pub boot_timeout: Duration,
    /// Added to the kernel command line.
    pub command_line: String,
    /// The guest's host name, its own when absent; when it is resumed, a new machine id with it.
    pub hostname: Option<String>,
    /// Called with the host name when a restored machine is whole and has not run yet: waits for the
    /// moment to start.
    pub gate: Option<fn(&str)>,
    /// Where it waits, after its first instructions, until the others have executed theirs.
    pub together: Option<Arc<Rendezvous>>,
    /// Its network.
    pub net: NetOptions,
    /// Run beside its definition's, after them.
    pub hooks: Hooks,
    /// See [`MachineConfig::repeatable`]; of a machine that is resumed, which then gets fixed times and seeds.
    pub repeatable: bool,
    /// Who looks at its vCPUs; of a machine that is resumed and whose runs are repeatable.
    pub watch: Option<Watch>,
    /// Other machines that it reaches by name.
    pub peers: Option<Arc<dyn netstack::Directory>>,
    /// Folders of this host that it may use.
    pub folders: Vec<SharedFolder>,
    /// Volumes, in the order of their slots.
    pub volumes: Vec<VolumeMount>,
}

/// The date that the guest of a repeatable run is told, in ns since 1970: the start of 2026.
const REPEATABLE_DATE_NS: u64 = 1_767_225_600_000_000_000;

/// How long a copy waits for the others' first instructions: what a thousand take of a busy host. It goes on then.
const TOGETHER: Duration = Duration::from_secs(1);

/// What the others wait for: that this copy has begun, or that nobody is left who would say so.
struct Beginning(Arc<Rendezvous>);

impl Beginning {
    fn is_made(&self) {
        self.0.come();
        self.0.wait(TOGETHER);
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        self.0.come();
    }
}

/// A machine that runs in this process.
pub struct Vmm {
    machine: Arc<Machine>,
    spec: MachineSpec,
    console: Arc<Console>,
    options: VmmOptions,
    /// Its base, whose sections a snapshot repeats.
    base: Arc<MachineFile>,
    /// The file of the store that its memory and disk changes lie over, if it was resumed from one.
    parent: Option<Digest>,
    /// When this process began to make it.
    begun: Instant,
    /// One snapshot at a time.
    saving: Mutex<()>,
    /// What its state is called in a file.
    info: Option<SnapshotInfo>,
    /// Held for writing while the guest's tasks stand still for a snapshot.
    standing: RwLock<()>,
    /// What the machine is there for.
    main: Mutex<Main>,
}

/// A machine that was brought back and runs, whose agent has not answered yet.
pub struct Waking {
    client: Client<UnixStream>,
    begun: Instant,
    first_instruction_us: u64,
}

impl Waking {
    /// Waits until the agent has put the guest right: its tasks go on when this returns.
    ///
    /// # Errors
    /// The agent's; the machine ended.
    pub fn finish(mut self) -> Result<(StartReport, RestoredReport), Error> {
        match self.client.reply()? {
            Reply::Restored(report) => {
                let agent_us = us(self.begun);
                Ok((StartReport { first_instruction_us: self.first_instruction_us, agent_us }, report))
            }
            _ => Err(agent_error("Restored")),
        }
    }
}

/// What starting took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StartReport {
    /// Until the first guest instruction, µs, from the call.
    pub first_instruction_us: u64,
    /// Until the agent answered, µs.
    pub agent_us: u64,
}

fn us(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

fn agent_error(what: &str) -> Error {
    Error::Refused(format!(
        "the guest's agent answered {what} with something else; is it of another version?"
    ))
}

impl Vmm {
    fn config(media: &Media, saved: &[&MachineFile], options: &VmmOptions) -> Result<MachineConfig, Error> {
        Ok(MachineConfig {
            engine: options.engine,
            force_template: options.force_template,
            vcpus: media.spec.vcpus,
            memory: media.spec.memory,
            tsc_khz: options.tsc_khz,
            root: media.root()?,
            scratch: media::scratch(saved, &options.scratch_dir)?,
            net: options.net.config(media.spec.net.as_ref(), options.peers.clone())?,
            repeatable: options.repeatable,
            folders: folders::open(&options.folders)?,
            volumes: disks(&options.volumes)?,
        })
    }

    /// Boots the base; with `saved`, on the disk that it holds. Returns when the agent answers.
    ///
    /// # Errors
    /// What stands in the way, with the guest's last output when it was the guest.
    pub fn boot(
        media: &Media,
        saved: Option<&MachineFile>,
        options: VmmOptions,
    ) -> Result<(Self, StartReport), Error> {
        let begun = Instant::now();
        let console = Arc::new(Console::new(options.kernel_log.as_deref()));
        let config = Self::config(media, saved.as_slice(), &options)?;
        let mut line =
            format!("{} {} {}", machine::COMMAND_LINE, media.spec.command_line, options.command_line);
        if let Some(name) = &options.hostname {
            line.push_str(&format!(" hostname={name}"));
        }
        let machine =
            Machine::boot(config, &media.kernel()?, &media.initramfs()?, line.trim(), console.sink())?;
        let vmm = Self::new(machine, media, None, console, options);
        vmm.machine.resume();
        let first_instruction_us = us(begun);
        vmm.wait_agent()?;
        vmm.mount()?;
        Ok((vmm, StartReport { first_instruction_us, agent_us: us(begun) }))
    }

    /// Brings a frozen machine back: `from` holds the state (the media's own file, or an
    /// instance's, which may build on one of the media's). The guest's clock, random numbers and identity are put right before its
    /// tasks go on.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn resume(
        media: &Media,
        from: &MachineFile,
        reason: RestoreReason,
        options: VmmOptions,
    ) -> Result<(Self, StartReport, RestoredReport), Error> {
        let (vmm, waking) = Self::wake(media, from, reason, options, |_| Ok(()))?;
        let (start, report) = waking.finish()?;
        Ok((vmm, start, report))
    }

    /// [`Vmm::resume`] without waiting for the agent: the guest runs when this returns, and what it is to be told
    /// first lies in its sockets. `before` is called then, to send it more ([`Vmm::begin_connect`]); of a guest whose runs are
    /// repeatable just before its first instruction.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn wake<'a>(
        media: &Media,
        from: impl Into<Frozen<'a>>,
        reason: RestoreReason,
        options: VmmOptions,
        before: impl FnOnce(&Self) -> Result<(), Error>,
    ) -> Result<(Self, Waking), Error> {
        Self::restore(media, from, options)?.begin(reason, before)
    }

    /// The second half of [`Vmm::wake`], of a machine that [`Vmm::restore`] brought back.
    ///
    /// # Errors
    /// The host's; `before`'s.
    pub fn begin(
        mut self,
        reason: RestoreReason,
        before: impl FnOnce(&Self) -> Result<(), Error>,
    ) -> Result<(Self, Waking), Error> {
        let generation = self.machine.new_generation()?;
        let together = self.options.together.take();
        if let Some(others) = together.clone() {
            let beginning = Arc::new(Beginning(others));
            self.machine.after_first(move || beginning.is_made());
        }
        if let Some(gate) = self.options.gate {
            self.machine.make_ready();
            gate(self.options.hostname.as_deref().unwrap_or_default());
        }
        if let Some(watch) = &self.options.watch {
            self.machine.watch(watch);
        }
        // A guest hears of it while it wakes; one whose runs are the same each time has it before it runs.
        let early = !self.options.repeatable;
        if early {
            self.machine.let_run();
        }
        let first_instruction_us = us(self.begun);
        if let Some(others) = &together {
            // Nothing that comes now is needed for a beginning.
            others.wait(TOGETHER);
        }
        // After the gate: it holds the present time.
        let client = self.send_restored(reason, generation)?;
        before(&self)?;
        if !early {
            self.machine.let_run();
        }
        self.machine.serve();
        let begun = self.begun;
        Ok((self, Waking { client, begun, first_instruction_us }))
    }

    /// Brings a frozen machine's kernel and agent back, to be asked what they hold: the guest's
    /// tasks stay frozen.
    ///
    /// # Errors
    /// As [`Vmm::resume`].
    pub fn look_into(media: &Media, from: &MachineFile, options: VmmOptions) -> Result<Self, Error> {
        let vmm = Self::restore(media, from, options)?;
        vmm.machine.resume();
        Ok(vmm)
    }

    /// The first half of [`Vmm::wake`]: the machine is whole, and nothing runs.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn restore<'a>(
        media: &Media,
        from: impl Into<Frozen<'a>>,
        options: VmmOptions,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let Frozen { file: from, template } = from.into();
        let console = Arc::new(Console::new(options.kernel_log.as_deref()));
        let parent = media.parent_of(from)?;
        let saved: Vec<&MachineFile> = parent.into_iter().chain([from]).collect();
        let config = Self::config(media, &saved, &options)?;
        let machine = match template {
            Some(template) => Machine::restore_from(config, template, console.sink()),
            None => Machine::restore(config, from, parent, console.sink()),
        }?;
        let own = (from.id() == media.file.id()).then(|| from.id());
        Ok(Self { begun, ..Self::new(machine, media, from.parent().or(own), console, options) })
    }

    fn new(
        machine: Machine,
        media: &Media,
        parent: Option<Digest>,
        console: Arc<Console>,
        options: VmmOptions,
    ) -> Self {
        let base = media.base().clone();
        let info = media.snapshot.as_ref().map(|point| SnapshotInfo { root: 0, ..point.info.clone() });
        let (machine, spec) = (Arc::new(machine), media.spec.clone());
        Self {
            machine,
            spec,
            console,
            options,
            base,
            parent,
            info,
            begun: Instant::now(),
            saving: Mutex::default(),
            standing: RwLock::default(),
            main: Mutex::default(),
        }
    }

    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// The volumes that it has.
    pub fn volumes(&self) -> &[VolumeMount] {
        &self.options.volumes
    }

    /// The last of what the guest said on its serial console.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// A stream to the guest's agent: one operation.
    ///
    /// # Errors
    /// The guest's vsock refuses, or the machine ended.
    pub fn connect(&self) -> Result<UnixStream, Error> {
        self.connect_port(AGENT_PORT)
    }

    /// A stream to a vsock port of the guest.
    ///
    /// # Errors
    /// As [`Vmm::connect`].
    pub fn connect_port(&self, port: u32) -> Result<UnixStream, Error> {
        self.machine.connect(port).map_err(|e| agent_protocol::ClientError::Io(e).into())
    }

    /// Waits while the guest's tasks stand still for a snapshot: the agent would refuse what it is
    /// asked for then.
    pub fn wait_while_standing(&self) {
        drop(self.standing.read().unwrap_or_else(PoisonError::into_inner));
    }

    /// A stream to the guest's agent that does not wait for it: see [`Machine::begin_connect`].
    ///
    /// # Errors
    /// The guest's sockets are not up; the host's.
    pub fn begin_connect(&self) -> Result<UnixStream, Error> {
        self.begin_connect_port(AGENT_PORT)
    }

    /// The same to any vsock port of the guest.
    ///
    /// # Errors
    /// As [`Vmm::begin_connect`].
    pub fn begin_connect_port(&self, port: u32) -> Result<UnixStream, Error> {
        self.machine.begin_connect(port).map_err(|e| agent_protocol::ClientError::Io(e).into())
    }

    fn agent(&self) -> Result<Client<UnixStream>, Error> {
        Ok(Client::new(self.connect()?))
    }

    fn died(&self, outcome: &Outcome) -> Error {
        Error::Died { outcome: outcome.to_string(), tail: self.console.tail() }
    }

    /// Waits until a booting guest's agent answers a ping. It listens some time after the kernel
    /// started; until then connecting is refused, so the console's ready line is what is waited
    /// for, not time.
    fn wait_agent(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.options.boot_timeout;
        while !self.console.wait_ready(Duration::from_millis(200)) {
            if let Some(outcome) = self.machine.wait(Some(Duration::ZERO)) {
                return Err(self.died(&outcome));
            }
            if Instant::now() > deadline {
                let seconds = self.options.boot_timeout.as_secs();
                return Err(Error::AgentSilent { seconds, tail: self.console.tail() });
            }
        }
        self.agent()?.ping()?;
        Ok(())
    }

    /// Mounts what a machine that booted has beside its own disk.
    fn mount(&self) -> Result<(), Error> {
        let mounts = self.mounts();
        if mounts.is_empty() {
            return Ok(());
        }
        match self.agent()?.call(&Request::Mount(mounts))? {
            Reply::Done => Ok(()),
            _ => Err(agent_error("Mount")),
        }
    }

    /// What the agent is to mount.
    fn mounts(&self) -> Vec<MountSpec> {
        volumes::specs(&self.options.volumes).chain(folders::specs(&self.machine)).collect()
    }

    /// The definition's hooks of one kind, then those of this run.
    fn hooks(&self, kind: impl Fn(&Hooks) -> &[String]) -> HookSet {
        let argv = |line: &String| vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()];
        let lines = kind(&self.spec.hooks).iter().chain(kind(&self.options.hooks));
        HookSet { commands: lines.map(argv).collect(), timeout_ms: 0 }
    }

    /// Sends the agent, which does not run yet, what it needs to put the guest right.
    fn send_restored(
        &self,
        reason: RestoreReason,
        generation: [u8; 16],
    ) -> Result<Client<UnixStream>, Error> {
        let mut seed = vec![0u8; 64];
        if !self.options.repeatable {
            rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
                .map_err(|e| Error::Refused(format!("the host gives no random numbers: {e}")))?;
        }
        let mut client = Client::new(self.begin_connect()?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let spec = RestoredSpec {
            reason,
            realtime_ns: if self.options.repeatable { REPEATABLE_DATE_NS } else { now },
            seed: seed.clone(),
            generation,
            hostname: self.options.hostname.clone(),
            machine_id: self.options.hostname.as_ref().and_then(|_| seed_id(&seed)),
            hooks: self.hooks(|hooks| &hooks.after_restore),
            mounts: self.mounts(),
        };
        client.start(&Request::Restored(spec))?;
        Ok(client)
    }

    /// Waits in the guest until the service is ready.
    ///
    /// # Errors
    /// Timed out, or the service ended first.
    pub fn wait_ready(&self) -> Result<(), Error> {
        let Some(ready) = &self.spec.ready else { return Ok(()) };
        let probe = match &ready.check {
            ReadyCheck::Port(port) => Probe::Port(*port),
            ReadyCheck::Http(url) => Probe::Http(url.clone()),
            ReadyCheck::Socket(path) => Probe::Socket(path.clone()),
            ReadyCheck::Log(text) => Probe::Log { pattern: text.clone(), regex: false },
            ReadyCheck::Exec(argv) => Probe::Exec(ExecSpec { argv: argv.clone(), ..ExecSpec::default() }),
            ReadyCheck::AfterMs(ms) => Probe::After(*ms),
        };
        let spec = ReadySpec { probe, timeout_ms: ready.timeout_ms, interval_ms: 0, needs_service: true };
        match self.agent()?.call(&Request::Ready(spec))? {
            Reply::Done => Ok(()),
            _ => Err(agent_error("Ready")),
        }
    }

    /// What the guest wrote to its volumes and did not bring there yet, before the machine is ended without a
    /// shutdown: whoever ends it means its processes. Waits as long as `limit` for a guest that does not answer.
    pub fn sync_volumes(&self, limit: Duration) {
        if self.options.volumes.iter().all(|volume| volume.read_only) {
            return;
        }
        // Best effort: a guest that hangs is ended all the same, and its volume is as after a power failure.
        let _ = self.begin_connect().and_then(|stream| {
            stream.set_read_timeout(Some(limit)).map_err(agent_protocol::ClientError::Io)?;
            Ok(Client::new(stream).call(&Request::Sync)?)
        });
    }

    /// Shuts the guest down and, with `save`, writes its disk there.
    ///
    /// # Errors
    /// The file's. A guest that does not end within its grace is ended.
    pub fn stop(&self, grace_ms: u32, save: Option<&Path>) -> Result<(), Error> {
        // What it says until it is off is kept, too.
        let logs = save.and_then(|path| Saving::begin(self, &path.with_file_name(logs::SAVED)));
        self.ask_service(grace_ms);
        let asked = self.agent().and_then(|mut agent| {
            agent.start(&Request::Shutdown { power: Power::Off, grace_ms })?;
            Ok(agent)
        });
        let limit = Duration::from_millis(u64::from(grace_ms) + 15_000);
        if asked.is_err() || self.machine.wait(Some(limit)).is_none() {
            self.machine.end();
        }
        if let Some(logs) = logs {
            logs.finish();
        }
        let Some(path) = save else { return Ok(()) };
        // Who asked, and who saw the service end of it, may both be here.
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer = MachineFileWriter::create(path)?;
        self.machine.save_disk(&mut writer, &self.options.scratch_dir)?;
        writer.finish()?;
        Ok(())
    }
}

/// As many as there are slots.
fn disks(volumes: &[VolumeMount]) -> Result<Vec<Arc<dyn Disk>>, Error> {
    if volumes.len() > machine::VOLUME_SLOTS {
        let what = format!("{} volumes; a machine can have {}", volumes.len(), machine::VOLUME_SLOTS);
        return Err(Error::Refused(what));
    }
    Ok(volumes.iter().map(|volume| volume.disk.clone() as Arc<dyn Disk>).collect())
}

/// Sixteen random bytes of their own from the pool.
fn seed_id(pool: &[u8]) -> Option<[u8; 16]> {
    artifact::Digest::of(pool).as_bytes().first_chunk().copied()
}
