//! `run`: resume (or boot) a machine and execute.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_protocol::{LogStream, LogsSpec, SERVICE_SESSION};
use anyhow::{Context, Result, bail};
use instance::control;
use instance::forward::Publish;
use instance::session::Target;
use instance::{Instance, Lasting, Media, Phase, Record, Vmm};
use machine::Outcome;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spec::MachineSpec;
use store::{Pin, Store};

use crate::args::{Global, Run};
use crate::cmd::lockstep::Reference;
use crate::cmd::{TIMED_OUT, WATCHING, lockstep, silent, vmm};
use crate::interrupt::{self, Undo};
use crate::launch::keeper;
use crate::launch::{self, Defaults, Exec, Home, Limits, Mode, Plan, Running};
use crate::mounts;
use crate::resolve::{self, What};
use crate::trace;
use crate::ui::Steps;
use crate::ui::say::tell;
use crate::volumes;

/// How long a machine may take to end after its agent went.
const END_AFTER_STREAM: Duration = Duration::from_secs(2);

pub fn run(run: &Run, global: &Global) -> Result<u8> {
    let home = Home::open()?;
    let (what, argv) = resolve::split(&run.words, run.no_what, &home)?;
    let pin = pin(&what, run, global, &home)?;
    let mut plan = plan(run, &argv, &what, &pin, &home.store)?;
    let reference = run.lockstep.then(Reference::start).transpose()?;
    plan.watch = match &reference {
        Some(reference) => Some(reference.watch()),
        None => run.states_to_stdin.then(lockstep::send_to_stdin).transpose()?,
    };
    let media = launch::media(&plan, &home.store, pin)?;
    trace::point("file");
    tell_engine(&plan, global);
    if !silent(global) {
        plan.limits.tell_short(media.spec.memory);
    }
    let name = match &run.name {
        Some(name) => name.clone(),
        None => instance::new_name(&home.dirs),
    };
    let kept = (run.name.is_some() || run.detach) && !run.rm;
    let bound = launch::bind_ports(&plan.ports)?;
    volumes::make_missing(&plan.mounts, &home.dirs, global)?;
    interrupt::keep().context(WATCHING)?;
    let make = || Instance::create(&home.dirs, &name).map(Arc::new);
    let (instance, undo) = interrupt::making(make, |instance| {
        let (instance, name) = (Arc::downgrade(instance), name.clone());
        move || match instance.upgrade() {
            Some(instance) => drop(instance.discard()),
            None => vmm::forget(&name),
        }
    })?;
    let ports = launch::published(&bound);
    let record = || record(&instance, run, &what, &media.pin, &plan, ports.clone(), kept);
    if run.detach {
        drop(bound);
        interrupt::watch().context(WATCHING)?;
        if let Err(e) = record() {
            instance.discard()?;
            return Err(e);
        }
        return vmm::detach(instance, global, Some(undo));
    }
    let records = || {
        interrupt::watch().context(WATCHING)?;
        record()?;
        if kept {
            home.store.add_reference(&media.pin, &instance.path(""))?;
        }
        Ok(())
    };
    let undo = (!kept).then_some(undo);
    if !silent(global) {
        launch::tell_chosen(&plan.ports, &ports);
    }
    let result =
        foreground(&instance, &media, &plan, bound, run, After { discarded: undo, reference }, records);
    // Frozen or stopped by name meanwhile: it is wanted. A named one whose start failed is not.
    let phase = instance.record().map(|r| r.phase);
    let wanted = matches!(phase, Ok(Phase::Frozen | Phase::Stopped));
    if (!kept && !wanted) || phase.is_err() {
        instance.discard()?;
    }
    result
}

/// Holds the machine file; brought into the store, or made, where it is not there yet.
fn pin(what: &What, run: &Run, global: &Global, home: &Home) -> Result<Pin> {
    let there = match what {
        What::File(path) => home.store.recognise(path)?,
        What::Stored(_) | What::Source(_) => None,
        What::BuiltIn => build::built_in_ready(&home.store)?,
    };
    if let Some(pin) = there {
        return Ok(pin);
    }
    // From here on it may take long.
    interrupt::watch().context(WATCHING)?;
    if let What::Source(source) = what {
        let steps = Steps::new(silent(global), global.verbose);
        let pin = source.base(home, &steps).map_err(|error| resolve::not_had(run.words.first(), error))?;
        steps.finish();
        return Ok(pin);
    }
    if *what != What::BuiltIn {
        return resolve::fetch(what, home);
    }
    let steps = Steps::new(silent(global), global.verbose);
    let plan = Plan::new(Mode::Resume, &run.engine);
    std::fs::create_dir_all(&home.dirs.cache).context("making the cache directory")?;
    let log = home.dirs.cache.join("built-in.log");
    let options = launch::vmm_options(&plan, home.dirs.cache.clone(), Some(log))?;
    let pin = build::built_in(&home.store, &options, &steps)?;
    steps.finish();
    Ok(pin)
}

