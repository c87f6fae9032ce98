//! What the tests of this file share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use e2e::{Home, debian};

/// Unpacked without their scripts: Python with its OpenSSL and SQLite, and the programs `openssl` and `sh`.
const PACKAGES: [&str; 24] = [
    "coreutils",
    "dash",
    "hostname",
    "libacl1",
    "libattr1",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgmp10",
    "liblzma5",
    "libpcre2-8-0",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libselinux1",
    "libsqlite3-0",
    "libssl3",
    "libuuid1",
    "openssl",
    "python3.11",
    "python3.11-minimal",
    "media-types",
    "zlib1g",
];

/// A machine file with Python, a network device and nothing running; `None`, said aloud, where apt cannot fetch.
/// Built once by whoever asks first.
pub fn python() -> Option<&'static Path> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    FILE.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let root = debian::root(&dir, &PACKAGES)?;
    let home = Home::new("soft");
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/right/guest");
    let definition = format!(
        "name = \"python\"\nmemory = \"256MiB\"\nnet = true\n[root]\ndir = \"{}\"\nfiles = {{ \"{}\" = \"/srv\" }}\n",
        root.display(),
        guest.display()
    );
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q", "-o", "python.smolmachine"]);
    Some(keep(&home.path("python.smolmachine"), &dir))
}

/// A machine file with Node, as the program itself installs it, and nothing running. Built once by whoever asks first.
pub fn node() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let home = Home::new("soft");
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/right/guest");
        let definition = format!(
            "name = \"node\"\nmemory = \"512MiB\"\n[root]\npackages = [\"nodejs\"]\nfiles = {{ \"{}\" = \"/srv\" }}\n",
            guest.display()
        );
        fs::write(home.path("Smolfile"), definition).unwrap();
        home.ok(&["build", "-q", "-o", "node.smolmachine"]);
        keep(&home.path("node.smolmachine"), &Path::new(env!("CARGO_TARGET_TMPDIR")).join("node"))
    })
}

/// Moves a file to a directory that outlives the home that it was made in.
fn keep(made: &Path, dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let file = dir.join(format!("{}.smolmachine", std::process::id()));
    fs::rename(made, &file).or_else(|_| fs::copy(made, &file).map(drop)).unwrap();
    file
}

/// Runs a shell line in a machine; what it says.
pub fn sh(home: &Home, name: &str, line: &str) -> String {
    home.ok(&["exec", name, "sh", "-c", line])
}

/// Starts a shell line in a machine that goes on by itself.
pub fn begin(home: &Home, name: &str, line: &str) {
    sh(home, name, &format!("({line}) >/tmp/said 2>&1 </dev/null &"));
}

/// Lines of the kernel's log.
pub fn kernel_log(home: &Home, name: &str) -> Vec<String> {
    home.ok(&["logs", "--kernel", name]).lines().map(str::to_owned).collect()
}

/// No line after the first `known` ones tells that the kernel lost its time.
pub fn assert_calm(log: &[String], known: usize, what: &str) {
    const BAD: [&str; 8] = [
        "lockup",
        "stall",
        "clocksource",
        "unstable",
        "backwards",
        "blocked for more than",
        "skew",
        "WARNING",
    ];
    let news = log.get(known..).unwrap_or_default();
    let bad: Vec<&String> = news.iter().filter(|line| BAD.iter().any(|word| line.contains(word))).collect();
    assert!(bad.is_empty(), "{what}: {bad:?}");
}

/// A number that a command printed.
pub fn number(said: &str) -> f64 {
    said.trim().parse().unwrap_or_else(|_| panic!("no number: {said:?}"))
}
