//! End to end: the program as a user runs it, in a home of its own.
//!
//! The binary is found beside the test's own (`target/<profile>/smolvm`); the first test to ask
//! builds it, so that `cargo test -p e2e` alone works.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

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

/// The program, built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let exe = std::env::current_exe().expect("this test's own path");
        let dir = exe.ancestors().nth(2).expect("target/<profile>/deps/test");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "smolvm"]);
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo").success(), "building smolvm failed");
        dir.join("smolvm")
    })
}

/// A user's home: its own store, instances and cache. Leftover machines are ended on drop.
pub struct Home {
    dir: tempfile::TempDir,
    engine: &'static str,
}

impl Home {
    /// A fresh one, its machines on `engine`.
    pub fn new(engine: &'static str) -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory"), engine }
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

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
