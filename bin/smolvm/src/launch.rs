//! Starts an instance's machine in this process: what `run` in the foreground and the detached
//! child share.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::RestoreReason;
use anyhow::{Context, Result, bail};
use artifact::{MachineFile, VerifyOptions};
use host::Rendezvous;
use instance::forward::{self, Bound, Publish};
use instance::session::{self, Asked, Session, Target};
use instance::{
    Door, Frozen, Instance, KEPT_CODE, Main, Media, Neighbours, Own, StartReport, Template, Vmm, VmmOptions,
    Waking,
};
use machine::{EngineChoice, Watch};
use serde::{Deserialize, Serialize};
use spec::MachineSpec;
use store::{Dirs, Pin, Store};

use crate::args::EngineArgs;
use crate::mounts::{self, Mount};
use crate::trace;
use crate::ui::say::tell;
use crate::volumes;

mod answers;
pub mod keeper;
mod limits;
pub use answers::{Control, Ending, note_saved};
use keeper::{HealthCheck, Policy};
pub use limits::Limits;

/// Where the state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Boot the base, start the service.
    Cold,
    /// The machine file's own frozen state.
    Resume,
    /// What `freeze` left in the instance's directory.
    Frozen,
    /// Boot on the disk that `stop` left.
    Stopped,
    /// A copy of a machine that ran: the state in the instance's `origin`.
    Forked,
}

/// How to start an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub mode: Mode,
    /// Which snapshot of its file it came from; `None`: from the base.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// `auto`, `soft` or `kvm`.
    pub engine: String,
    pub force_template: bool,
    /// TSC frequency of a cold boot, in kHz.
    #[serde(default)]
    pub tsc_khz: Option<u32>,
    /// For the service of a cold start.
    pub env: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub cpus: Option<u32>,
    pub memory: Option<u64>,
    pub ports: Vec<Publish>,
    /// What is mounted beside its own disk.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// The guest's host name; its own when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The guest's host name is the instance's, whatever its source was called: it is a copy. (Copies that were made
    /// together have one plan.)
    #[serde(default)]
    pub own_name: bool,
    /// The network, and published UDP ports.
    #[serde(default)]
    pub net: instance::NetOptions,
    /// A command to run beside the service, and to end with.
    pub command: Option<Exec>,
    /// The command is what runs, in the place of the service.
    #[serde(default)]
    pub no_service: bool,
    /// Every run is the same.
    #[serde(default)]
    pub repeatable: bool,
    /// Who looks at a repeatable run.
    #[serde(skip)]
    pub watch: Option<Watch>,
    /// How long it may run, in ms, before its own process ends it.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// What to do when the service ends.
    #[serde(default)]
    pub restart: Policy,
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Beside its definition's.
    #[serde(default)]
    pub hooks: spec::Hooks,
    /// The run before ended without saving: what was done in it is lost.
    #[serde(default)]
    pub lost: bool,
    /// Networks on which it and other machines reach each other by name.
    #[serde(default)]
    pub networks: Vec<String>,
    /// What it may take of this host.
    #[serde(default)]
    pub limits: Limits,
    /// Where a debugger is served.
    #[serde(default)]
    pub gdb: Option<SocketAddr>,
}

impl Plan {
    /// That the machine is there for its command, which runs in this session.
    pub fn main(&self, session: u64) -> Main {
        Main { session, in_place: self.no_service }
    }

    /// Whether the command is what the machine is there for: there is no service, or it was left out.
    pub fn command_in_place(&self, machine: &MachineSpec) -> bool {
        self.command.is_some() && (self.no_service || machine.service.is_none())
    }

    /// As the file says, with nothing published and no command.
    pub fn new(mode: Mode, engine: &EngineArgs) -> Self {
        Self {
            mode,
            snapshot: None,
            engine: engine.engine.clone(),
            force_template: engine.force_template,
            tsc_khz: engine.tsc_khz,
            env: Vec::new(),
            workdir: None,
            cpus: None,
            memory: None,
            ports: Vec::new(),
            mounts: Vec::new(),
            hostname: None,
            own_name: false,
            net: instance::NetOptions::default(),
            command: None,
            no_service: false,
            repeatable: false,
            watch: None,
            timeout_ms: None,
            restart: Policy::No,
            health: None,
            hooks: spec::Hooks::default(),
            lost: false,
            networks: Vec::new(),
            limits: Limits::default(),
            gdb: None,
        }
    }
}

