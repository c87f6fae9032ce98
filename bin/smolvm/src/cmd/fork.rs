//! `fork`: running copies of a running machine; it goes on.
//!
//! The machine's own process writes once what the copies need: its state, and what differs from the
//! machine file that it came from. Then each copy is a process of its own that maps both
//! (`copies.rs`): they share every page until they write it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use instance::control::{Client, Request};
use instance::{Instance, Phase, Record};
use serde_json::{Value, json};
use store::Pin;

use crate::args::{Fork, Global};
use crate::cmd::end::end_now;
use crate::cmd::vmm::{self, Said, Word, Words};
use crate::interrupt;
use crate::launch::{Home, Mode, Plan};
use crate::ui;
use crate::ui::say::{say, tell};

pub fn fork(fork: &Fork, global: &Global, home: &Home) -> Result<u8> {
    let (begun, begun_ns) = (Instant::now(), now_ns());
    let source = Instance::open(&home.dirs, &fork.name)?;
    let client = Client::new(&source)?;
    let record = source.record()?;
    let id =
        record.file.parse().map_err(|_| anyhow!("the record of `{}` names no machine file", fork.name))?;
    let pin = home.store.pin(&id)?;
    let names = names(fork, home)?;
    let first = names.first().context("no name")?;
    let made: Made = Arc::default();
    let (made, _undo) = interrupt::making(
        || Ok::<_, anyhow::Error>(made),
        |made| {
            let made = made.clone();
            move || undo(&made)
        },
    )?;
    let copies = Copies { home, pin: &pin, record: &record, plan: vmm::read_plan(&source)?, made: &made };
    let origin = copies.make(first).inspect_err(|_| undo(&made))?.origin();
    let path = origin.to_str().context("the path of the instances is not UTF-8")?.to_owned();
    // The other directories are made while the machine writes.
    let (report, others) = std::thread::scope(|scope| {
        let others = scope.spawn(|| names.iter().skip(1).try_for_each(|name| copies.make(name).map(drop)));
        let report = client.call(&Request::Fork { path });
        (report, others.join().unwrap_or_else(|_| Err(anyhow!("making the copies' directories failed"))))
    });
    let report = match (report, others) {
        (Ok(report), Ok(())) => report,
        (Err(e), _) => {
            undo(&made);
            return Err(e.into());
        }
        (_, Err(e)) => {
            undo(&made);
            return Err(e);
        }
    };
    let engine = report.get("engine").and_then(Value::as_str).unwrap_or("soft");
    let written_us = begun.elapsed().as_micros() as u64;
    let ups = start_all(&names, &copies, engine)?;
    let total_us = begun.elapsed().as_micros() as u64;
    let last_ns = ups.iter().flatten().map(|up| up.first_run_ns).max().unwrap_or(begun_ns);
    let running_us = last_ns.saturating_sub(begun_ns) / 1000;
    let told = Told { report, written_us, running_us, total_us };
    tell(&fork.name, &names, &ups, &told, global)
}

/// NAME-1, NAME-2, …, passing over what is taken; a single one that was named has that name.
fn names(fork: &Fork, home: &Home) -> Result<Vec<String>> {
    let count = fork.count as usize;
    if let (1, Some(name)) = (count, &fork.as_name) {
        return Ok(vec![name.clone()]);
    }
    let stem = fork.as_name.as_ref().unwrap_or(&fork.name);
    let dir = home.dirs.instances();
    let numbered = (1..).map(|n: u64| format!("{stem}-{n}"));
    let free = numbered.take(count + 1_000_000).filter(|name| !dir.join(name).exists());
    let names: Vec<String> = free.take(count).collect();
    if let Some(bad) = names.iter().find(|name| !spec::valid_name(name)) {
        bail!("`{bad}` cannot name a copy: at most 63 of a-z 0-9 _ . -; choose a shorter one with --name");
    }
    Ok(names)
}

/// What the copies have in common.
struct Copies<'a> {
    home: &'a Home,
    pin: &'a Pin,
    record: &'a Record,
    plan: Plan,
    made: &'a Made,
}

impl Copies<'_> {
    /// A copy's directory and record.
    fn make(&self, name: &str) -> Result<Instance> {
        let instance = Instance::create(&self.home.dirs, name)?;
        self.made.lock().unwrap_or_else(|e| e.into_inner()).push(name.to_owned());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = instance.write_record(&Record {
            name: name.to_owned(),
            created_ms: now.as_millis() as u64,
            phase: Phase::Dead,
            // Nobody's yet.
            pid: 0,
            kept: true,
            // Published ports are the source's.
            ports: Vec::new(),
            exit_code: None,
            forked_from: Some(self.record.name.clone()),
            ..self.record.clone()
        });
        let kept = written
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.home.store.add_passing_reference(self.pin, &instance.path(""))?));
        match kept {
            Ok(()) => Ok(instance),
            Err(e) => {
                instance.remove()?;
                Err(e)
            }
        }
    }

    /// Readies a copy for its process. One file has as many names as copies: the last one that goes
    /// takes it with it.
    fn ready(&self, name: &str, first: &str, engine: &str) -> Result<()> {
        let instance = Instance::open(&self.home.dirs, name)?;
        if name != first {
            let from = Instance::open(&self.home.dirs, first)?.origin();
            std::fs::hard_link(&from, instance.origin())
                .with_context(|| format!("naming {}", from.display()))?;
        }
        let mut plan = self.plan.clone();
        (plan.mode, plan.engine, plan.lost) = (Mode::Forked, engine.to_owned(), false);
        // The command of the source's start is among the copied processes.
        (plan.command, plan.ports) = (None, Vec::new());
        vmm::write_plan(&instance, &plan)
    }
}