/// What the flags mean for this file.
fn plan(run: &Run, argv: &[String], what: &What, pin: &Pin, store: &Store) -> Result<Plan> {
    let file = pin.open()?;
    let net = resolve::network(run)?;
    // The frozen built-in machine has no network device; booting its base takes about a second.
    let cold = run.cold
        || !file.is_snapshot()
        || (*what == What::BuiltIn && (net.switch == Some(true) || !run.keep.network.is_empty()));
    let snapshot = match cold && run.snapshot.is_none() {
        true => None,
        false => {
            let point = instance::find(&file, run.snapshot.as_deref());
            Some(point.with_context(|| what.label())?.info.name)
        }
    };
    if !cold && (run.cpus.is_some() || run.memory.is_some()) {
        bail!(
            "--cpus and --memory cannot change a machine that is resumed; add --cold to boot its base with them"
        );
    }
    if !cold && argv.is_empty() && *what != What::BuiltIn {
        let given = [("-e", !run.process.env.is_empty()), ("-w", run.process.workdir.is_some())];
        if let Some((flag, _)) = given.iter().find(|g| g.1) {
            bail!(
                "{flag} cannot change a service that is resumed; add --cold to start it anew, or name a command"
            );
        }
    }
    let memory =
        run.memory.as_deref().map(str::parse::<spec::Size>).transpose().map_err(anyhow::Error::msg)?;
    let mut plan = Plan::new(if cold { Mode::Cold } else { Mode::Resume }, &run.engine);
    plan.snapshot = snapshot;
    plan.cpus = run.cpus;
    plan.hostname = run.hostname.as_deref().map(resolve::hostname).transpose()?;
    plan.memory = memory.map(|s| s.0);
    plan.net = net;
    plan.mounts = mounts::parse_all(&run.mounts)?;
    plan.networks = run.keep.network.clone();
    plan.hooks = resolve::hooks(&run.keep.hooks)?;
    plan.gdb = run.keep.gdb;
    plan.limits = Limits::of(&run.keep);
    (plan.restart, plan.health) = keeper::resolve(&run.keep, run.detach)?;
    let timeout = run.timeout.as_deref().map(str::parse::<spec::Duration>);
    let timeout = timeout.transpose().map_err(anyhow::Error::msg)?;
    plan.timeout_ms = timeout.map(|limit| u64::try_from(limit.0.as_millis()).unwrap_or(u64::MAX));
    plan.ports = ports(run, pin, store)?;
    // An image's command stands in its service's place, as with docker: behind the entrypoint.
    let image = match cold && *what != What::BuiltIn {
        true => Media::open_in(store, store.pin(&pin.id())?)?.spec.image,
        false => None,
    };
    let hands_on = (run.process.interactive || run.process.tty) && !run.detach;
    let words = match &image {
        Some(image) if !argv.is_empty() || hands_on => image.argv(argv),
        _ => argv.to_vec(),
    };
    if words.is_empty() {
        plan.env = resolve::environment(&run.process)?;
        plan.workdir = run.process.workdir.clone();
    } else {
        plan.command = Some(resolve::exec(&run.process, &words)?);
        plan.no_service = image.is_some();
    }
    if run.deterministic || run.lockstep || run.states_to_stdin {
        deterministic(&mut plan)?;
    }
    Ok(plan)
}

/// The TCP ports to publish.
fn ports(run: &Run, pin: &Pin, store: &Store) -> Result<Vec<Publish>> {
    let named = run.publish.iter().filter(|p| !p.ends_with("/udp"));
    let mut ports: Vec<Publish> = named.map(|p| resolve::publish(p)).collect::<Result<_>>()?;
    if run.publish_all {
        ports.extend(publish_all(&ports, pin, store)?);
    }
    Ok(ports)
}

/// The ports that the machine says it listens on and that are not in `named`, each as any free port of loopback.
fn publish_all(named: &[Publish], pin: &Pin, store: &Store) -> Result<Vec<Publish>> {
    let all = Media::open_in(store, store.pin(&pin.id())?)?.spec.tcp_ports();
    if all.is_empty() {
        tell!("smolvm: -P: this machine names no port that it listens on; -p HOST:GUEST publishes one");
    }
    let new = all.into_iter().filter(|guest| named.iter().all(|publish| publish.guest != *guest));
    let host = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    Ok(new.map(|guest| Publish { host, guest }).collect())
}

