//! `demo`: the first minute. Builds and freezes a real service, resumes it, resumes it fifty
//! times, and prints what was measured on this host.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use instance::Instance;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::{Demo, Global};
use crate::cmd::{build, end, vmm};
use crate::interrupt::{Undo, making};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{say, tell};

/// The example, as it stands in the repository.
const FILES: [(&str, &str); 3] = [
    ("Smolfile", include_str!("../../../../examples/search/Smolfile")),
    ("app/make_data.py", include_str!("../../../../examples/search/app/make_data.py")),
    ("app/server.py", include_str!("../../../../examples/search/app/server.py")),
];
const NAME: &str = "demo";
const GUEST_PORT: u16 = 8000;
const CLONES: usize = 50;
/// How long a machine may take until its service answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the build measured, kept beside the file for later demos.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Built {
    /// What the service loaded.
    rows: u64,
    cold_ms: u64,
    native_ms: Option<u64>,
    freeze_ms: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    built: Built,
    resume_ms: u64,
    same_pid: bool,
    clock_right: bool,
    clones: usize,
    clones_ms: u64,
    different: usize,
    clones_memory_bytes: u64,
    engine: String,
    why: String,
}

pub fn demo(demo: &Demo, global: &Global) -> Result<u8> {
    let home = Home::open()?;
    let dir = home.dirs.cache.join("demo");
    let file = dir.join("search.smolmachine");
    let built = prepare(demo, global, &home, &dir, &file)?;
    let shown = Machines::new(vec![NAME.to_owned()]);
    let engine = &demo.engine.engine;
    let first = ask_new(NAME, &file, engine)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    let clones = many(&file, engine)?;
    let chosen = machine::choose(engine.parse().map_err(anyhow::Error::msg)?);
    let report = Report {
        built,
        resume_ms: first.took.as_millis() as u64,
        same_pid: first.answer["pid"]
            == fs::read_to_string(dir.join("pid"))?.trim().parse::<u64>().unwrap_or(0),
        clock_right: first.answer["now"].as_f64().is_some_and(|t| (t - now).abs() < 30.0),
        clones: clones.answers,
        clones_ms: clones.took.as_millis() as u64,
        different: clones.different,
        clones_memory_bytes: clones.memory,
        engine: chosen.engine.to_string(),
        why: chosen.why,
    };
    if global.json {
        ui::json(&report)?;
    } else {
        print(&report);
    }
    shown.keep();
    Ok(0)
}

/// Builds the machine unless an earlier demo did.
fn prepare(demo: &Demo, global: &Global, home: &Home, dir: &Path, file: &Path) -> Result<Built> {
    let kept = dir.join("measured.json");
    let same = FILES.iter().all(|(name, text)| fs::read_to_string(dir.join(name)).is_ok_and(|t| t == *text));
    if !demo.rebuild
        && same
        && file.exists()
        && let Ok(text) = fs::read(&kept)
        && let Ok(built) = serde_json::from_slice(&text)
    {
        return Ok(built);
    }
    for (name, text) in FILES {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let native_ms = native(dir);
    let how = build::How { output: Some(file.to_owned()), ..build::How::default() };
    let report = build::make(&dir.join("Smolfile"), how, &demo.engine, global, home)?;
    let built = Built {
        rows: 0,
        cold_ms: report.cold_ms,
        native_ms,
        freeze_ms: (report.freeze.pause_us + report.freeze.tasks_us + report.freeze.sync_us) / 1000,
        bytes: report.file_bytes,
    };
    // The process id that every resume must show.
    let name = "demo-first";
    let machine = Machines::new(vec![name.to_owned()]);
    let first = ask_new(name, file, &demo.engine.engine)?;
    drop(machine);
    fs::write(dir.join("pid"), first.answer["pid"].to_string())?;
    let rows = first.answer["rows"].as_u64().context("the service did not say how many rows it has")?;
    let built = Built { rows, ..built };
    fs::write(&kept, serde_json::to_vec(&built)?)?;
    Ok(built)
}

/// The same start without a machine, where the host has Python.
fn native(dir: &Path) -> Option<u64> {
    let rows = dir.join("rows.tsv");
    let gone = rows.clone();
    let (_, _undo) = making(|| Ok::<_, Infallible>(()), |()| move || drop(fs::remove_file(gone))).ok()?;
    let took = timed(dir, &rows);
    let _ = fs::remove_file(&rows);
    took
}

fn timed(dir: &Path, rows: &Path) -> Option<u64> {
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.arg("-I").args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        spawn(&mut command)
    };
    let mut data = python(&[dir.join("app/make_data.py").to_str()?, rows.to_str()?]).ok()?;
    if !data.wait().ok()?.success() {
        return None;
    }
    let port = free_port().ok()?;
    let begun = Instant::now();
    let server = dir.join("app/server.py");
    let mut child = python(&[server.to_str()?, rows.to_str()?, &port.to_string()]).ok()?;
    let answered = first_answer(port, "/healthz");
    let took = begun.elapsed();
    let _ = child.kill();
    let _ = child.wait();
    answered.ok().map(|_| took.as_millis() as u64)
}