/// A command in the guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exec {
    pub argv: Vec<String>,
    /// What the user asked for.
    pub env: Vec<(String, String)>,
    /// What this host is set to: time zone, locale, terminal.
    #[serde(default)]
    pub host_env: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub user: Option<String>,
}

/// What a machine's definition gives each command in it, as a container's settings hold for `docker
/// exec`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Defaults {
    pub env: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub user: Option<String>,
}

impl Defaults {
    /// Those of a specification: its service's, else those of the image that it was made from.
    pub fn of(spec: &spec::MachineSpec) -> Self {
        let service = spec.service.as_ref();
        let image = spec.image.as_ref();
        let own = service.map(|s| s.env.as_slice()).unwrap_or_default();
        Self {
            env: spec.env.iter().chain(own).cloned().collect(),
            workdir: service.map_or(image.and_then(|i| i.workdir.clone()), |s| s.workdir.clone()),
            user: service.map_or(image.and_then(|i| i.user.clone()), |s| s.user.clone()),
        }
    }
}

impl Exec {
    /// As the agent takes it: the host's environment below the definition's below the user's.
    pub fn spec(&self, defaults: &Defaults) -> agent_protocol::ExecSpec {
        agent_protocol::ExecSpec {
            argv: self.argv.clone(),
            env: self.host_env.iter().chain(&defaults.env).chain(&self.env).cloned().collect(),
            cwd: self.workdir.clone().or_else(|| defaults.workdir.clone()),
            user: self.user.clone().or_else(|| defaults.user.clone()),
            ..Default::default()
        }
    }
}

/// What copies of one machine have in common, made once by the process that theirs are split off from.
pub struct Prepared {
    pub plan: Plan,
    pub media: Media,
    pub origin: Origin,
}

/// What a copy starts from, as far as it was made before its process was split off.
pub enum Origin {
    /// The file and what was read of it.
    File(Box<MachineFile>, Option<Box<Template>>),
    /// The machine itself, which only has to become the copy's own.
    Machine(Box<Vmm>),
}

/// What a copy takes part in: the others and it begin together.
#[derive(Default)]
pub struct Group {
    /// Called when the copy is whole and has not run yet.
    pub gate: Option<fn(&str)>,
    /// Where it waits until the others have begun, too.
    pub together: Option<Arc<Rendezvous>>,
    /// What it starts from, where that was read already.
    pub origin: Option<Origin>,
}

/// A machine that runs in this process for an instance; its agent may not have answered yet.
pub struct Started {
    pub vmm: Arc<Vmm>,
    waking: Option<Waking>,
    asked: Option<Asked>,
    report: StartReport,
    bound: Vec<Bound>,
    door: Option<Door>,
    /// While it is there, the machine's limits hold.
    limited: Option<host::Group>,
}

/// A machine that is up.
pub struct Running {
    pub vmm: Arc<Vmm>,
    pub report: StartReport,
    /// What did not go as it should on the way, for whoever started it.
    pub notes: Vec<String>,
    /// The command that was given to [`start`].
    pub asked: Option<Asked>,
    /// Open to its neighbours while this lives.
    pub door: Option<Door>,
    /// While it is there, the machine's limits hold.
    pub limited: Option<host::Group>,
}

/// How long a machine that is ended at once may take to write to its volumes what its guest holds back.
pub const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// How long a cold boot may take before its agent answers.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// What a guest's agent has to tell after a restore: so many notes, of so many characters each. Together they fit into
/// one line of a child ([`crate::cmd::vmm::say`]).
const NOTES: usize = 4;
const NOTE: usize = 200;

