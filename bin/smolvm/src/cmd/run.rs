//! `run`: resume (or boot) a machine and execute.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_protocol::{LogStream, LogsSpec, SERVICE_SESSION};
use anyhow::{Context, Result, bail};
use instance::session::{self, Target};
use instance::{Instance, Phase, Record, Vmm};
use machine::Outcome;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use store::{Pin, Store};

use crate::args::{Global, Run};
use crate::cmd::{silent, vmm};
use crate::interrupt::{self, Undo};
use crate::launch::{self, Defaults, Exec, Home, Mode, Plan, Running};
use crate::resolve::{self, What};
use crate::ui::Steps;

/// How long a machine may take to end after its agent went.
const END_AFTER_STREAM: Duration = Duration::from_secs(2);
/// Exit code when `--timeout` ended it, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

pub fn run(run: &Run, global: &Global) -> Result<u8> {
    let home = Home::open()?;
    let (what, argv) = resolve::split(&run.words, no_what(), &home)?;
    let pin = pin(&what, run, global, &home)?;
    let plan = plan(run, &argv, &what, &pin)?;
    tell_engine(&plan, global);
    let name = match &run.name {
        Some(name) => name.clone(),
        None => instance::new_name(&home.dirs),
    };
    let kept = (run.name.is_some() || run.detach) && !run.rm;
    let bound = launch::bind_ports(&plan.ports)?;
    let make = || Instance::create(&home.dirs, &name).map(Arc::new);
    let (instance, undo) = interrupt::making(make, |instance| {
        let (instance, name) = (Arc::downgrade(instance), name.clone());
        move || match instance.upgrade() {
            Some(instance) => drop(instance.discard()),
            None => vmm::forget(&name),
        }
    })?;
    let prepared = prepare(&instance, run, &what, &pin, &plan, kept, &home);
    if let Err(e) = prepared {
        instance.discard()?;
        return Err(e);
    }
    if run.detach {
        drop(bound);
        return vmm::detach(instance, global, Some(undo));
    }
    let result = foreground(&instance, pin, &home.store, &plan, bound, run, (!kept).then_some(undo));
    // Frozen or stopped by name meanwhile: it is wanted.
    let wanted = instance.record().is_ok_and(|r| matches!(r.phase, Phase::Frozen | Phase::Stopped));
    if !kept && !wanted {
        instance.discard()?;
    }
    result
}

/// Whether the words began with `--`, which clap swallows: there is no WHAT then.
fn no_what() -> bool {
    let words: Vec<String> = std::env::args().collect();
    let Some(verb) = words.iter().position(|w| w == "run") else { return false };
    let Some(dashes) = words.iter().skip(verb).position(|w| w == "--") else { return false };
    // Nothing but flags (and their values) between `run` and `--`: ask clap what the words are.
    let before = words.get(verb + 1..verb + dashes).unwrap_or_default();
    let mut alone = vec!["smolvm".to_owned(), "run".to_owned()];
    alone.extend(before.iter().cloned());
    use clap::Parser;
    match crate::args::Args::try_parse_from(alone).map(|a| a.verb) {
        Ok(crate::args::Verb::Run(run)) => run.words.is_empty(),
        _ => false,
    }
}

