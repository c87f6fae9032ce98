//! Debian's services and tools, each built, frozen, resumed and put under a small load:
//! `cargo run --release -p engine -- services [NAME…]`.
//!
//! The table is `examples/services`: a directory each with a Smolfile, a `load` (one unit of work, which
//! prints what must be the same everywhere) and for services a `service`. The load runs before the
//! freeze, as the first thing after the resume, and natively in a chroot of the same root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::contender::native;
use crate::host;
use crate::options::Services;
use crate::setup::{self, Setup};

/// How long a service may take natively to answer its first load.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Runs those that are named, or all.
pub fn run(options: &Services) -> Result<()> {
    let setup = setup::setup_program(&options.place)?;
    let table = host::checkout().join("examples/services");
    let mut names: Vec<String> =
        fs::read_dir(&table)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.retain(|name| options.names.is_empty() || options.names.contains(name));
    println!("| service | works | native | soft | soft / native | first after resume | rate of before |");
    println!("|---|---|---|---|---|---|---|");
    let mut failures = Vec::new();
    for name in &names {
        let one = Service { name, source: table.join(name), setup: &setup, native: !options.no_native };
        match one.measure() {
            Ok(row) => println!("{row}"),
            Err(e) => {
                println!("| {name} | **no** | - | - | - | - | - |");
                failures.push(format!("{name}: {e:#}"));
            }
        }
    }
    failures.iter().for_each(|failure| println!("{failure}"));
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

impl Service<'_> {
    fn measure(&self) -> Result<String> {
        let dir = self.setup.work.join("services").join(self.name);
        let file = dir.join("machine.smolmachine");
        self.build(&dir, &file)?;
        let machine = format!("bench-{}", self.name);
        let _ = self.smolvm(&["rm", "-f", &machine]);
        let outcome = self.soft(&machine, &file);
        let _ = self.smolvm(&["rm", "-f", &machine]);
        let (said, before, after) = outcome?;
        let native = if self.native { Some(self.natively(&dir, &file, &said)?) } else { None };
        let seconds = |t: Duration| format!("{:.2} s", t.as_secs_f64());
        Ok(format!(
            "| {} | yes | {} | {} | {} | {} | {:.0}% |",
            self.name,
            native.map_or("-".into(), seconds),
            seconds(before),
            native.map_or("-".into(), |n| format!("{:.1}", before.as_secs_f64() / n.as_secs_f64())),
            seconds(after),
            100.0 * before.as_secs_f64() / after.as_secs_f64(),
        ))
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
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let words = ["build", "-q", "-f", &path(&dir.join("Smolfile")), "-o", &path(file)];
        self.smolvm(&words).context("building").map(drop)
    }

    fn smolvm(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.setup.smolvm);
        command.args(words).env("SMOLVM_HOME", self.setup.work.join("home")).env("SMOLVM_ENGINE", "soft");
        host::read(command.stdin(Stdio::null()))
    }

    fn load(&self, machine: &str) -> Result<(String, Duration)> {
        let begun = Instant::now();
        let said = self.smolvm(&["exec", machine, "sh", "/srv/load"])?;
        Ok((said, begun.elapsed()))
    }

    /// What the load says, its time when warm, its time as the first thing after a resume.
    fn soft(&self, machine: &str, file: &Path) -> Result<(String, Duration, Duration)> {
        self.smolvm(&["run", "-d", "--name", machine, &file.to_string_lossy()]).context("resuming")?;
        let (said, _) = self.load(machine).context("the first load")?;
        let mut times = Vec::new();
        for _ in 0..3 {
            let (again, time) = self.load(machine).context("a load")?;
            same(&said, &again, "the second load")?;
            times.push(time);
        }
        times.sort();
        self.smolvm(&["freeze", machine]).context("freezing")?;
        self.smolvm(&["start", machine]).context("resuming after the freeze")?;
        let (again, after) = self.load(machine).context("the load after the resume")?;
        same(&said, &again, "the load after the resume")?;
        Ok((said, times[1], after))
    }

    fn natively(&self, dir: &Path, file: &Path, said: &str) -> Result<Duration> {
        let image = dir.join("root.erofs");
        setup::extract(file, &image)?;
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < START_LIMIT {
            let output = native::script(&image, &dir.join("native"), LOADS).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                let (text, ns) = text.trim().rsplit_once('\n').context("no time was said")?;
                same(said, text.trim(), "the native load")?;
                return Ok(Duration::from_nanos(ns.trim().parse()?));
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

/// In the chroot: the service, the load until it succeeds, once more warm, then once timed; in a process
/// namespace of its own, so that everything ends with it.
const LOADS: &str = r#"
[ -f /srv/service ] && { sh /srv/service > /dev/null 2>&1 & }
n=0; until sh /srv/load > /dev/null 2>/tmp/why; do
  n=$((n + 1)); [ -f /srv/service ] && [ $n -lt 100 ] || { cat /tmp/why >&2; exit 1; }; sleep 0.2
done
sh /srv/load > /dev/null || exit 1
a=$(date +%s%N); sh /srv/load || exit 1; b=$(date +%s%N); echo; echo $((b - a))
"#;

fn same(one: &str, other: &str, which: &str) -> Result<()> {
    if one.trim() != other.trim() {
        bail!("{which} says something else: {other:?} instead of {one:?}");
    }
    Ok(())
}