/// Starts a child that a signal ends; none is started any more once one came.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    making(|| command.spawn(), |_| || ()).map(|(child, _)| child)
}

/// Machines that the demo makes: gone when this is dropped, and on a signal.
struct Machines {
    names: Vec<String>,
    _undo: Option<Undo>,
}

impl Machines {
    /// To be called before they are made. Those of an earlier demo go.
    fn new(names: Vec<String>) -> Self {
        remove(&names);
        let ours = names.clone();
        let undo = making(|| Ok::<_, Infallible>(()), |()| move || remove(&ours));
        Self { names, _undo: undo.ok().map(|(_, undo)| undo) }
    }

    /// They stay.
    fn keep(mut self) {
        self.names.clear();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        remove(&self.names);
    }
}

/// Removes machines, as far as they are there.
fn remove(names: &[String]) {
    let Ok(home) = Home::open() else { return };
    for name in names {
        if let Ok(instance) = Instance::open(&home.dirs, name) {
            let _ = end::remove_now(instance, &home);
        }
    }
}

struct Asked {
    took: Duration,
    answer: Value,
}

/// Resumes the file as `name` and waits for its first answer.
fn ask_new(name: &str, file: &Path, engine: &str) -> Result<Asked> {
    let port = free_port()?;
    let publish = format!("{port}:{GUEST_PORT}");
    let begun = Instant::now();
    smolvm(&["run", "-d", "--engine", engine, "--name", name, "-p", &publish], &[file])?;
    let answer = first_answer(port, "/whoami")?;
    Ok(Asked { took: begun.elapsed(), answer })
}

struct Many {
    answers: usize,
    different: usize,
    took: Duration,
    memory: u64,
}

/// Fifty machines from the one file, all answering.
fn many(file: &Path, engine: &str) -> Result<Many> {
    let clones = Machines::new((1..=CLONES).map(|n| format!("demo-clone-{n}")).collect());
    let before = available();
    let begun = Instant::now();
    let mut uuids = HashSet::new();
    let mut answers = 0;
    // As many at a time as there are cores: more would only wait for each other.
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(name) = clones.names.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(ask_new(name, file, engine));
        }
        done
    };
    let asked: Vec<Result<Asked>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_default()).collect()
    });
    let took = begun.elapsed();
    let memory = before.saturating_sub(available());
    for asked in asked {
        match asked {
            Ok(asked) => {
                answers += 1;
                uuids.insert(asked.answer["uuid"].to_string());
            }
            Err(e) => tell!("smolvm: a clone did not answer: {e:#}"),
        }
    }
    Ok(Many { answers, different: uuids.len(), took, memory })
}

/// MemAvailable of the host in bytes.
fn available() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |k| k << 10)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Asks until somebody answers.
fn first_answer(port: u16, path: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        match get(port, path) {
            Ok(value) => return Ok(value),
            Err(e) if begun.elapsed() > PATIENCE => return Err(e).context("the service did not answer"),
            // Nobody listens yet: let it come up.
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn get(port: u16, path: &str) -> Result<Value> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok(serde_json::from_str(body)?)
}

/// This program again, as a user would type it.
fn smolvm(args: &[&str], files: &[&Path]) -> Result<String> {
    let exe: PathBuf = vmm::this_program();
    let mut command = Command::new(exe);
    command.args(args).args(files).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(&mut command)?.wait_with_output()?;
    if !output.status.success() {
        bail!("smolvm {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `1.2M rows`.
fn rows(count: u64) -> String {
    match count {
        1_000_000.. => format!("{:.1}M rows", count as f64 / 1e6),
        _ => format!("{:.0}K rows", count as f64 / 1e3),
    }
}

fn print(report: &Report) {
    let s = |ms: u64| format!("{:.2} s", ms as f64 / 1000.0);
    let native = report.built.native_ms.map_or("not measured: no python3 here".into(), s);
    say!(
        "cold    boot Debian + load {:<15} {:>9}   (the same natively: {native})",
        rows(report.built.rows),
        s(report.built.cold_ms)
    );
    say!(
        "freeze  search.smolmachine  {:>11}    {:>9}",
        ui::bytes(report.built.bytes),
        s(report.built.freeze_ms)
    );
    let word = |ok: bool, yes: &'static str, no: &'static str| if ok { yes } else { no };
    say!(
        "resume  first answer                       {:>9}   {}, {}",
        s(report.resume_ms),
        word(report.same_pid, "same pid", "ANOTHER PID"),
        word(report.clock_right, "clock right", "CLOCK WRONG")
    );
    say!(
        "x{}     {} answers, {} different UUIDs     {:>9}   + {} of memory",
        CLONES,
        report.clones,
        report.different,
        s(report.clones_ms),
        ui::bytes(report.clones_memory_bytes)
    );
    let why = if report.why.is_empty() { String::new() } else { format!(" ({})", report.why) };
    say!("no root · no daemon · engine {}{why}", report.engine);
    say!("Next: smolvm shell demo · start something in it · smolvm freeze demo · smolvm start demo");
}
