//! `doctor --selftest`: whole machines moved between the engines in the midst of work, as a user moves them: by the program
//! itself, in a home of its own. The work checks what it computes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use machine::EngineKind;
use serde::Serialize;
use serde_json::Value;

/// Where each machine goes, from soft.
const WAY: [EngineKind; 4] = [EngineKind::Kvm, EngineKind::Soft, EngineKind::Kvm, EngineKind::Kvm];
/// Where the CPU template is not kept, programs see the host's AVX, whose registers a guest's kernel that was told of none
/// loses. It is known that it is not kept; what is tried here is all the rest.
const NO_AVX: &str =
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load";
/// Seconds that a machine may take to go on with its work.
const PATIENCE: u32 = 300;

/// What a machine did after one move.
#[derive(Debug, Serialize)]
pub struct MachineLeg {
    pub vcpus: u32,
    pub from: EngineKind,
    pub to: EngineKind,
    pub passed: bool,
    /// What went wrong; empty when nothing did.
    pub failure: String,
    /// The vCPUs stood still for the snapshot that it moved by, µs.
    pub pause_us: u64,
    /// Until its agent had answered after it, ms.
    pub resume_ms: u64,
}

/// Moves a machine for each number of vCPUs; `step` is told of each. A move that fails ends that machine's way.
///
/// # Errors
/// A machine that cannot be made on soft; the host's.
pub fn run(processors: &[u32], step: &dyn Fn(&str)) -> Result<Vec<MachineLeg>> {
    let mut legs = Vec::new();
    for &vcpus in processors {
        let place = Place::new()?;
        place.start(vcpus).with_context(|| format!("starting a machine of {vcpus} vCPUs on soft"))?;
        let mut from = EngineKind::Soft;
        for to in WAY {
            step(&format!("moving a machine of {vcpus} vCPUs from {from} to {to}"));
            let mut leg = MachineLeg {
                vcpus,
                from,
                to,
                passed: false,
                failure: String::new(),
                pause_us: 0,
                resume_ms: 0,
            };
            match place.go(&mut leg) {
                Ok(()) => leg.passed = true,
                Err(error) => leg.failure = format!("{error:#}"),
            }
            let passed = leg.passed;
            legs.push(leg);
            if !passed {
                break;
            }
            from = to;
        }
    }
    Ok(legs)
}

/// The work: on each vCPU a loop whose result is known, and lines that are brought to the disk one by one.
fn work(vcpus: u32) -> String {
    let sum = (1..=2000u64).fold(0, |sum, i| (sum * 31 + i) % 1_000_003);
    let mut script = String::new();
    for number in 0..vcpus {
        script.push_str(&format!(
            ": >/tmp/n{number}; (while :; do i=0; s=0; while [ $i -lt 2000 ]; do i=$((i+1)); s=$(((s*31+i)%1000003)); done; \
             [ $s = {sum} ] || echo loop {number}: $s >/tmp/wrong; echo >>/tmp/n{number}; done) \
             >/dev/null 2>&1 & "
        ));
    }
    script + "(i=0; while :; do i=$((i+1)); echo $i >>/root/log; sync; done) >/dev/null 2>&1 &"
}

/// Waits until all of it went on, and checks the lines.
fn check(vcpus: u32) -> String {
    let mut script = String::from("set -e; lines() { wc -l <$1; }; l=$(lines /root/log); ");
    for n in 0..vcpus {
        let more = format!("a=$(lines /tmp/n{n}); until [ $(lines /tmp/n{n}) -gt $a ]; do sleep 0.1; done; ");
        script.push_str(&more);
    }
    script
        + "until [ $(lines /root/log) -gt $l ]; do sleep 0.1; done; if [ -e /tmp/wrong ]; then cat /tmp/wrong >&2; exit 1; fi; \
           head -n $l /root/log >/tmp/log; seq 1 $l | cmp - /tmp/log"
}

/// A home that goes away with what runs in it.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("smolvm-selftest-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn file(&self) -> PathBuf {
        self.dir.join("moved.smolmachine")
    }

    /// Runs this program; what it says.
    fn smolvm(&self, args: &[&str]) -> Result<String> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.args(args).env("SMOLVM_HOME", self.dir.join("home")).env_remove("SMOLVM_ENGINE");
        let output = command.stdin(Stdio::null()).output().context("running this program")?;
        if !output.status.success() {
            bail!("smolvm {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn in_guest(&self, script: &str) -> Result<()> {
        let limit = PATIENCE.to_string();
        self.smolvm(&["exec", "-e", NO_AVX, "m", "timeout", &limit, "sh", "-c", script]).map(drop)
    }

    fn start(&self, vcpus: u32) -> Result<()> {
        let cpus = vcpus.to_string();
        let boot =
            ["run", "-d", "--name", "m", "--engine", "soft", "--cold", "--cpus", &cpus, "--memory", "128MiB"];
        self.smolvm(&[&boot[..], &["--", "sleep", "1000000"]].concat())?;
        self.in_guest(&work(vcpus))?;
        let begun = "until [ -s /root/log ] && [ -s /tmp/n0 ]; do sleep 0.1; done";
        self.in_guest(begun)?;
        self.in_guest(&check(vcpus))
    }

    fn go(&self, leg: &mut MachineLeg) -> Result<()> {
        let (file, engine) = (self.file(), leg.to.to_string());
        let file = path(&file)?;
        let report: Value = serde_json::from_str(&self.smolvm(&["snapshot", "--json", "m", "-o", file])?)?;
        leg.pause_us = report["pause_us"].as_u64().unwrap_or(0);
        self.smolvm(&["rm", "-f", "m"])?;
        let begun = Instant::now();
        self.smolvm(&["run", "-d", "--name", "m", "--engine", &engine, "--force-template", file])?;
        leg.resume_ms = begun.elapsed().as_millis() as u64;
        self.in_guest(&check(leg.vcpus))
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the directory for temporary files has a name that is not UTF-8")
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.smolvm(&["rm", "-f", "m"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}
