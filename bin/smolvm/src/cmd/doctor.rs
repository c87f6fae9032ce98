//! `doctor`: what this host can do, and whether all that is kept is whole (`doctor/kept.rs`); whether it can run a
//! file, and what is missing if not; the engines against each other.

mod kept;
mod matrix;

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Result;
use artifact::MachineFile;
use machine::{EngineChoice, EngineKind, Examined, Seen, SelfTest, Skipped, Verdict};
use serde_json::{Value, json};
use spec::MachineSpec;

use crate::args::{Doctor, Global};
use crate::cmd::{files, version};
use crate::launch::Home;
use crate::ui::say::say;
use crate::ui::{self, Steps};
use build::Progress;
use kept::Fault;
use matrix::MachineLeg;

/// Exit code when the answer is no.
const NO: u8 = 1;

pub fn doctor(doctor: &Doctor, global: &Global) -> Result<u8> {
    let choice = doctor.engine.engine.parse().map_err(anyhow::Error::msg)?;
    match &doctor.file {
        _ if doctor.selftest => selftest(global),
        Some(path) => file(path, choice, global),
        None if doctor.repair => repair(global),
        None => this_host(choice, global),
    }
}

fn this_host(choice: EngineChoice, global: &Global) -> Result<u8> {
    let chosen = machine::choose(choice);
    let kvm = machine::kvm_report();
    let places = places();
    let host = host();
    let limits = host::can_limit().map_err(|e| e.to_string());
    if global.json {
        let faults = look(false, global)?;
        ui::json(&json!({
            "version": version::versions(), "host": host, "engine": chosen, "kvm": kvm, "places": places,
            "limits": { "work": limits.is_ok(), "how": limits.map_or_else(|why| why, str::to_owned) },
            "faults": faults,
        }))?;
        return Ok(verdict_of(&faults));
    }
    say!("smolvm   {}", version::line());
    let text = |key: &str| host[key].as_str().unwrap_or("?").to_owned();
    say!("host     {} {}, {} cores, {}", text("system"), text("kernel"), host["cores"], text("memory"));
    say!("         {}", text("cpu"));
    let why = if chosen.why.is_empty() { String::new() } else { format!(": {}", chosen.why) };
    say!("engine   {}{why}", chosen.engine);
    if chosen.engine == EngineKind::Soft {
        say!("         soft needs no KVM and no rights; a guest runs several times slower than on hardware");
    }
    say!("kvm      {}", if kvm.recommended { "usable" } else { "not used by `auto`" });
    for fact in &kvm.facts {
        let sign = if fact.good { '+' } else { '-' };
        say!("  {sign} {:<17} {}", fact.name, fact.value);
        say!("    {:<17} {}", "", fact.explanation);
    }
    match &limits {
        Ok(version) => say!("limits   --memory-limit and --cpu-limit work ({version})"),
        Err(why) => say!("limits   --memory-limit and --cpu-limit do not work here: {why}"),
    }
    for place in places.as_array().into_iter().flatten() {
        let free = place["free_bytes"].as_u64().map_or("?".into(), ui::bytes);
        say!(
            "{:<8} {}, {free} free",
            place["what"].as_str().unwrap_or_default(),
            place["path"].as_str().unwrap_or_default()
        );
    }
    let faults = look(false, global)?;
    match faults.len() {
        0 => say!("kept     all of it is whole"),
        n => say!("kept     {n} faults; `smolvm doctor --repair` sees to those that it can mend"),
    }
    faults.iter().for_each(say_fault);
    Ok(verdict_of(&faults))
}

fn repair(global: &Global) -> Result<u8> {
    let faults = look(true, global)?;
    let left = faults.iter().filter(|fault| !fault.repaired).count();
    if global.json {
        ui::json(&json!({ "faults": faults }))?;
    } else if !global.quiet {
        match (faults.len(), left) {
            (0, _) => say!("nothing to repair: all that is kept is whole"),
            (n, 0) => say!("{n} faults, all repaired"),
            (n, left) => say!("{n} faults, {left} of which are left to you"),
        }
        faults.iter().for_each(say_fault);
    }
    Ok(verdict_of(&faults))
}

fn look(repair: bool, global: &Global) -> Result<Vec<Fault>> {
    // To people it is told what takes the time; in a log it would be noise.
    let steps = Steps::new(global.quiet || global.json || !std::io::stderr().is_terminal(), global.verbose);
    let faults = kept::check(&Home::open()?, repair, &|what| steps.step(what));
    steps.finish();
    faults
}

fn say_fault(fault: &Fault) {
    let remedy = match (&fault.remedy, fault.repaired) {
        (Some(remedy), true) => format!(": {remedy}"),
        (Some(remedy), false) => format!(" (would be {remedy})"),
        (None, _) => String::new(),
    };
    say!("  - {} {}{remedy}", fault.about, fault.what);
}

fn verdict_of(faults: &[Fault]) -> u8 {
    if faults.iter().all(|fault| fault.repaired) { 0 } else { NO }
}

fn host() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    json!({
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory": ui::bytes(machine::host_memory()),
        "memory_bytes": machine::host_memory(),
        "root": rustix::process::geteuid().is_root(),
    })
}

/// Where smolvm keeps things, and how much fits there.
fn places() -> Value {
    let Ok(home) = Home::open() else { return json!([]) };
    let place = |what: &str, path: &Path| {
        // A directory that is not there yet has its parent's room.
        let free = path.ancestors().find_map(|dir| artifact::space::available(dir).ok());
        json!({ "what": what, "path": path, "free_bytes": free })
    };
    json!([
        place("store", &home.dirs.store()),
        place("machines", &home.dirs.instances()),
        place("cache", &home.dirs.cache)
    ])
}

