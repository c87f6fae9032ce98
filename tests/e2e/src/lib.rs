//! End to end: the program as a user runs it, in a home of its own.
//!
//! The binary is found beside the test's own (`target/<profile>/smolvm`); the first test to ask
//! builds it, so that `cargo test -p e2e` alone works.

pub mod debian;
pub mod oci;
pub mod power;
pub mod registry;
mod terminal;

pub use terminal::Terminal;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Engines that this host can run the body on; the others are named aloud.
pub fn engines() -> Vec<&'static str> {
    let mut engines = vec!["soft"];
    match std::env::var("SMOLVM_TEST_KVM") {
        Ok(_) => engines.push("kvm"),
        Err(_) => {
            eprintln!("skipped on kvm: set SMOLVM_TEST_KVM=1 on a host whose KVM `smolvm doctor` recommends")
        }
    }
    engines
}

/// Whether machines that were made on soft can go on under this host's KVM with `--force-template`, however poor it is.
/// Said aloud where not.
pub fn has_kvm() -> bool {
    let device = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &device {
        eprintln!("skipped: /dev/kvm cannot be opened: {error}");
    }
    device.is_ok()
}

/// For programs that are started under a KVM that shows them the host's CPU: without this a C library uses AVX registers,
/// which the guest's kernel, that was told of none, loses when it goes from one program to another.
pub const NO_AVX: &str =
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load";

/// The program, built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let exe = std::env::current_exe().expect("this test's own path");
        let dir = exe.ancestors().nth(2).expect("target/<profile>/deps/test");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "smolvm"]);
        // What cargo told this test about itself would be news to build scripts, and half the tree built anew.
        let ours = std::env::vars_os().map(|(name, _)| name);
        ours.filter(|name| name.as_encoded_bytes().starts_with(b"CARGO_PKG_")).for_each(|name| {
            build.env_remove(name);
        });
        build.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo").success(), "building smolvm failed");
        dir.join("smolvm")
    })
}

/// Looks again and again until it is so, as long as a test may take anyway.
///
/// # Panics
/// It has not become so in two minutes.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A user's home: its own store, instances and cache. Leftover machines are ended on drop.
pub struct Home {
    dir: tempfile::TempDir,
    engine: &'static str,
}

impl Home {
    /// A fresh one, its machines on `engine`. The program is built by then: no test times that.
    pub fn new(engine: &'static str) -> Self {
        program();
        Self { dir: tempfile::tempdir().expect("a temporary directory"), engine }
    }

    /// The processes of this home's machines and commands, by their environment.
    pub fn processes(&self) -> Vec<u32> {
        let ours = format!("SMOLVM_HOME={}", self.dir.path().join("home").display());
        let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let has_it = |pid: &u32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == ours.as_bytes())
        };
        pids.filter(has_it).collect()
    }

    /// Waits until no process of this home is left but those that `ps` names.
    ///
    /// # Panics
    /// When one is left after half a minute.
    pub fn settle(&self) {
        let begun = Instant::now();
        loop {
            let shown = self.ok(&["ps", "--json"]);
            let rows: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            let known: Vec<u64> =
                rows.as_array().into_iter().flatten().filter_map(|row| row["pid"].as_u64()).collect();
            let left: Vec<u32> =
                self.processes().into_iter().filter(|pid| !known.contains(&u64::from(*pid))).collect();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed().as_secs() < 30, "processes {left:?} are left; known: {known:?}");
            std::thread::yield_now();
        }
    }

    /// Unfinished files anywhere below this home.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    dirs.push(entry.path());
                }
                if name.starts_with(".smolvm-") || name.starts_with(".tmp") || name.starts_with(".overlay") {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of the program.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("SMOLVM_HOME", self.dir.path().join("home"))
            .env("SMOLVM_ENGINE", self.engine)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("running smolvm")
    }

    /// Runs it, demands success, returns stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "smolvm {args:?}: {:?}\n{out}\n{err}", output.status);
        out
    }

    /// [`Home::ok`] on another engine than the home's; on kvm whatever this host's KVM shows the guest.
    pub fn on(&self, engine: &str, args: &[&str]) -> String {
        let (verb, rest) = args.split_first().expect("a verb");
        let force: &[&str] = if (engine, *verb) == ("kvm", "run") { &["--force-template"] } else { &[] };
        let args = [&[*verb], force, rest].concat();
        let output = self.command(&args).env("SMOLVM_ENGINE", engine).output().expect("running smolvm");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "smolvm {args:?} on {engine}: {:?}\n{out}\n{err}", output.status);
        out
    }

    /// Starts it, its words thrown away.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("smolvm")
    }

    /// How long it takes when nobody interferes.
    pub fn life(&self, args: &[&str]) -> Duration {
        let begun = Instant::now();
        self.ok(args);
        begun.elapsed()
    }

    /// Runs it, demands this exit code, returns stderr.
    pub fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "smolvm {args:?}:\n{}\n{err}", text(&output.stdout));
        err
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let names = text(&self.run(&["ps", "-q"]).stdout);
        for name in names.lines() {
            self.run(&["rm", "-f", name]);
        }
    }
}

/// `short`, or `long` in the long setting (`cargo xtask ci --long`).
pub fn rounds(short: u64, long: u64) -> u64 {
    if std::env::var_os("SMOLVM_LONG").is_some() { long } else { short }
}

/// The instant of one of many rounds: a sequence that fills `0..span` evenly, the same in every run.
pub fn instant(round: u64, span: Duration) -> Duration {
    let share = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    span.mul_f64(share as f64 / f64::from(u32::MAX))
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
