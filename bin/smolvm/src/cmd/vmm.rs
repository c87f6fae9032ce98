//! The detached VMM: the child that `run -d` and `start` leave behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::ErrorKind;
use anyhow::{Context, Result, anyhow};
use host::Rendezvous;
use instance::control;
use instance::forward::Publish;
use instance::logs::SAVED;
use instance::session::{self, Session, Target};
use instance::{Instance, Lasting, Main, Media, PLAN, Phase, Record, Vmm};
use machine::Outcome;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use spec::MachineSpec;

use crate::args::Global;
use crate::cmd::{TIMED_OUT, update};
use crate::interrupt::{self, Undo};
use crate::launch::keeper::{self, Backoff};
use crate::launch::{self, Control, Defaults, Ending, Group, Home, Mode, Plan, Prepared};
use crate::trace;
use crate::ui::say::{say, tell};

/// How long a machine that failed stays down before it is started again.
const BEFORE_AGAIN: Duration = Duration::from_secs(1);
/// How long its processes have to end when its time is over.
const TIMEOUT_GRACE_MS: u32 = 2_000;

/// What a child says on its standard output: who it is, and how it went.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    pub name: String,
    pub word: Word,
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    /// A copy is whole; it runs when standard input ends.
    Whole,
    /// `first_run_ns`: CLOCK_MONOTONIC at the first guest instruction.
    Up {
        first_instruction_us: u64,
        agent_us: u64,
        first_run_ns: u64,
        /// What did not go as it should on the way.
        notes: Vec<String>,
    },
    Failed {
        text: String,
        code: u8,
    },
    /// A copy's process ended, which its parent says.
    Lost,
}

/// Where it is kept how an instance starts.
pub fn plan_path(instance: &Instance) -> PathBuf {
    instance.path(PLAN)
}

/// Keeps how to start in the directory of a new instance. The file is replaced, since copies of a machine share theirs.
/// That of a machine that is to be kept survives a power failure, as its record does.
pub fn write_plan(instance: &Instance, plan: &Plan, lasting: Lasting) -> Result<()> {
    Ok(instance.put(PLAN, &serde_json::to_vec_pretty(plan)?, lasting)?)
}

/// Changes how an instance is started, which may have something saved.
pub fn replace_plan(instance: &Instance, plan: &Plan) -> Result<()> {
    Ok(instance.put(PLAN, &serde_json::to_vec_pretty(plan)?, Lasting::Durable)?)
}

/// How the instance was started last.
pub fn read_plan(instance: &Instance) -> Result<Plan> {
    let path = plan_path(instance);
    let what = || {
        let name = instance.name();
        format!(
            "reading how `{name}` is started, {}; if it is damaged, `smolvm rm {name}` and run it anew",
            path.display()
        )
    };
    let text = fs::read(&path).with_context(what)?;
    serde_json::from_slice(&text).with_context(what)
}

/// Starts a child that is to outlive this process, with this program's hidden verb `args`. It reads `input` and
/// says [`Said`] lines on its standard output.
pub fn spawn(args: &[&str], log: &Path, input: Stdio) -> Result<Child> {
    let stderr = File::create(log).with_context(|| format!("making {}", log.display()))?;
    Command::new(this_program())
        .args(args)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(stderr)
        // A process group of its own: the terminal's Ctrl-C is not for it.
        .process_group(0)
        .spawn()
        .context("starting the machine's process")
}

