//! The program in a home of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use artifact::MachineFile;

/// After so long a file's place is recorded in the store's table of paths.
const RECORDED: Duration = Duration::from_millis(2100);

pub struct Lab {
    program: PathBuf,
    home: tempfile::TempDir,
}

impl Lab {
    pub fn new(program: &Path) -> Result<Self> {
        let program = std::path::absolute(program)?;
        ensure!(
            program.exists(),
            "{} is not there; `cargo build --release -p smolvm` makes it",
            program.display()
        );
        Ok(Self { program, home: tempfile::tempdir()? })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.home.path()).env("SMOLVM_HOME", self.path("home"));
        command.env("SMOLVM_ENGINE", "soft").stdin(Stdio::null());
        command
    }

    /// Runs it to its end; what it said on stdout.
    pub fn smolvm(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().context("running smolvm")?;
        if !output.status.success() {
            bail!("smolvm {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it to its end; when its guest executed the first instruction (CLOCK_MONOTONIC).
    pub fn traced(&self, args: &[&str]) -> Result<Duration> {
        let output = self.command(args).env("SMOLVM_TRACE", "1").output().context("running smolvm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "smolvm {args:?}: {said}");
        let at = said.lines().find_map(|line| line.strip_prefix("smolvm-trace first_run "));
        let at =
            at.and_then(|at| at.trim().parse().ok()).context("it did not trace its first instruction")?;
        Ok(Duration::from_nanos(at))
    }

    pub fn timed(&self, args: &[&str]) -> Result<Duration> {
        let begun = Instant::now();
        self.smolvm(args)?;
        Ok(begun.elapsed())
    }

    /// Builds `file` of a definition and has the store know it.
    pub fn build(&self, definition: &str, file: &str) -> Result<()> {
        fs::write(self.path("Smolfile"), definition)?;
        self.smolvm(&["build", "-q", "-o", file])?;
        self.take_in(file)
    }

    /// Has the store know a file, so that later commands find it there.
    pub fn take_in(&self, file: &str) -> Result<()> {
        std::thread::sleep(RECORDED);
        self.smolvm(&["run", file, "--", "/bin/true"]).map(drop)
    }

    /// The store's own copy of a file.
    pub fn object(&self, file: &str) -> Result<MachineFile> {
        let id = MachineFile::open_path(&self.path(file))?.id();
        Ok(MachineFile::open_path(&self.path("home/store/objects").join(id.to_string()))?)
    }
}