fn pin(what: &What, run: &Run, global: &Global, home: &Home) -> Result<Pin> {
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
fn plan(run: &Run, argv: &[String], what: &What, pin: &Pin) -> Result<Plan> {
    let file = pin.open()?;
    let net = resolve::network(run)?;
    // The frozen built-in machine has no network device; booting its base takes about a second.
    let cold = run.cold || !file.is_snapshot() || (*what == What::BuiltIn && net.switch == Some(true));
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
    plan.ports = run
        .publish
        .iter()
        .filter(|p| !p.ends_with("/udp"))
        .map(|p| resolve::publish(p))
        .collect::<Result<_>>()?;
    if argv.is_empty() {
        plan.env = resolve::environment(&run.process)?;
        plan.workdir = run.process.workdir.clone();
    } else {
        plan.command = Some(resolve::exec(&run.process, argv)?);
    }
    Ok(plan)
}

/// Why soft was chosen, for who wants to know (`smolvm doctor` says it, too).
fn tell_engine(plan: &Plan, global: &Global) {
    if plan.engine != "auto" || !global.verbose {
        return;
    }
    let report = machine::choose(machine::EngineChoice::Auto);
    if !report.why.is_empty() {
        eprintln!("smolvm: engine {}: {}", report.engine, report.why);
    }
}

fn prepare(
    instance: &Instance,
    run: &Run,
    what: &What,
    pin: &Pin,
    plan: &Plan,
    kept: bool,
    home: &Home,
) -> Result<()> {
    let source = what.label();
    let labels = run.label.iter().map(|l| {
        let (k, v) = l.split_once('=').unwrap_or((l, ""));
        (k.to_owned(), v.to_owned())
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    instance.write_record(&Record {
        name: instance.name().to_owned(),
        file: pin.id().to_string(),
        source,
        created_ms: now.as_millis() as u64,
        phase: Phase::Running,
        pid: std::process::id(),
        engine: plan.engine.clone(),
        command: plan.command.as_ref().map(|c| c.argv.clone()).unwrap_or_default(),
        kept,
        ports: plan.ports.iter().map(|p| (p.host.to_string(), p.guest)).collect(),
        labels: labels.collect(),
        exit_code: None,
        forked_from: None,
    })?;
    if kept {
        home.store.add_reference(pin, &instance.path(""))?;
    }
    vmm::write_plan(instance, plan)
}

fn foreground(
    instance: &Arc<Instance>,
    pin: Pin,
    store: &Store,
    plan: &Plan,
    bound: Vec<instance::forward::Bound>,
    run: &Run,
    discarded: Option<Undo>,
) -> Result<u8> {
    let limit =
        run.timeout.as_deref().map(str::parse::<spec::Duration>).transpose().map_err(anyhow::Error::msg)?;
    let late = Arc::new(AtomicBool::new(false));
    let Running { vmm, .. } = launch::start(instance, pin, store, plan, bound, None)?;
    let ending = Arc::new(launch::Ending::default());
    let control = launch::Control { vmm: vmm.clone(), instance: instance.clone(), ending: ending.clone() };
    let _server = launch::serve(control)?;
    if let Some(limit) = limit {
        end_after(vmm.clone(), limit.0, late.clone());
    }
    let code = match join(&vmm, plan, run) {
        Ok(code) => code,
        // A stream that broke ends just before its machine does.
        Err(e) => match vmm.machine().wait(Some(END_AFTER_STREAM)) {
            Some(outcome) => ended(&outcome, instance, late.load(Ordering::Acquire))?,
            None => return Err(e),
        },
    };
    if vmm.machine().outcome().is_none() {
        if discarded.is_none() {
            vmm.stop(10_000, Some(&instance.saved()))?;
            instance.update(|r| (r.phase, r.exit_code) = (Phase::Stopped, Some(code)))?;
        }
        vmm.machine().end();
    }
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
            eprintln!("smolvm: ended after {} s (--timeout)", limit.as_secs_f64());
            late.store(true, Ordering::Release);
            vmm.machine().end();
        }
    });
}

/// Joins the command, the service's output, or a shell, whichever was asked for.
fn join(vmm: &Arc<Vmm>, plan: &Plan, run: &Run) -> Result<u8> {
    let tty = run.process.tty;
    if let Some(command) = &plan.command {
        return session(vmm, command, tty, run.process.interactive || tty);
    }
    if vmm.spec().service.is_none() {
        let shell = Exec { argv: vec!["/bin/sh".into()], ..resolve::exec(&run.process, &[])? };
        use std::io::IsTerminal;
        return session(vmm, &shell, tty || std::io::stdin().is_terminal(), true);
    }
    follow(vmm)
}

fn session(vmm: &Vmm, command: &Exec, tty: bool, stdin: bool) -> Result<u8> {
    let mut spec = command.spec(&Defaults::of(vmm.spec()));
    spec.stdin = stdin;
    spec.tty = tty.then(Target::window);
    let mut session = session::start(vmm.connect()?, &Target::Exec(spec))?;
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

/// Follows the service's output until it ends; Ctrl-C stops the machine.
fn follow(vmm: &Arc<Vmm>) -> Result<u8> {
    let signal = stop_on_signal(vmm.clone())?;
    let _others = interrupt::leave_to_others();
    let spec = LogsSpec { follow: true, tail: Some(0), since_ns: None };
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
