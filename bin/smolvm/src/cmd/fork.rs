//! `fork`: running copies of a running machine; it goes on.
//!
//! The machine's own process writes once what the copies need: its state, and what differs from the
//! machine file that it came from. Then each copy is a process of its own that maps both
//! (`copies.rs`): they share every page until they write it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use instance::control::{Client, Request};
use instance::{Instance, Lasting, Phase, Record};
use serde_json::{Value, json};

use crate::args::{Fork, Global};
use crate::cmd::copies::GO_ON;
use crate::cmd::end::end_now;
use crate::cmd::vmm::{self, Said, Word, Words};
use crate::interrupt::{self, Undo};
use crate::launch::{Home, Mode, Plan};
use crate::ui;
use crate::ui::say::{say, tell};
use crate::volumes;

pub fn fork(fork: &Fork, global: &Global, home: &Home) -> Result<u8> {
    let (begun, begun_ns) = (Instant::now(), now_ns());
    let source = Instance::open(&home.dirs, &fork.name)?;
    let client = Client::new(&source)?;
    let record = source.record()?;
    let id =
        record.file.parse().map_err(|_| anyhow!("the record of `{}` names no machine file", fork.name))?;
    let _pin = home.store.pin(&id)?;
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
    let plan = vmm::read_plan(&source)?;
    volumes::can_copy(&plan, &fork.name, &names, &home.dirs)?;
    let copies = Copies { home, record: &record, plan, made: &made };
    let done = make_all(&names, first, &copies, &client, begun);
    let (ups, report, written_us) = done.inspect_err(|_| undo(&made))?;
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
    let numbered = (1..).map(|n: u64| format!("{stem}-{n}"));
    let free = numbered.take(count + 1_000_000).filter(|name| !Instance::is_taken(&home.dirs, name));
    let names: Vec<String> = free.take(count).collect();
    if let Some(bad) = names.iter().find(|name| !spec::valid_name(name)) {
        bail!("`{bad}` cannot name a copy: at most 63 of a-z 0-9 _ . -; choose a shorter one with --name");
    }
    Ok(names)
}

/// Everything but words: the copies' directories, what they start from, their processes. How each came up, what the
/// source said, and how long it took until the file was written, µs.
fn make_all(
    names: &[String],
    first: &str,
    copies: &Copies<'_>,
    client: &Client<'_>,
    begun: Instant,
) -> Result<(Ups, Value, u64)> {
    // Its lock is its process's.
    drop(copies.make_first(first)?);
    let instance = Instance::open(&copies.home.dirs, first)?;
    let path = instance.origin();
    let path = path.to_str().context("the path of the instances is not UTF-8")?.to_owned();
    // It starts, and the other directories are made, while the machine writes.
    let mut splitter = Splitter::start(names, &instance)?;
    let volumes = copies.volume_files(&instance)?;
    let (report, written_us) = std::thread::scope(|scope| {
        let make = |name: &String| copies.make(name, |other| other.share_record(&instance)).map(drop);
        let others = scope.spawn(move || names.iter().skip(1).try_for_each(make));
        let written = client.call(&Request::Fork { path, volumes: volumes.clone() });
        let written = written.map_err(anyhow::Error::from).and_then(|report| {
            let written_us = begun.elapsed().as_micros() as u64;
            copies.say_how(&instance, engine_of(&report), &volumes, names.len() == 1)?;
            // It reads what the copies have in common, while the file system looks for room for the last directories.
            splitter.go_on()?;
            Ok((report, written_us))
        });
        others.join().unwrap_or_else(|_| Err(anyhow!("making the copies' directories failed")))?;
        written
    })?;
    let mut others = names.iter().enumerate().skip(1);
    let ready =
        |(n, name): (usize, &String)| copies.ready(name, &instance, &report, &volumes, n + 1 == names.len());
    others.try_for_each(ready)?;
    splitter.go_on()?;
    Ok((splitter.collect(names)?, report, written_us))
}

/// What the copies have in common.
struct Copies<'a> {
    home: &'a Home,
    record: &'a Record,
    plan: Plan,
    made: &'a Made,
}