fn file(path: &Path, choice: EngineChoice, global: &Global) -> Result<u8> {
    let file = files::open(path)?;
    let (spec, lacks) = specification(&file)?;
    let seen = machine::examine(&file)?;
    let mut verdict = machine::verdict(choice, &seen, spec.as_ref().map_or(0, |spec| spec.memory));
    verdict.missing.extend(lacks);
    let runs = verdict.missing.is_empty();
    if global.json {
        ui::json(&json!({
            "file": path,
            "runs": runs,
            "verdict": verdict,
            "kind": if matches!(seen, Seen::Base) { "base" } else { "snapshot" },
            "builds_on": file.parent().map(|id| id.to_string()),
            "vcpus": spec.as_ref().map(|spec| spec.vcpus),
            "memory_bytes": spec.as_ref().map(|spec| spec.memory),
            "state": seen.examined(),
        }))?;
        return Ok(if runs { 0 } else { NO });
    }
    if let Some(spec) = &spec {
        say!("machine  {}, {} vCPUs, {}", spec.name.escape_debug(), spec.vcpus, ui::bytes(spec.memory));
    }
    if let Some(id) = file.parent() {
        say!("builds   on machine {}: it holds what changed since", id.short());
    }
    match &seen {
        Seen::Base => say!("frozen   never: it is a base and boots"),
        Seen::Frozen(state) => frozen(state)?,
        Seen::Newer(_) => {}
    }
    say(path, &verdict);
    Ok(if runs { 0 } else { NO })
}

/// What the file says of its machine; of one that holds changes, what it builds on says so, or that is missing.
fn specification(file: &MachineFile) -> Result<(Option<MachineSpec>, Option<String>)> {
    let Some(id) = file.parent() else { return Ok((Some(instance::read_spec(file)?), None)) };
    let missing = || format!("machine {id}, which it builds on: `smolvm import` that machine's file");
    match Home::open()?.store.pin(&id) {
        Ok(pin) => Ok((Some(instance::read_spec(&pin.open()?)?), None)),
        Err(_) => Ok((None, Some(missing()))),
    }
}

fn frozen(state: &Examined) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let age = ui::span(now.saturating_sub(state.frozen_realtime_ns) / 1_000_000_000);
    say!("frozen   {age} ago on {}, TSC {} kHz", state.frozen_on, state.tsc_khz);
    say!("cpu      portable template {}: {}", state.template_version, state.features.join(" "));
    let devices: Vec<String> = state.devices.iter().map(|d| d.escape_debug().to_string()).collect();
    say!("devices  state version {}: {}", state.state_version, devices.join(" "));
    Ok(())
}

fn say(path: &Path, verdict: &Verdict) {
    let why =
        if verdict.engine.why.is_empty() { String::new() } else { format!(" ({})", verdict.engine.why) };
    if verdict.missing.is_empty() {
        say!("runs     on {}{why}", verdict.engine.engine);
        return;
    }
    say!("{} does not run here on {}; missing:", path.display(), verdict.engine.engine);
    verdict.missing.iter().for_each(|name| say!("  - {name}"));
}

fn selftest(global: &Global) -> Result<u8> {
    let mut test = machine::selftest();
    let steps = Steps::new(global.quiet || global.json || !std::io::stderr().is_terminal(), global.verbose);
    let processors = processors(&mut test);
    let legs = matrix::run(processors, &|what| steps.step(what));
    steps.finish();
    let legs = legs?;
    let passed = test.passed && legs.iter().all(|leg| leg.passed);
    if global.json {
        let mut shown = serde_json::to_value(&test)?;
        shown["passed"] = passed.into();
        shown["machines"] = serde_json::to_value(&legs)?;
        ui::json(&json!({ "version": version::versions(), "host": host(), "selftest": shown }))?;
    } else {
        tell(&test);
        tell_machines(&legs);
    }
    Ok(if passed { 0 } else { NO })
}

/// Of how many vCPUs whole machines are moved.
fn processors(test: &mut SelfTest) -> &'static [u32] {
    if !test.legs.iter().any(|leg| leg.to == EngineKind::Kvm) {
        return &[];
    }
    let Err(why) = machine::kvm_works_well() else { return &[1, 2, 3, 4] };
    test.skipped.push(Skipped { what: "machines of more than one vCPU, which would take minutes", why });
    &[1]
}

fn tell_machines(legs: &[MachineLeg]) {
    if !legs.is_empty() {
        say!("machines moved in the midst of work (computations, lines brought to the disk):");
    }
    for leg in legs {
        let how = match leg.passed {
            true => format!("ok, CPUs stood still for {} µs, up after {} ms", leg.pause_us, leg.resume_ms),
            false => format!("FAILED: {}", leg.failure),
        };
        say!("  {} vCPUs, {} -> {}: {how}", leg.vcpus, leg.from, leg.to);
    }
}

fn tell(test: &SelfTest) {
    say!("a computation moved between engines at eight points, its timer armed, TSC {} kHz:", test.tsc_khz);
    for leg in &test.legs {
        let how = if leg.passed {
            format!("ok, save {} µs, restore {} µs", leg.save_us, leg.restore_us)
        } else {
            format!("FAILED: {}", leg.failure)
        };
        say!("  {} -> {}: {how}", leg.from, leg.to);
    }
    for skipped in &test.skipped {
        say!("  not tried: {}: {}", skipped.what, skipped.why);
    }
}
