//! Debian's services and tools, each built, frozen, resumed and put under a small load:
//! `cargo run --release -p engine -- services [NAME…]`.
//!
//! The table is `examples/services`: a directory each with a Smolfile, a `load` (one unit of work, which
//! prints what must be the same everywhere) and for services a `service`. The load runs before the
//! freeze, as the first thing after the resume, and natively in a chroot of the same root.
//! Next: `services/table.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::contender::native;
use crate::host;
use crate::options::Services;
use crate::setup::{self, Setup};
use table::{Row, Table, Times};

mod table;

/// How long a service may take natively to answer its first load.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Loads on a warm machine, of which the middle one counts; natively they are taken together.
const LOADS: usize = 3;

/// Runs those that are named, or all.
pub fn run(options: &Services) -> Result<()> {
    let setup = setup::setup_program(&options.place)?;
    let table = host::checkout().join("examples/services");
    let mut all: Vec<String> =
        fs::read_dir(&table)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    if let Some(name) = options.names.iter().find(|name| !all.contains(name)) {
        bail!("{} has no {name}; there are {}", table.display(), all.join(", "));
    }
    let names = if options.names.is_empty() { &all } else { &options.names };
    let mut kept = Table::open(&setup.work)?;
    println!("{}", Table::head());
    let mut failures = Vec::new();
    for name in names {
        let one = Service { name, source: table.join(name), setup: &setup, native: !options.no_native };
        match one.measure() {
            Ok(row) => kept.add(name, row)?,
            Err(e) => {
                kept.failed(name)?;
                failures.push(format!("{name}: {e:#}"));
            }
        }
    }
    failures.iter().for_each(|failure| println!("{failure}"));
    if options.write {
        kept.write(&host::checkout().join("docs/performance.md"), &all)?;
    }
    if !failures.is_empty() {
        bail!("{} of {} do not work", failures.len(), names.len());
    }
    Ok(())
}

struct Service<'a> {
    name: &'a str,
    source: PathBuf,
    setup: &'a Setup,
    native: bool,
}

/// What came of the loads in a machine.
struct Soft {
    /// What each of them said.
    said: String,
    before: Times,
    after: Times,
    first_second: f64,
}