impl Copies<'_> {
    /// The first copy's directory and record.
    fn make_first(&self, name: &str) -> Result<Instance> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.make(name, |instance| {
            instance.write_record(&Record {
                name: name.to_owned(),
                created_ms: now.as_millis() as u64,
                phase: Phase::Dead,
                // Nobody's yet.
                pid: 0,
                kept: true,
                // Published ports are the source's.
                ports: Vec::new(),
                udp_ports: Vec::new(),
                exit_code: None,
                forked_from: Some(self.record.name.clone()),
                ..self.record.clone()
            })
        })
    }

    /// A copy's directory, and its record by `write`. (The reference in the store is its own process's to make: until
    /// then that and this one have the file pinned.)
    fn make(
        &self,
        name: &str,
        write: impl FnOnce(&Instance) -> Result<(), instance::Error>,
    ) -> Result<Instance> {
        let instance = Instance::create(&self.home.dirs, name)?;
        self.made.lock().unwrap_or_else(|e| e.into_inner()).push(name.to_owned());
        match write(&instance) {
            Ok(()) => Ok(instance),
            Err(e) => {
                instance.remove()?;
                Err(e.into())
            }
        }
    }

    /// Where the machine is to write what each of its volumes holds: the volume's name and the file.
    fn volume_files(&self, first: &Instance) -> Result<Vec<(String, String)>> {
        let file = |(n, name): (usize, String)| {
            let path = first.path(&format!("volume-{n}"));
            let path = path.to_str().context("the path of the instances is not UTF-8")?.to_owned();
            Ok((name, path))
        };
        volumes::written(&self.plan).into_iter().enumerate().map(file).collect()
    }

    /// Says how a copy is to start; it gets volumes of its own, where the machine has any.
    fn say_how(&self, copy: &Instance, engine: &str, volumes: &[(String, String)], last: bool) -> Result<()> {
        let mut plan = self.plan.clone();
        (plan.mode, plan.engine, plan.lost) = (Mode::Forked, engine.to_owned(), false);
        (plan.hostname, plan.own_name) = (None, true);
        // The command of the source's start is among the copied processes; published ports are the source's.
        (plan.command, plan.ports, plan.net.udp) = (None, Vec::new(), Vec::new());
        if volumes::are_in(&plan) {
            volumes::give(&mut plan, &self.record.name, copy, volumes, last)?;
        }
        vmm::write_plan(copy, &plan, Lasting::Kill)
    }

    /// Readies another copy. A file has as many names as copies: the last one that goes takes it with it.
    fn ready(
        &self,
        name: &str,
        first: &Instance,
        report: &Value,
        volumes: &[(String, String)],
        last: bool,
    ) -> Result<()> {
        let instance = Instance::open(&self.home.dirs, name)?;
        let share = |from: PathBuf, to: PathBuf| {
            std::fs::hard_link(&from, to).with_context(|| format!("naming {}", from.display()))
        };
        share(first.origin(), instance.origin())?;
        if volumes::are_in(&self.plan) {
            return self.say_how(&instance, engine_of(report), volumes, last);
        }
        share(vmm::plan_path(first), vmm::plan_path(&instance))
    }
}

/// The engine that the source said it runs on.
fn engine_of(report: &Value) -> &str {
    report.get("engine").and_then(Value::as_str).unwrap_or("soft")
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

/// How each copy came up, or why it did not.
type Ups = Vec<Result<Up, String>>;

/// The process that the copies' processes are split off from (`copies.rs`). It waits to be told to go on: when it may
/// read what they have in common, and when their directories are whole. The copies begin to run together, so that the
/// first ones do not take the processor from those that are still made.
struct Splitter {
    process: Child,
    words: Words,
    /// The last end of what the copies wait at.
    tell: PipeWriter,
    _end: Undo,
}

impl Splitter {
    fn start(names: &[String], first: &Instance) -> Result<Self> {
        let (told, tell) = std::io::pipe().context("making a pipe")?;
        let args: Vec<&str> = ["__copies"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let ended = |child: &Child| {
            let pid = child.id();
            move || interrupt::end_process(pid)
        };
        let spawn = || vmm::spawn(&args, &first.path("vmm.log"), told.into());
        let (mut process, end) = interrupt::making(spawn, ended)?;
        Ok(Self { words: Words::of(&mut process), process, tell, _end: end })
    }

    fn go_on(&mut self) -> Result<()> {
        self.tell.write_all(&[GO_ON]).context("telling the copies' process to go on")
    }

    /// Waits until all are whole, lets them begin, and waits until they are up.
    fn collect(self, names: &[String]) -> Result<Ups> {
        let Self { mut process, mut words, tell, _end } = self;
        let mut lost: HashMap<String, String> = HashMap::new();
        let mut up = HashMap::new();
        collect(&mut words, names.len(), &mut lost, |_, word| matches!(word, Word::Whole));
        drop(tell);
        let living = names.len() - lost.len();
        collect(&mut words, living, &mut lost, |name, word| {
            let Word::Up { first_instruction_us, agent_us, first_run_ns, notes } = word else { return false };
            notes.iter().for_each(|note| tell!("smolvm: {name}: {note}"));
            up.insert(name.to_owned(), Up { first_instruction_us, agent_us, first_run_ns });
            true
        });
        // The copies are not its children any longer: they are whose they would be without `fork`.
        process.kill()?;
        process.wait()?;
        let mut why = |name: &String| lost.remove(name).unwrap_or_else(|| LOST.to_owned());
        let result = |name: &String| up.remove(name).ok_or_else(|| why(name));
        Ok(names.iter().map(result).collect())
    }
}

const LOST: &str =
    "its process ended before it was up; see vmm.log in its directory, or in that of the first copy";

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