/// What the guest says, for a terminal.
fn printable(note: &str) -> String {
    note.chars().take(NOTE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Options for a VMM of this instance directory.
pub fn vmm_options(plan: &Plan, scratch_dir: PathBuf, kernel_log: Option<PathBuf>) -> Result<VmmOptions> {
    let engine: EngineChoice = plan.engine.parse().map_err(anyhow::Error::msg)?;
    Ok(VmmOptions {
        engine,
        force_template: plan.force_template,
        tsc_khz: plan.tsc_khz,
        scratch_dir,
        kernel_log,
        boot_timeout: BOOT_TIMEOUT,
        hostname: plan.hostname.clone(),
        command_line: String::new(),
        gate: None,
        together: None,
        net: plan.net.clone(),
        repeatable: plan.repeatable,
        watch: plan.watch.clone(),
        hooks: plan.hooks.clone(),
        peers: None,
        folders: mounts::folders(&plan.mounts),
        volumes: Vec::new(),
    })
}

/// Takes the host's ports before anything starts.
pub fn bind_ports(ports: &[Publish]) -> Result<Vec<Bound>> {
    Ok(ports.iter().map(|p| forward::bind(*p)).collect::<Result<_, _>>()?)
}

/// Where bound ports are reached: (address, guest port).
pub fn published(bound: &[Bound]) -> Vec<(String, u16)> {
    bound.iter().map(|port| (port.address().to_string(), port.guest())).collect()
}

/// Where published UDP ports are reached: (address, guest port).
pub fn published_udp(plan: &Plan) -> Vec<(String, u16)> {
    plan.net.udp.iter().map(|port| (port.host.to_string(), port.guest)).collect()
}

/// Says which ports were chosen where the user left it open.
pub fn tell_chosen(wanted: &[Publish], ports: &[(String, u16)]) {
    for (_, (host, guest)) in wanted.iter().zip(ports).filter(|(wanted, _)| wanted.host.port() == 0) {
        tell!("smolvm: {host} is the machine's port {guest}");
    }
}

/// A machine file as the plan means it: its base, or one of its snapshots.
pub fn media(plan: &Plan, store: &Store, pin: Pin) -> Result<Media, instance::Error> {
    let mut media = match (&plan.snapshot, plan.mode) {
        // A copy's state is its own file's; a machine that was booted needs no snapshot to be copied.
        (None, Mode::Cold | Mode::Frozen | Mode::Stopped | Mode::Forked) => Media::open_in(store, pin),
        (name, _) => Media::open_snapshot(store, pin, name.as_deref()),
    }?;
    // What it was booted with it has for life.
    media.spec.vcpus = plan.cpus.unwrap_or(media.spec.vcpus);
    media.spec.memory = plan.memory.unwrap_or(media.spec.memory);
    Ok(media)
}

/// Starts the machine, and in it `command`. `group`: for a copy of a machine.
/// `records` is called while a resumed guest wakes, before one that boots starts. Nothing that the guest's first
/// instruction does not need is done before it.
pub fn start(
    instance: &Instance,
    media: &Media,
    plan: &Plan,
    bound: Vec<Bound>,
    group: Group,
    command: Option<Target>,
    records: impl FnOnce() -> Result<()>,
) -> Result<Started> {
    let limited = plan.limits.enter(instance.name())?;
    let debugger = plan.gdb.map(|at| {
        TcpListener::bind(at)
            .with_context(|| format!("listening for a debugger on {at}; choose another --gdb"))
    });
    let debugger = debugger.transpose()?;
    let mut options = vmm_options(plan, instance.path(""), Some(kernel_log(instance)))?;
    if !plan.networks.is_empty() {
        options.peers = Some(Arc::new(Neighbours::new(Dirs::from_env()?, instance.name(), &plan.networks)));
    }
    options.volumes = volumes::attach(plan, instance)?;
    if plan.own_name {
        options.hostname = Some(instance.name().to_owned());
    }
    let saved = || MachineFile::open_path(&instance.saved()).context("opening what the instance saved");
    let reason = match plan.mode {
        _ if plan.lost => RestoreReason::Crash,
        Mode::Forked => RestoreReason::Fork,
        _ => RestoreReason::Resume,
    };
    let mut started = match plan.mode {
        Mode::Resume => {
            let vmm = Vmm::restore(media, media.file.as_ref(), options)?;
            wake(vmm, reason, bound, command, records)?
        }
        Mode::Frozen => {
            // It has its host name, and is no other machine than the one that was frozen.
            options.hostname = None;
            let saved = saved()?;
            let vmm = Vmm::restore(media, &saved, options)?;
            vmm.offer_code(instance.path(KEPT_CODE), saved.id());
            wake(vmm, reason, bound, command, records)?
        }
        Mode::Forked => {
            let vmm = copy(instance, media, options, group)?;
            wake(vmm, reason, bound, command, records)?
        }
        Mode::Cold | Mode::Stopped => {
            records()?;
            let saved = (plan.mode == Mode::Stopped).then(saved).transpose()?;
            let (vmm, report) = Vmm::boot(media, saved.as_ref(), options)?;
            if !plan.no_service {
                vmm.start_service(&plan.env, plan.workdir.as_deref())?;
            }
            let asked = command.map(|target| session::ask(vmm.connect()?, target)).transpose()?;
            Started { vmm: Arc::new(vmm), waking: None, asked, report, bound, door: None, limited: None }
        }
    };
    started.limited = limited;
    if !plan.networks.is_empty() {
        let vmm = started.vmm.clone();
        started.door = Some(instance::open_door(instance, Arc::new(move || vmm.connect()))?);
    }
    if let Some(listener) = debugger {
        gdb::serve(started.vmm.machine(), listener).context("serving a debugger")?;
    }
    Ok(started)
}

/// Where what its guest says on the serial console is kept.
fn kernel_log(instance: &Instance) -> PathBuf {
    instance.path("kernel.log")
}

/// What the instance is a copy of.
pub fn open_origin(instance: &Instance) -> Result<MachineFile> {
    MachineFile::open_path(&instance.origin()).context("opening what the instance is a copy of")
}

/// A machine that becomes this instance, a copy of another one.
fn copy(instance: &Instance, media: &Media, mut options: VmmOptions, group: Group) -> Result<Vmm> {
    let origin = match group.origin {
        Some(origin) => origin,
        None => {
            let file = open_origin(instance)?;
            // It was never brought to the disk: a power failure may have torn it.
            file.verify_all(VerifyOptions::default()).context("checking what the instance is a copy of")?;
            Origin::File(Box::new(file), None)
        }
    };
    match (origin, group.gate) {
        (Origin::Machine(mut vmm), Some(gate)) => {
            vmm.become_own(Own {
                hostname: instance.name().to_owned(),
                scratch_dir: instance.path(""),
                kernel_log: kernel_log(instance),
                gate,
                together: group.together,
            });
            Ok(*vmm)
        }
        (Origin::Machine(_), None) => bail!("a machine that was made for many copies starts with the others"),
        (Origin::File(file, template), gate) => {
            // A copy has a name of its own in the guest, too.
            (options.hostname, options.gate) = (Some(instance.name().to_owned()), gate);
            options.together = group.together;
            let from = Frozen { file: &file, template: template.map(|template| *template) };
            Ok(Vmm::restore(media, from, options)?)
        }
    }
}

fn wake(
    vmm: Vmm,
    reason: RestoreReason,
    bound: Vec<Bound>,
    command: Option<Target>,
    records: impl FnOnce() -> Result<()>,
) -> Result<Started> {
    let mut asked = None;
    let (vmm, waking) = vmm.begin(reason, |vmm| {
        asked = command.map(|target| session::ask(vmm.begin_connect()?, target)).transpose()?;
        Ok(())
    })?;
    trace::point("guest_runs");
    records()?;
    trace::point("records");
    let report = StartReport::default();
    Ok(Started { vmm: Arc::new(vmm), waking: Some(waking), asked, report, bound, door: None, limited: None })
}

impl Started {
    /// Waits for the guest's agent, then lets connections in.
    pub fn up(self) -> Result<Running> {
        let Self { vmm, waking, asked, mut report, bound, door, limited } = self;
        let mut notes = Vec::new();
        if let Some(waking) = waking {
            let (start, restored) = waking.finish()?;
            report = start;
            trace::point("agent");
            notes = restored.notes.iter().take(NOTES).map(|note| printable(note)).collect();
        }
        notes.extend(instance::missing_note(vmm.machine()));
        trace::machine(vmm.machine());
        for port in bound {
            let vmm = vmm.clone();
            port.serve(Arc::new(move || vmm.connect())).context("serving a published port")?;
        }
        Ok(Running { vmm, report, notes, asked, door, limited })
    }
}

impl Running {
    /// The session of the command.
    pub fn session(&mut self) -> Result<Option<Session>> {
        let vmm = &self.vmm;
        let session = self.asked.take().map(|asked| asked.started_after_restore(|| vmm.connect()));
        Ok(session.transpose()?)
    }
}

/// The user's directories and store.
pub struct Home {
    pub dirs: Dirs,
    pub store: Store,
}

impl Home {
    pub fn open() -> Result<Self> {
        let dirs = Dirs::from_env()?;
        store::dirs::ensure_private(&dirs.state)?;
        let store = Store::open(&dirs.store())?;
        machine::remember_kvm_in(dirs.state.join("kvm-probe.json"));
        Ok(Self { dirs, store })
    }
}
