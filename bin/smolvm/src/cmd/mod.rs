//! One verb, one file.

mod attach;
mod balloon;
mod build;
mod copies;
mod cp;
mod define;
mod delta;
mod demo;
mod diff;
mod doctor;
mod end;
mod events;
mod exec;
mod files;
mod fork;
mod inspect;
mod lockstep;
mod logs;
mod net;
mod outdated;
mod prune;
mod ps;
mod rebuild;
mod rescue;
mod rightsize;
mod run;
mod snapshot;
mod start;
mod stats;
mod system;
mod update;
mod version;
mod vmm;
mod volume;
mod wait;

pub use vmm::read_plan as plan_of;

use anyhow::{Context, Result};

use crate::args::{Args, Global, Verb};
use crate::launch::Home;

/// Exit code when `--timeout` ended it, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// What [`crate::interrupt`] could not do.
const WATCHING: &str = "watching for signals";

/// Does it; the exit code.
///
/// # Errors
/// What stands in the way, told whole.
pub fn run(args: Args) -> Result<u8> {
    let code = verb(args)?;
    crate::ui::say::whole()?;
    Ok(code)
}

fn verb(args: Args) -> Result<u8> {
    let global = &args.global;
    if matches!(args.verb, Verb::Vmm(_) | Verb::Copies { .. }) {
        // Where it cannot be done a machine is started all the same.
        let _ = host::close_inherited();
    }
    if args.verb.makes_something() {
        crate::interrupt::watch().context(WATCHING)?;
    }
    match args.verb {
        Verb::Demo(demo) => demo::demo(&demo, global),
        Verb::Init(init) => define::init(&init),
        Verb::Check(check) => define::check(&check, global),
        Verb::Build(build) => build::build(&build, global),
        Verb::Run(run) => run::run(&run, global),
        Verb::Exec(exec) => exec::exec(&exec, &Home::open()?),
        Verb::Shell(shell) => exec::shell(&shell, &Home::open()?),
        Verb::Attach(attach) => attach::attach(&attach, &Home::open()?),
        Verb::Ps(ps) => ps::ps(&ps, global, &Home::open()?),
        Verb::Stats(stats) => stats::stats(&stats, global, &Home::open()?),
        Verb::Events(events) => events::events(&events, global, &Home::open()?),
        Verb::Balloon(balloon) => balloon::balloon(&balloon, global, &Home::open()?),
        Verb::Rightsize(rightsize) => rightsize::rightsize(&rightsize, global, &Home::open()?),
        Verb::Logs(logs) => logs::logs(&logs, &Home::open()?),
        Verb::Cp(cp) => cp::cp(&cp, &Home::open()?),
        Verb::Wait(names) => wait::wait(&names, &Home::open()?),
        Verb::Freeze(names) => end::freeze(&names.names, global, &Home::open()?),
        Verb::Start(names) => start::start(&names, global, &Home::open()?),
        Verb::Stop(stop) => end::stop(&stop, global, &Home::open()?),
        Verb::Kill(names) => end::kill(&names, &Home::open()?),
        Verb::Rm(rm) => end::rm(&rm, &Home::open()?),
        Verb::Snapshot(snapshot) => snapshot::snapshot(&snapshot, global, &Home::open()?),
        Verb::Fork(fork) => fork::fork(&fork, global, &Home::open()?),
        Verb::Diff(diff) => diff::diff(&diff, global, &Home::open()?),
        Verb::Inspect(inspect) => inspect::inspect(&inspect, global, &Home::open()?),
        Verb::Verify(files) => files::verify(&files, global),
        Verb::Import(import) => files::import(&import, global, &Home::open()?),
        Verb::Images => files::images(global, &Home::open()?),
        Verb::Prune(words) => prune::prune(&words, global, &Home::open()?),
        Verb::System(words) => system::system(&words, global, &Home::open()?),
        Verb::Volume(volume) => volume::volume(&volume, global, &Home::open()?),
        Verb::Delta(words) => delta::delta(&words, global),
        Verb::Update(words) => update::update(&words, global, &Home::open()?),
        Verb::Outdated(words) => outdated::outdated(&words, global, &Home::open()?),
        Verb::Rebuild(words) => rebuild::rebuild(&words, global, &Home::open()?),
        Verb::Net(net) => net::net(&net, global, &Home::open()?),
        Verb::Doctor(doctor) => doctor::doctor(&doctor, global),
        Verb::Version => version::version(global),
        Verb::Completions(c) => version::completions(&c),
        Verb::Man => version::man(),
        Verb::Vmm(args) => vmm::vmm(&args.name, &Home::open()?),
        Verb::Copies { names } => copies::copies(&names, &Home::open()?),
    }
}

/// Whether to print nothing but results.
fn silent(global: &Global) -> bool {
    global.quiet || global.json
}
