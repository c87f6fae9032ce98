//! The program in a home of its own, with one frozen machine in its store.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The machine file.
pub const FILE: &str = "m.smolmachine";

/// See the module.
pub struct Bench {
    program: PathBuf,
    engine: String,
    home: tempfile::TempDir,
}

/// What one run of the program said of itself.
pub struct Trace(Vec<(String, u64)>);

impl Trace {
    /// The lines `smolvm-trace NAME VALUE` in what was said.
    pub fn parse(said: &str) -> Self {
        let word = |line: &str| {
            let (name, value) = line.strip_prefix("smolvm-trace ")?.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(said.lines().filter_map(word).collect())
    }

    pub fn value(&self, name: &str) -> Result<u64> {
        let found = self.0.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| *value).with_context(|| format!("the program traced no `{name}`"))
    }

    /// A moment of CLOCK_MONOTONIC.
    pub fn at(&self, name: &str) -> Result<Duration> {
        Ok(Duration::from_nanos(self.value(name)?))
    }
}

/// The program as `cargo xtask dist` builds it: static, without symbols.
pub fn build() -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    let target = ours.ancestors().nth(2).context("this program is in no target directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["rustc", "--release", "--package", "smolvm", "--bin", "smolvm", "--target-dir"]).arg(target);
    build.args(["--", "-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,pack-relative-relocs"]);
    ensure!(build.status().context("running cargo")?.success(), "building smolvm failed");
    let stripped = target.join("startup-smolvm");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(target.join("release/smolvm"));
    ensure!(strip.status().context("running strip")?.success(), "stripping smolvm failed");
    Ok(stripped)
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Bench {
    /// A home with a frozen machine of that much memory, and nothing running in it, in its store.
    pub fn new(program: &Path, engine: &str, memory: &str) -> Result<Self> {
        let program = std::path::absolute(program)?;
        ensure!(program.exists(), "{} is not there; cargo build --release -p smolvm", program.display());
        let bench = Self { program, engine: engine.to_owned(), home: tempfile::tempdir()? };
        let definition = format!("name = \"m\"\nmemory = \"{memory}\"\n");
        std::fs::write(bench.home.path().join("Smolfile"), definition)?;
        bench.smolvm(&["build"])?;
        // A file that changed a moment ago is not recorded in the store's table of paths.
        std::thread::sleep(Duration::from_millis(2100));
        bench.smolvm(&["run", FILE, "--", "/bin/true"])?;
        Ok(bench)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.home.path()).env("SMOLVM_HOME", self.home.path().join("home"));
        command.env("SMOLVM_ENGINE", &self.engine).stdin(Stdio::null());
        command
    }

    /// Runs it to its end; what it said on stderr.
    pub fn smolvm(&self, args: &[&str]) -> Result<String> {
        Self::finish(self.command(args), args)
    }

    /// The same, traced.
    pub fn smolvm_traced(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(args);
        command.env("SMOLVM_TRACE", "1");
        Self::finish(command, args)
    }

    fn finish(mut command: Command, args: &[&str]) -> Result<String> {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("smolvm {args:?}: {said}");
        }
        Ok(said)
    }

    /// A file of an instance's directory.
    pub fn instance_file(&self, name: &str, file: &str) -> PathBuf {
        self.home.path().join("home/state/instances").join(name).join(file)
    }

    /// Runs `/bin/true` in a fresh machine; when what happened. `exec`: when the program was started.
    pub fn traced(&self) -> Result<Trace> {
        let begun = now_ns();
        let mut trace = Trace::parse(&self.smolvm_traced(&["run", FILE, "--", "/bin/true"])?);
        trace.0.push(("exec".to_owned(), begun));
        Ok(trace)
    }

    pub fn timed(&self, args: &[&str]) -> Result<Duration> {
        let begun = Instant::now();
        self.smolvm(args)?;
        Ok(begun.elapsed())
    }

    /// A detached start; the machine is removed afterwards.
    pub fn detached(&self) -> Result<Duration> {
        let took = self.timed(&["run", "-d", "--name", "d", FILE])?;
        self.smolvm(&["rm", "-f", "d"])?;
        Ok(took)
    }
}