/// This very program, also when another version of it was installed meanwhile: its path is then no file's.
pub fn this_program() -> PathBuf {
    let path = std::env::current_exe().ok().filter(|path| path.exists());
    path.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// What a child says.
pub struct Words(Option<BufReader<ChildStdout>>);

impl Words {
    /// To be taken once.
    pub fn of(child: &mut Child) -> Self {
        Self(child.stdout.take().map(BufReader::new))
    }

    /// The next line; nothing when the child ended or said something else.
    pub fn next(&mut self) -> Option<Said> {
        let mut line = String::new();
        self.0.as_mut()?.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

/// Starts the child for an instance, waits until its machine is up, prints the name. With `undo`, a
/// signal until then ends the child, too.
pub fn detach(instance: Arc<Instance>, global: &Global, undo: Option<Undo>) -> Result<u8> {
    match bring_up(instance, undo)? {
        Detached::Up(report) => report.print(global).map(|()| 0),
        Detached::Failed(code) => Ok(code),
    }
}

/// How a start in the background went.
pub enum Detached {
    Up(UpReport),
    /// It was said why; the exit code.
    Failed(u8),
}

/// A machine that is up in the background.
#[derive(Serialize)]
pub struct UpReport {
    name: String,
    first_instruction_us: u64,
    agent_us: u64,
    /// Published ports: (host address, guest port).
    ports: Vec<(String, u16)>,
    #[serde(skip)]
    wanted: Vec<Publish>,
}

impl UpReport {
    pub fn print(&self, global: &Global) -> Result<()> {
        if global.json {
            return crate::ui::json(self);
        }
        say!("{}", self.name);
        if !global.quiet {
            launch::tell_chosen(&self.wanted, &self.ports);
        }
        Ok(())
    }
}

/// [`detach`] that prints no result.
pub fn bring_up(instance: Arc<Instance>, undo: Option<Undo>) -> Result<Detached> {
    let name = instance.name().to_owned();
    let log = instance.path("vmm.log");
    let wanted = read_plan(&instance)?.ports;
    // The child takes the instance's lock: this process lets go of it.
    drop(instance);
    let kills = undo.is_some();
    let ended = |child: &Child| {
        let (pid, name) = (child.id(), name.clone());
        move || {
            if kills {
                interrupt::end_process(pid);
                // Its other threads may hold the lock a moment longer.
                let home = Home::open().ok();
                let instance = home.and_then(|home| Instance::open(&home.dirs, &name).ok());
                let _ = instance.map(|instance| instance.wait_end());
            }
        }
    };
    let (mut child, _end) = interrupt::making(|| spawn(&["__vmm", &name], &log, Stdio::null()), ended)?;
    let mut words = Words::of(&mut child);
    let mut word = words.next().map(|said| said.word);
    if matches!(word, Some(Word::Whole)) {
        word = words.next().map(|said| said.word);
    }
    match word {
        Some(Word::Up { first_instruction_us, agent_us, notes, .. }) => {
            notes.iter().for_each(|note| tell!("smolvm: {note}"));
            let ports = if wanted.is_empty() { Vec::new() } else { ports_of(&name)? };
            Ok(Detached::Up(UpReport { name, first_instruction_us, agent_us, ports, wanted }))
        }
        Some(Word::Failed { text, code }) => {
            let _ = child.wait();
            // One that was there before stays, whatever became of this start; a new one never ran, and its name is free.
            if kills {
                forget(&name);
            }
            tell!("smolvm: {text}");
            Ok(Detached::Failed(code))
        }
        Some(Word::Whole | Word::Lost) | None => {
            let _ = child.wait();
            let said = fs::read_to_string(&log).unwrap_or_default();
            Err(anyhow!("the machine's process ended before its machine was up:\n{}", said.trim_end()))
        }
    }
}

/// Where a machine's ports are reached.
fn ports_of(name: &str) -> Result<Vec<(String, u16)>> {
    Ok(Instance::open(&Home::open()?.dirs, name)?.record()?.ports)
}

/// Removes an instance that did not come to life, as far as that goes.
pub fn forget(name: &str) {
    if let Ok(home) = Home::open()
        && let Ok(instance) = Instance::open(&home.dirs, name)
    {
        let _ = crate::volumes::remove_made_for(name, &home.dirs);
        let _ = instance.remove();
    }
}

/// The child itself.
pub fn vmm(name: &str, home: &Home) -> Result<u8> {
    let mut instance = Instance::open(&home.dirs, name)?;
    instance.acquire()?;
    run(instance, home, None)
}

/// A process that was split off for one of many copies.
pub struct Copy {
    /// What was made for all of them, where that went well.
    pub prepared: Option<Prepared>,
    /// Where they wait until all have begun.
    pub together: Option<Arc<Rendezvous>>,
}

/// The process of an instance whose lock it has.
pub fn run(instance: Instance, home: &Home, copy: Option<Copy>) -> Result<u8> {
    let instance = Arc::new(instance);
    match up(&instance, home, copy) {
        Ok(up) => live(&instance, up, home),
        Err(e) => {
            let code = e.downcast_ref::<instance::Error>().map_or(125, |e| match e {
                instance::Error::Agent(client) => client.kind().exit_code(),
                _ => 125,
            });
            say(instance.name(), Word::Failed { text: crate::ui::told(&e), code })?;
            instance.update(|r| (r.phase, r.exit_code) = (Phase::Dead, Some(code)))?;
            Ok(code)
        }
    }
}

struct Up {
    running: launch::Running,
    server: control::Server,
    session: Option<Session>,
    ending: Arc<Ending>,
    plan: Plan,
}

/// The machine file of an instance, as its plan means it.
pub fn media(plan: &Plan, record: &Record, home: &Home) -> Result<Media> {
    let id = record.file.parse().map_err(|_| anyhow!("the record names no machine file"))?;
    Ok(launch::media(plan, &home.store, home.store.pin(&id)?)?)
}

fn up(instance: &Arc<Instance>, home: &Home, copy: Option<Copy>) -> Result<Up> {
    let is_copy = copy.is_some();
    let (prepared, together) = copy.map_or((None, None), |copy| (copy.prepared, copy.together));
    let (plan, media, origin) = match prepared {
        Some(Prepared { plan, media, origin }) => (plan, media, Some(origin)),
        None => {
            let plan = read_plan(instance)?;
            let media = media(&plan, &instance.record()?, home)?;
            (plan, media, None)
        }
    };
    let group = Group { gate: Some(wait_for_start), together, origin };
    trace::point("file");
    let bound = launch::bind_ports(&plan.ports)?;
    let ports = launch::published(&bound);
    // The command of a frozen machine is among its processes.
    let frozen = plan.mode == Mode::Frozen;
    if plan.mode == Mode::Stopped {
        // What it said before is not what it says now.
        let _ = fs::remove_file(instance.path(SAVED));
    }
    let in_place = plan.command_in_place(&media.spec);
    let command = if frozen || in_place { None } else { command(&plan, &media.spec) };
    let records = || {
        if is_copy {
            own_log(instance)?;
        }
        let (pid, mut kept) = (std::process::id(), false);
        instance.update(|r| {
            (r.phase, r.pid, r.exit_code, r.health) = (Phase::Running, pid, None, None);
            (r.ports, r.fresh) = (ports.clone(), false);
            kept = r.kept;
        })?;
        let owner = instance.path("");
        match (kept, is_copy) {
            (false, _) => Ok(()),
            (true, false) => Ok(home.store.add_reference(&media.pin, &owner)?),
            // What it starts from is gone with a power failure, too.
            (true, true) => Ok(home.store.add_passing_reference(&media.pin, &owner)?),
        }
    };
    // Of copies that begin together each would take the processor from those that have not begun: nobody asks anything of
    // them before their agents have answered.
    let at_once = || if is_copy { Ok(()) } else { records() };
    let started = launch::start(instance, &media, &plan, bound, group, command, at_once)?;
    let ending = Arc::new(Ending::default());
    let control = Control { vmm: started.vmm.clone(), instance: instance.clone(), ending: ending.clone() };
    let listening = if is_copy { None } else { Some(control::listen(instance)?) };
    let mut running = started.up()?;
    let listening = match listening {
        Some(listening) => listening,
        None => {
            records()?;
            control::listen(instance)?
        }
    };
    let server = listening.serve(Arc::new(control))?;
    let session =
        if in_place && !frozen { start_command(&running.vmm, &plan)? } else { running.session()? };
    let kept = if frozen { instance.record()?.session } else { None };
    if let Some(id) = session.as_ref().map(|session| session.started.session).or(kept) {
        running.vmm.set_main(plan.main(id));
    }
    update::commit(instance, home)?;
    Ok(Up { running, server, session, ending, plan })
}

/// From here on what goes wrong is told in the instance's own directory. (Making a file is a large part of what a copy
/// costs: up to here, where all have begun, it tells it in that of the first copy.)
fn own_log(instance: &Instance) -> Result<()> {
    let path = instance.path("vmm.log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("making {}", path.display()))?;
    rustix::stdio::dup2_stderr(&log).context("redirecting the standard error")
}

/// Waits for the end: of the command, of the service, or of the machine.
fn live(instance: &Arc<Instance>, up: Up, home: &Home) -> Result<u8> {
    let report = up.running.report;
    let first_run_ns = up.running.vmm.machine().first_run_ns().unwrap_or(0);
    let (first_instruction_us, agent_us) = (report.first_instruction_us, report.agent_us);
    trace::print();
    let notes = up.running.notes.clone();
    say(instance.name(), Word::Up { first_instruction_us, agent_us, first_run_ns, notes })?;
    let Up { running, server, session, ending, plan } = up;
    // Open until the machine has ended.
    let (vmm, policy, _door, limited) = (running.vmm, plan.restart, running.door, running.limited);
    if let Some(check) = plan.health.clone() {
        keeper::look_after(vmm.clone(), instance.clone(), check)?;
    }
    if let Some(limit) = plan.timeout_ms {
        end_after(vmm.clone(), instance.clone(), ending.clone(), Duration::from_millis(limit))?;
    }
    let service =
        Service { vmm: vmm.clone(), instance: instance.clone(), ending: ending.clone(), plan, session };
    std::thread::Builder::new().name("watch".into()).spawn(move || service.watch())?;
    let outcome = vmm.machine().wait(None);
    // Whoever asked for the end gets an answer, and writes the record.
    ending.settle();
    let record = instance.record()?;
    if record.phase == Phase::Running {
        let phase = if record.exit_code.is_some() { Phase::Stopped } else { Phase::Dead };
        // It ended by itself: a guest that shut itself down, or one that failed.
        let code = if matches!(outcome, Some(Outcome::PowerOff)) { 0 } else { 1 };
        match phase {
            Phase::Stopped => launch::note_saved(instance, phase)?,
            _ => instance.update(|r| (r.phase, r.exit_code) = (phase, Some(code)))?,
        }
        if phase == Phase::Dead && policy.wants(code, record.restarts) {
            instance.update(|r| r.restarts += 1)?;
            std::thread::sleep(BEFORE_AGAIN);
            drop(server);
            let mut plan = read_plan(instance)?;
            plan.lost = true;
            write_plan(instance, &plan, Lasting::Power)?;
            drop(limited);
            return Err(again(instance.name(), home));
        }
    }
    Ok(0)
}

/// Ends a machine that still runs after `limit` as `stop` does, with the exit code for it.
fn end_after(vmm: Arc<Vmm>, instance: Arc<Instance>, ending: Arc<Ending>, limit: Duration) -> Result<()> {
    let body = move || {
        if vmm.machine().wait(Some(limit)).is_some() {
            return;
        }
        ending.begin(TIMED_OUT);
        tell!("smolvm: ended after {} s (--timeout)", limit.as_secs_f64());
        // A disk that could not be saved is told of in its log, and the time is over all the same.
        if let Err(e) = vmm.stop(TIMEOUT_GRACE_MS, Some(&instance.saved())) {
            tell!("smolvm: {e}");
        }
        let _ = instance.update(|r| r.exit_code = Some(TIMED_OUT));
        vmm.machine().end();
        ending.done();
    };
    std::thread::Builder::new().name("timeout".into()).spawn(body)?;
    Ok(())
}

/// This program once more in this process's place, for the same instance; returns only when that fails.
fn again(name: &str, home: &Home) -> anyhow::Error {
    // Who started it heard long ago that it is up.
    let failed =
        Command::new(this_program()).args(["__vmm", name]).stdin(Stdio::null()).stdout(Stdio::null()).exec();
    anyhow::Error::new(failed).context(format!("starting {name} again, in {}", home.dirs.state.display()))
}

/// What a detached machine is there for: its command, else its service.
struct Service {
    vmm: Arc<Vmm>,
    instance: Arc<Instance>,
    ending: Arc<Ending>,
    plan: Plan,
    session: Option<Session>,
}

impl Service {
    /// Waits for its end, starts it again as its policy says, then stops the machine.
    fn watch(mut self) {
        let mut backoff = Backoff::new();
        while let Some(code) = self.ended() {
            let code = self.ending.code(code);
            let _ = self.instance.update(|r| r.exit_code = Some(code));
            let restarts = self.instance.record().map_or(u32::MAX, |r| r.restarts);
            let wanted = self.plan.restart.wants(code, restarts);
            if wanted && self.vmm.machine().wait(Some(backoff.wait())).is_some() {
                return;
            }
            if self.ending.is_asked_for() {
                // Who stops the machine stopped its service, too.
                return;
            }
            if !wanted || self.start().is_err() {
                let _ = self.vmm.stop(10_000, Some(&self.instance.saved()));
                return self.vmm.machine().end();
            }
            backoff.started();
            let _ = self.instance.update(|r| (r.exit_code, r.restarts) = (None, r.restarts + 1));
        }
    }

    /// Its exit code; nothing when the machine ended first.
    fn ended(&mut self) -> Option<u8> {
        // Whoever joined it since (`attach`) has its streams; its end is told to everybody.
        if let Some(session) = self.session.take()
            && let Ok(ending) = session.join()
        {
            return Some(ending.code());
        }
        if self.vmm.spec().service.is_none() && self.plan.command.is_none() {
            // There is nothing that it could be there for.
            return None;
        }
        let client = agent_protocol::Client::new(self.vmm.connect().ok()?);
        client.wait(self.vmm.main().session).ok().map(|exit| exit.code())
    }

    fn start(&mut self) -> Result<()> {
        match &self.plan.command {
            Some(_) => self.session = start_command(&self.vmm, &self.plan)?,
            None => drop(self.vmm.start_service(&self.plan.env, self.plan.workdir.as_deref())?),
        }
        Ok(())
    }
}

/// The plan's command, to be run whether or not somebody listens.
fn command(plan: &Plan, machine: &MachineSpec) -> Option<Target> {
    let mut spec = plan.command.as_ref()?.spec(&Defaults::of(machine));
    spec.keep = true;
    Some(Target::Exec(spec))
}

/// Starts the plan's command: in the service's place, or beside it; then its session.
fn start_command(vmm: &Vmm, plan: &Plan) -> Result<Option<Session>> {
    let Some(target) = command(plan, vmm.spec()) else { return Ok(None) };
    if plan.command_in_place(vmm.spec())
        && let Target::Exec(spec) = &target
    {
        match vmm.start_command(spec.clone()) {
            Ok(_) => {
                vmm.set_main(Main::default());
                return Ok(None);
            }
            // A service that no definition names: a command of the machine that this file is a snapshot of.
            Err(instance::Error::Agent(error)) if error.kind() == ErrorKind::Busy => {}
            Err(error) => return Err(error.into()),
        }
    }
    let session = session::start(vmm.connect()?, &target)?;
    vmm.set_main(plan.main(session.started.session));
    Ok(Some(session))
}

/// Says that the copy is whole and waits until it may run: until its standard input ends. Nothing is read: of many that
/// read one pipe each has to wait for a lock on it, and for the processor in between, while those before it run already.
fn wait_for_start(name: &str) {
    let _ = say(name, Word::Whole);
    let input = rustix::stdio::stdin();
    let mut polled = [PollFd::new(&input, PollFlags::IN)];
    while matches!(rustix::event::poll(&mut polled, None), Err(rustix::io::Errno::INTR)) {}
}

/// One write: lines of copies that share a pipe stay whole (pipe(7), PIPE_BUF).
pub fn say(name: &str, word: Word) -> Result<()> {
    let said = Said { name: name.to_owned(), word };
    let mut line = serde_json::to_vec(&said)?;
    line.push(b'\n');
    let mut out = std::io::stdout();
    out.write_all(&line)?;
    Ok(out.flush()?)
}