/// Makes the run repeatable, or says why it cannot be.
fn deterministic(plan: &mut Plan) -> Result<()> {
    if plan.mode != Mode::Resume {
        bail!(
            "--deterministic resumes a frozen machine, and this file holds none; `smolvm build` makes one that does"
        );
    }
    let Some(command) = &mut plan.command else {
        bail!("--deterministic runs a command, its only input: name one");
    };
    // What this host is set to is no part of the command line.
    command.host_env.clear();
    plan.net.switch = Some(false);
    plan.health = None;
    if !plan.mounts.is_empty() || !plan.networks.is_empty() || plan.gdb.is_some() {
        bail!(
            "--deterministic takes no folder, volume, network or debugger: what comes from there is no part of the file"
        );
    }
    if plan.engine == "kvm" {
        bail!("--deterministic counts time in instructions, which --engine kvm cannot; use soft");
    }
    plan.engine = "soft".into();
    plan.repeatable = true;
    Ok(())
}

/// Why soft was chosen, for who wants to know (`smolvm doctor` says it, too).
fn tell_engine(plan: &Plan, global: &Global) {
    if plan.engine != "auto" || !global.verbose {
        return;
    }
    let report = machine::choose(machine::EngineChoice::Auto);
    if !report.why.is_empty() {
        tell!("smolvm: engine {}: {}", report.engine, report.why);
    }
}

/// Writes down what the instance is, for other commands and for its next start.
fn record(
    instance: &Instance,
    run: &Run,
    what: &What,
    pin: &Pin,
    plan: &Plan,
    ports: Vec<(String, u16)>,
    kept: bool,
) -> Result<()> {
    let source = what.label();
    let labels = run.label.iter().map(|l| {
        let (k, v) = l.split_once('=').unwrap_or((l, ""));
        (k.to_owned(), v.to_owned())
    });
    instance.write_record(&Record {
        name: instance.name().to_owned(),
        file: pin.id().to_string(),
        source,
        created_ms: now().as_millis() as u64,
        phase: Phase::Running,
        // In the background its own process says so when it runs it.
        pid: if run.detach { 0 } else { std::process::id() },
        engine: plan.engine.clone(),
        command: plan.command.as_ref().map(|c| c.argv.clone()).unwrap_or_default(),
        kept,
        ports,
        labels: labels.collect(),
        exit_code: None,
        forked_from: None,
        networks: plan.networks.clone(),
        restarts: 0,
        health: None,
        session: None,
        fresh: false,
        udp_ports: launch::published_udp(plan),
    })?;
    vmm::write_plan(instance, plan, if kept { Lasting::Power } else { Lasting::Kill })
}

/// What the end of a run in the foreground is for.
struct After {
    /// The instance goes with it.
    discarded: Option<Undo>,
    /// Another run that must have ended in the same state.
    reference: Option<Reference>,
}

fn foreground(
    instance: &Arc<Instance>,
    media: &Media,
    plan: &Plan,
    bound: Vec<instance::forward::Bound>,
    run: &Run,
    after: After,
    record: impl FnOnce() -> Result<()>,
) -> Result<u8> {
    let late = Arc::new(AtomicBool::new(false));
    let command = command(&media.spec, plan, run)?;
    // What its service says from the resume on is shown, of one that was started anew all.
    let since = (plan.mode == Mode::Resume).then(now);
    let started = launch::start(instance, media, plan, bound, launch::Group::default(), command, record)?;
    let ending = Arc::new(launch::Ending::default());
    let vmm = started.vmm.clone();
    let control = launch::Control { vmm: vmm.clone(), instance: instance.clone(), ending: ending.clone() };
    // Whoever knocks now waits until the guest is awake.
    let listening = control::listen(instance)?;
    let mut running = started.up()?;
    running.notes.iter().for_each(|note| tell!("smolvm: {note}"));
    let _server = listening.serve(Arc::new(control))?;
    if let Some(limit) = plan.timeout_ms {
        end_after(vmm.clone(), Duration::from_millis(limit), late.clone());
    }
    let code = match join(&mut running, plan, since) {
        Ok(code) => code,
        // A stream that broke ends just before its machine does.
        Err(e) => match vmm.machine().wait(Some(END_AFTER_STREAM)) {
            Some(outcome) => ended(&outcome, instance, late.load(Ordering::Acquire))?,
            None => return Err(e),
        },
    };
    trace::point("joined");
    if plan.repeatable {
        // The guest ends it, by closing the command's stream.
        vmm.machine().wait(None);
        let machine = vmm.machine();
        let instructions = machine.instructions().unwrap_or_default();
        let state = format!("{} after {instructions} instructions", machine.state_digest()?);
        tell!("smolvm: state {state}");
        after.reference.map_or(Ok(()), |reference| reference.finish(&state))?;
    }
    if vmm.machine().outcome().is_none() {
        if after.discarded.is_none() {
            vmm.stop(10_000, Some(&instance.saved()))?;
            instance.update(|r| (r.phase, r.exit_code) = (Phase::Stopped, Some(code)))?;
        } else if !vmm.volumes().is_empty() {
            // Its disk is discarded, its volumes are not.
            vmm.stop(10_000, None)?;
        }
        vmm.machine().end();
    }
    trace::instructions(vmm.machine());
    ending.settle();
    Ok(code)
}