impl Service<'_> {
    fn measure(&self) -> Result<Row> {
        let load = host::load();
        let dir = self.setup.work.join("services").join(self.name);
        let file = dir.join("machine.smolmachine");
        self.build(&dir, &file)?;
        let machine = format!("bench-{}", self.name);
        let _ = self.smolvm(&["rm", "-f", &machine]);
        let outcome = self.soft(&machine, &file);
        let _ = self.smolvm(&["rm", "-f", &machine]);
        let Soft { said, before, after, first_second } = outcome?;
        let native = if self.native { Some(self.natively(&dir, &file, &said)?) } else { None };
        Ok(Row { date: host::today(), load, native, before, after, first_second })
    }

    /// Builds the machine file unless its definition is the one it was built from.
    fn build(&self, dir: &Path, file: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let mut same = file.is_file();
        for entry in fs::read_dir(&self.source)?.flatten() {
            let (from, to) = (entry.path(), dir.join(entry.file_name()));
            same &= fs::read(&from)? == fs::read(&to).unwrap_or_default();
            fs::copy(from, to)?;
        }
        if same {
            return Ok(());
        }
        // One that cannot be built is not taken for built the next time.
        let _ = fs::remove_file(file);
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let words = ["build", "-q", "-f", &path(&dir.join("Smolfile")), "-o", &path(file)];
        self.smolvm(&words).context("building").map(drop)
    }

    fn smolvm(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.setup.smolvm);
        command.args(words).env("SMOLVM_HOME", self.setup.work.join("home")).env("SMOLVM_ENGINE", "soft");
        host::read(command.stdin(Stdio::null()))
    }

    fn load(&self, machine: &str, pid: u32) -> Result<(String, Times)> {
        let (begun, cpu) = (Instant::now(), host::cpu_ns(pid));
        let said = self.smolvm(&["exec", machine, "sh", "/srv/load"])?;
        let (wall, cpu) = (begun.elapsed().as_secs_f64(), host::cpu_ns(pid).saturating_sub(cpu) as f64 / 1e9);
        Ok((said, Times { wall, cpu }))
    }

    /// The process of a running machine.
    fn pid(&self, machine: &str) -> Result<u32> {
        let shown: serde_json::Value = serde_json::from_str(&self.smolvm(&["ps", "--json"])?)?;
        let row = shown.as_array().into_iter().flatten().find(|row| row["name"] == machine);
        let pid =
            row.and_then(|row| row["pid"].as_u64()).with_context(|| format!("{machine} does not run"))?;
        Ok(u32::try_from(pid)?)
    }

    /// Loads before and after a freeze.
    fn soft(&self, machine: &str, file: &Path) -> Result<Soft> {
        self.smolvm(&["run", "-d", "--name", machine, &file.to_string_lossy()]).context("resuming")?;
        let pid = self.pid(machine)?;
        let (said, _) = self.load(machine, pid).context("the first load")?;
        let mut times = Vec::new();
        for _ in 0..LOADS {
            let (again, time) = self.load(machine, pid).context("a load")?;
            same(&said, &again, "the second load")?;
            times.push(time);
        }
        times.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        self.smolvm(&["freeze", machine]).context("freezing")?;
        self.smolvm(&["start", machine]).context("resuming after the freeze")?;
        let pid = self.pid(machine)?;
        let before = times[LOADS / 2];
        let (mut after, mut spent, mut loads) = (None, 0.0, 0.0);
        while spent < 1.0 {
            let (again, time) = self.load(machine, pid).context("a load after the resume")?;
            same(&said, &again, "a load after the resume")?;
            // A load that took no measurable time would never make a second.
            (spent, loads) = (spent + time.cpu.max(0.01), loads + 1.0);
            after.get_or_insert(time);
        }
        Ok(Soft { said, before, after: after.unwrap_or_default(), first_second: loads * before.cpu / spent })
    }

    fn natively(&self, dir: &Path, file: &Path, said: &str) -> Result<Times> {
        let image = dir.join("root.erofs");
        setup::extract(file, &image)?;
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < START_LIMIT {
            let output = native::script(&image, &dir.join("native"), NATIVELY).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                let (text, times) = text.trim().rsplit_once('\n').context("no time was said")?;
                same(said, text.trim(), "the native load")?;
                let (ns, ticks) = times.split_once(' ').context("no CPU time was said")?;
                let mean = |text: &str, unit: f64| -> Result<f64> {
                    Ok(text.parse::<u64>()? as f64 / unit / LOADS as f64)
                };
                return Ok(Times { wall: mean(ns, 1e9)?, cpu: mean(ticks, host::TICKS as f64)? });
            }
            last = Some(String::from_utf8_lossy(&output.stderr).into_owned());
            if self.source.join("service").is_file() {
                continue;
            }
            break;
        }
        bail!("natively: {}", last.unwrap_or_default().trim())
    }
}

/// In the chroot: the service, the load until it succeeds, then [`LOADS`] times, timed; in a process namespace of its
/// own, so that everything ends with it. `cpu` sums what all processes there and the children that they waited for
/// have used (proc(5), /proc/PID/stat, fields 14 to 17). The processor is the machine's: with others, mathematical
/// functions round otherwise (GLIBC_TUNABLES, glibc's manual, "Hardware Capability Tunables").
const NATIVELY: &str = r#"
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4
[ -f /srv/service ] && { sh /srv/service > /dev/null 2>&1 & }
n=0; until sh /srv/load > /dev/null 2>/tmp/why; do
  n=$((n + 1)); [ -f /srv/service ] && [ $n -lt 100 ] || { cat /tmp/why >&2; exit 1; }; sleep 0.2
done
cpu() { cat /proc/[0-9]*/stat 2> /dev/null | sed 's/.*) //' | awk '{ t += $12 + $13 + $14 + $15 } END { print t }'; }
c=$(cpu); a=$(date +%s%N)
for n in 1 2 3; do sh /srv/load > /tmp/said || exit 1; done
b=$(date +%s%N); d=$(cpu)
cat /tmp/said; echo; echo $((b - a)) $((d - c))
"#;

fn same(one: &str, other: &str, which: &str) -> Result<()> {
    if one.trim() != other.trim() {
        bail!("{which} says something else: {other:?} instead of {one:?}");
    }
    Ok(())
}
