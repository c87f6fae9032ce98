//! The same work in a shared folder, in a machine of ours and in QEMU's with virtiofsd: one kernel, one root, one
//! program. The guests' processors differ (soft, TCG), so each row stands beside what the hosts' sides cost.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use engine::contender::{Contender, Kind, Sample};
use engine::document::Part;
use engine::host;
use engine::setup::{self, Extra, Setup};

use crate::options::Guest;
use crate::tree;

const PART: Part = Part {
    begin: "<!-- folders: written by `cargo run --release -p folders -- guest --write` -->",
    end: "<!-- folders: end -->",
};
/// Where guests mount folders.
const PLACE: &str = "/mnt/shared";
/// The tag of ours (`devices::fs`), and of QEMU's.
const OUR_TAG: &str = "smolvm";
const PEER_TAG: &str = "shared";
/// Memory of the guests, MiB.
const MEMORY: u64 = 1024;

/// virtiofsd, or whatever else must live as long as its machine.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine with its folder.
struct Machine {
    name: &'static str,
    contender: Contender,
    daemon: Option<Daemon>,
    /// The folder as the guest sees it.
    place: String,
}

/// A row: what the guests do, before each turn and as the turn.
struct Row {
    name: &'static str,
    before: Vec<String>,
    call: String,
    /// By machine.
    samples: Vec<Vec<(Sample, u64)>>,
}

/// Runs everything and tells.
///
/// # Errors
/// A machine that does not come up or does not do its work.
pub fn run(options: &Guest) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let load = host::load();
    let qemu = setup::qemu()?;
    let mut machines = start(options, dir.path())?;
    let mut rows = rows(options);
    for row in &mut rows {
        row.samples = vec![Vec::new(); machines.len()];
        let turns = if row.name.contains("KiB") { options.runs.max(1) } else { 1 };
        for _ in 0..turns {
            for (at, machine) in machines.iter_mut().enumerate() {
                let sample = machine.turn(row)?;
                row.samples[at].push(sample);
            }
        }
        let checks: Vec<u64> = row.samples.iter().flatten().map(|(sample, _)| sample.check).collect();
        ensure!(checks.iter().all(|check| *check == checks[0]), "{}: the guests disagree", row.name);
        eprintln!("{}", line(row, 1));
    }
    tell(options, &qemu, &load, &rows)
}

fn rows(options: &Guest) -> Vec<Row> {
    let row = |name, before: &[&str], call: String| Row {
        name,
        before: before.iter().map(|line| (*line).to_owned()).collect(),
        call,
        samples: Vec::new(),
    };
    let read = |how: &str| format!("read {how} @/data {}", options.pages);
    let git = "sh cd @/repo && git -c safe.directory='*' status --porcelain";
    // npm says how long it took, which is another thing in each guest.
    let npm = "sh cd @/app && node @/tools/node_modules/npm/bin/npm-cli.js ci --offline --ignore-scripts --no-audit --no-fund --loglevel=error --cache @/cache >/dev/null \
               && ls node_modules | wc -l";
    let mut rows = vec![
        row("4 KiB reads, O_DIRECT: each a request", &[], read("direct")),
        row("4 KiB reads, guest's cache empty: read ahead", &["drop-caches"], read("cached")),
        row("4 KiB reads, guest's cache full", &[], read("cached")),
    ];
    if !options.reads_only {
        rows.push(row("git status, first time (reads every file)", &["drop-caches"], git.to_owned()));
        rows.push(row("git status again", &[], git.to_owned()));
        rows.push(row("git status, guest's caches empty", &["drop-caches"], git.to_owned()));
        rows.push(row("npm ci, offline, from npm's cache in the folder", &[], npm.to_owned()));
    }
    rows
}

impl Machine {
    /// Does a row once; beside the guest's, the processor time of the daemon.
    fn turn(&mut self, row: &Row) -> Result<(Sample, u64)> {
        for line in &row.before {
            self.contender.call(line).with_context(|| self.name)?;
        }
        let cpu = self.daemon_cpu();
        let sample = self.contender.call(&row.call.replace('@', &self.place)).with_context(|| self.name)?;
        Ok((sample, self.daemon_cpu().saturating_sub(cpu)))
    }

    fn daemon_cpu(&self) -> u64 {
        self.daemon.as_ref().map_or(0, |daemon| host::cpu_ns(daemon.0.id()))
    }
}