/// The exit code of a machine that ended before its command: by a verb of another process, by
/// `--timeout`, or by itself.
fn ended(outcome: &Outcome, instance: &Instance, late: bool) -> Result<u8> {
    match outcome {
        Outcome::Stopped if late => Ok(TIMED_OUT),
        // `kill` writes that it was dead; frozen or stopped is not this command's failure.
        Outcome::Stopped if instance.record()?.phase == Phase::Dead => Ok(128 + 9),
        Outcome::Stopped | Outcome::PowerOff => Ok(0),
        _ => bail!(
            "the machine {outcome}; its kernel's last words:\n{}",
            std::fs::read_to_string(instance.path("kernel.log")).unwrap_or_default().trim_end()
        ),
    }
}

fn end_after(vmm: Arc<Vmm>, limit: Duration, late: Arc<AtomicBool>) {
    let _ = std::thread::Builder::new().name("timeout".into()).spawn(move || {
        if vmm.machine().wait(Some(limit)).is_none() {
            tell!("smolvm: ended after {} s (--timeout)", limit.as_secs_f64());
            late.store(true, Ordering::Release);
            vmm.sync_volumes(launch::SYNC_LIMIT);
            vmm.machine().end();
        }
    });
}

/// What to run in the machine beside its service: the command, or a shell where there is no service.
fn command(spec: &MachineSpec, plan: &Plan, run: &Run) -> Result<Option<Target>> {
    let (tty, interactive) = (run.process.tty, run.process.interactive);
    let (command, tty, stdin) = match &plan.command {
        Some(command) => (command.clone(), tty, interactive || tty),
        None if spec.service.is_none() => {
            let shell = Exec { argv: vec!["/bin/sh".into()], ..resolve::exec(&run.process, &[])? };
            use std::io::IsTerminal;
            (shell, tty || std::io::stdin().is_terminal(), true)
        }
        None => return Ok(None),
    };
    let mut exec = command.spec(&Defaults::of(spec));
    exec.stdin = stdin;
    exec.tty = tty.then(Target::window);
    Ok(Some(Target::Exec(exec)))
}

/// Joins the command, or the service's output where there is none.
fn join(running: &mut Running, plan: &Plan, since: Option<Duration>) -> Result<u8> {
    let Some(mut session) = running.session()? else { return follow(&running.vmm, since) };
    running.vmm.set_main(plan.main(session.started.session));
    trace::point("command_runs");
    session.take_signals();
    let _others = interrupt::leave_to_others();
    Ok(session.join()?.code())
}

/// The first signal stops the machine, a second one ends it at once. The number of the first.
fn stop_on_signal(vmm: Arc<Vmm>) -> Result<Arc<OnceLock<u8>>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let first = Arc::new(OnceLock::new());
    let told = first.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if told.set(signal as u8).is_err() {
                vmm.machine().end();
                continue;
            }
            let vmm = vmm.clone();
            let stop = move || {
                let _ = vmm.stop(10_000, None);
                vmm.machine().end();
            };
            let _ = std::thread::Builder::new().name("stop".into()).spawn(stop);
        }
    })?;
    Ok(first)
}

/// The date, since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Follows the service's output, all or from a date on, until it ends; Ctrl-C stops the machine.
fn follow(vmm: &Arc<Vmm>, since: Option<Duration>) -> Result<u8> {
    let signal = stop_on_signal(vmm.clone())?;
    let _others = interrupt::leave_to_others();
    // The guest's clock was set right before its processes went on, and is no earlier.
    let spec = LogsSpec { follow: true, tail: None, since_ns: since.map(|since| since.as_nanos() as u64) };
    let followed = instance::logs::read(vmm.connect()?, spec, |record| {
        use std::io::Write;
        let _ = match record.stream {
            LogStream::Stdout => std::io::stdout().write_all(&record.bytes),
            LogStream::Stderr => std::io::stderr().write_all(&record.bytes),
        };
        true
    });
    if let Some(signal) = signal.get() {
        return Ok(128 + signal);
    }
    followed?;
    let exit = agent_protocol::Client::new(vmm.connect()?).wait(SERVICE_SESSION)?;
    Ok(exit.code())
}
