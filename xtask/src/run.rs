//! Other programs: run one, and say what it was when it fails.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths::Paths;

/// This toolchain's cargo, in the workspace.
pub fn cargo(paths: &Paths) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&paths.root);
    command
}

/// Runs a command to its end with our own output streams; fails unless it exits with 0.
pub fn status(command: &mut Command) -> Result<()> {
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command with its output in `log` (made anew); a failure shows the log's last lines.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    watched(command, log, |_| {})
}

/// As `logged`; calls `progress` twice a minute with the number of lines that the command has written.
pub fn watched(command: &mut Command, log: &Path, progress: impl Fn(usize)) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    let again = file.try_clone().with_context(|| format!("cannot share the log {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(file))
        .stderr(Stdio::from(again))
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let mut said = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for a command")? {
            break status;
        }
        thread::sleep(Duration::from_millis(50));
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            progress(fs::read(log).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count());
        }
    };
    if !status.success() {
        bail!(
            "{} failed ({status}); its output is in {} and ends:\n{}",
            shown(command),
            log.display(),
            tail(log, 25)
        );
    }
    Ok(())
}

/// Runs a command and returns what it wrote to standard output; a failure shows its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = raw_output(command)?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} did not write UTF-8", shown(command)))
}

/// Runs a command and returns its streams and status, whatever they are.
pub fn raw_output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))
}

/// The first executable of that name on `PATH` or in the usual directories for administrators' tools.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    format!("`{}`", line.join(" "))
}

fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