/// Names of the copies whose directories were made here.
type Made = Arc<Mutex<Vec<String>>>;

/// Removes what was made, whether or not it is up.
fn undo(made: &Made) {
    for name in made.lock().unwrap_or_else(|e| e.into_inner()).drain(..) {
        if let Ok(home) = Home::open()
            && let Ok(instance) = Instance::open(&home.dirs, &name)
        {
            let _ = end_now(&instance);
            vmm::forget(&name);
        }
    }
}

/// A copy's start, in µs of its own process, and CLOCK_MONOTONIC at its first guest instruction.
struct Up {
    first_instruction_us: u64,
    agent_us: u64,
    first_run_ns: u64,
}

/// Gives each copy its file and plan and starts their processes; when all are whole they begin to run
/// together, so that the first ones do not take the processor from those that are still made.
fn start_all(names: &[String], copies: &Copies<'_>, engine: &str) -> Result<Vec<Result<Up, String>>> {
    let first = names.first().context("no name")?;
    names.iter().try_for_each(|name| copies.ready(name, first, engine))?;
    let (start, begin) = std::io::pipe().context("making a pipe")?;
    let args: Vec<&str> = ["__copies"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let log = Instance::open(&copies.home.dirs, first)?.path("vmm.log");
    let ended = |child: &Child| {
        let pid = child.id();
        move || interrupt::end_process(pid)
    };
    let (mut parent, _end) = interrupt::making(|| vmm::spawn(&args, &log, start.into()), ended)?;
    let mut words = Words::of(&mut parent);
    let mut lost: HashMap<String, String> = HashMap::new();
    let mut up = HashMap::new();
    collect(&mut words, names.len(), &mut lost, |_, word| matches!(word, Word::Whole));
    drop(begin);
    let living = names.len() - lost.len();
    collect(&mut words, living, &mut lost, |name, word| {
        let Word::Up { first_instruction_us, agent_us, first_run_ns, notes } = word else { return false };
        notes.iter().for_each(|note| tell!("smolvm: {name}: {note}"));
        up.insert(name.to_owned(), Up { first_instruction_us, agent_us, first_run_ns });
        true
    });
    // The copies are not its children any longer: they are whose they would be without `fork`.
    parent.kill()?;
    parent.wait()?;
    let mut why = |name: &String| lost.remove(name).unwrap_or_else(|| LOST.to_owned());
    let result = |name: &String| up.remove(name).ok_or_else(|| why(name));
    Ok(names.iter().map(result).collect())
}

const LOST: &str = "its process ended before it was up; see vmm.log in its directory";

/// Takes words until `count` copies have said what is `wanted`, or are lost; notes why.
fn collect(
    words: &mut Words,
    count: usize,
    lost: &mut HashMap<String, String>,
    mut wanted: impl FnMut(&str, Word) -> bool,
) {
    let mut left = count;
    while left > 0 {
        let Some(Said { name, word }) = words.next() else { return };
        match word {
            // Said once by the copy, and once more by its parent when it has ended.
            Word::Failed { text, .. } => {
                left -= usize::from(lost.insert(name, text).is_none());
            }
            Word::Lost => {
                if let Entry::Vacant(entry) = lost.entry(name) {
                    entry.insert(LOST.to_owned());
                    left -= 1;
                }
            }
            word => left -= usize::from(wanted(&name, word)),
        }
    }
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

struct Told {
    report: Value,
    /// Until the copies' file was written.
    written_us: u64,
    /// Until every copy had executed its first instruction.
    running_us: u64,
    /// Until every copy's agent had answered.
    total_us: u64,
}

fn tell(
    source: &str,
    names: &[String],
    ups: &[Result<Up, String>],
    told: &Told,
    global: &Global,
) -> Result<u8> {
    let number = |key: &str| told.report.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut failed = 0;
    let mut rows = Vec::new();
    for (name, up) in names.iter().zip(ups) {
        match up {
            Ok(up) => {
                if !global.json {
                    say!("{name}");
                }
                rows.push(json!({
                    "name": name, "first_instruction_us": up.first_instruction_us, "agent_us": up.agent_us,
                }));
            }
            Err(text) => {
                failed += 1;
                vmm::forget(name);
                tell!("smolvm: {name}: {text}");
                rows.push(json!({ "name": name, "error": text }));
            }
        }
    }
    if global.json {
        ui::json(&json!({
            "source": source, "copies": rows, "source_report": told.report,
            "written_us": told.written_us, "running_us": told.running_us, "total_us": told.total_us,
        }))?;
    } else if !global.quiet {
        let ms = |us: u64| us as f64 / 1000.0;
        tell!(
            "smolvm: {} in {:.0} ms; the source's CPUs stood still for {:.1} ms, its processes for {:.1} ms",
            if names.len() == 1 { "a copy".to_owned() } else { format!("{} copies", names.len() - failed) },
            ms(told.total_us),
            ms(number("pause_us")),
            ms(number("stopped_us"))
        );
    }
    Ok(if failed == 0 { 0 } else { 125 })
}