fn start(options: &Guest, dir: &Path) -> Result<Vec<Machine>> {
    let mut setup = setup::setup_program(&options.place)?;
    let kept = setup.work.join("folders-root");
    fs::create_dir_all(&kept)?;
    setup.root = setup::root(&kept, &setup.smolvm, &host::checkout().join("benches/folders/root"))?;
    setup.memory = MEMORY;
    let package = (!options.reads_only).then_some(options.package.as_str());
    let mut machines = Vec::new();
    for (name, kind) in [("ours (soft)", Kind::Soft), ("virtiofsd (TCG)", Kind::Tcg)] {
        let shared = dir.join(kind.name());
        fs::create_dir_all(&shared)?;
        tree::write(&shared, options.pages, options.files, package)?;
        setup.work = dir.join(format!("{}.work", kind.name()));
        fs::create_dir_all(&setup.work)?;
        let (extra, daemon, tag, below) = match kind {
            Kind::Soft => (Extra { folder: Some(shared), ..Extra::default() }, None, OUR_TAG, "/0"),
            _ => {
                let socket = dir.join("virtiofsd.sock");
                let daemon = virtiofsd(&options.virtiofsd, &shared, &socket)?;
                (peer_words(&setup, &socket), Some(daemon), PEER_TAG, "")
            }
        };
        setup.extra = extra;
        let mut contender = Contender::start(kind, &setup, 1).with_context(|| name)?;
        contender.call(&format!("mount {tag} {PLACE}")).with_context(|| name)?;
        machines.push(Machine { name, contender, daemon, place: format!("{PLACE}{below}") });
    }
    Ok(machines)
}

/// Debian's virtiofsd for one client, its cache mode the one that is its default.
fn virtiofsd(program: &Path, shared: &Path, socket: &Path) -> Result<Daemon> {
    let mut command = Command::new(program);
    let source = format!("source={},cache=auto,sandbox=chroot", shared.display());
    command.arg(format!("--socket-path={}", socket.display())).args(["-f", "-o", &source]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let mut daemon = Daemon(child);
    let begun = Instant::now();
    while !socket.exists() {
        let ended = daemon.0.try_wait()?;
        ensure!(ended.is_none() && begun.elapsed() < Duration::from_secs(20), "virtiofsd: {ended:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(daemon)
}

/// vhost-user wants the guest's memory in a file that virtiofsd can map, too.
fn peer_words(setup: &Setup, socket: &Path) -> Extra {
    let words = [
        "-object".to_owned(),
        format!("memory-backend-memfd,id=mem,size={}M,share=on", setup.memory),
        "-machine".to_owned(),
        "memory-backend=mem".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=f,path={}", socket.display()),
        "-device".to_owned(),
        format!("vhost-user-fs-device,chardev=f,tag={PEER_TAG},bus=virtio-mmio-bus.3"),
    ];
    Extra { qemu: words.to_vec(), ..Extra::default() }
}

fn median(values: impl Iterator<Item = u64>) -> f64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).map_or(f64::NAN, |ns| *ns as f64)
}

/// One line of the table.
fn line(row: &Row, pages: u64) -> String {
    let mut text = format!("| {} |", row.name);
    for samples in &row.samples {
        let ns = median(samples.iter().map(|(sample, _)| sample.ns));
        let figure = if row.name.contains("KiB") && pages > 1 {
            format!("{:.2} µs", ns / 1e3 / pages as f64)
        } else {
            format!("{:.2} s", ns / 1e9)
        };
        let cpu = median(samples.iter().map(|(sample, daemon)| sample.cpu_ns + daemon));
        let daemon = median(samples.iter().map(|(_, daemon)| *daemon));
        write!(text, " {figure} | {:.2} s ({:.2} s) |", cpu / 1e9, daemon / 1e9).unwrap_or_default();
    }
    if let [ours, theirs] = &row.samples[..] {
        let ratio =
            |what: fn(&(Sample, u64)) -> u64| median(theirs.iter().map(what)) / median(ours.iter().map(what));
        let (wall, cpu) = (ratio(|(s, _)| s.ns), ratio(|(s, daemon)| s.cpu_ns + daemon));
        write!(text, " **{wall:.2}** | {cpu:.2} |").unwrap_or_default();
    }
    text
}

fn tell(options: &Guest, qemu: &str, load: &str, rows: &[Row]) -> Result<()> {
    let mut text = String::new();
    writeln!(text, "## Shared folders against virtiofsd\n")?;
    writeln!(
        text,
        "{}, {}, {qemu} and its virtiofsd (cache=auto); load average {load} before, {} after. Same kernel, root and \
         program; reads: {} interleaved turns of {} pages, medians by the guest's clock; git: {} files; npm: {}. CPU: of \
         everything on the host, virtiofsd's in brackets; × : theirs by ours, of the time and of the CPU. \
         `cargo run --release -p folders -- guest`\n",
        host::today(),
        host::machine(),
        host::load(),
        options.runs,
        options.pages,
        options.files,
        options.package,
    )?;
    writeln!(text, "| row | ours (soft) | CPU | virtiofsd (TCG) | CPU | × time | × CPU |")?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for row in rows {
        writeln!(text, "{}", line(row, options.pages))?;
    }
    writeln!(text)?;
    print!("{text}");
    if options.write {
        PART.write(&host::checkout().join("docs/performance.md"), &text)?;
    }
    Ok(())
}
