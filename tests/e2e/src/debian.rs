//! Roots out of Debian packages, as this system's apt fetches them: unpacked, not configured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory with the packages' files, kept in `dir` for later runs; `None`, said aloud, where apt cannot fetch.
pub fn root(dir: &Path, packages: &[&str]) -> Option<PathBuf> {
    let root = dir.join("root");
    if root.exists() {
        return Some(root);
    }
    fs::create_dir_all(dir).unwrap();
    let temp = tempfile::tempdir_in(dir).unwrap();
    let mut fetched = Command::new("apt-get");
    fetched.arg("download").args(packages).current_dir(temp.path());
    let fetched = fetched.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !fetched.is_ok_and(|status| status.success()) {
        eprintln!("skipped: apt-get cannot fetch Debian's packages here");
        return None;
    }
    let making = temp.path().join("root");
    for name in ["proc", "sys", "dev", "tmp", "run", "root", "srv", "etc", "var/tmp"] {
        fs::create_dir_all(making.join(name)).unwrap();
    }
    fs::write(making.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    for entry in fs::read_dir(temp.path()).unwrap().flatten().filter(|e| e.path().is_file()) {
        let status = Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&making).status().unwrap();
        assert!(status.success(), "unpacking {:?}", entry.path());
    }
    // Another run may have been faster.
    let _ = fs::rename(&making, &root);
    Some(root)
}

/// Whether these programs are here; where one is not, Debian's packages are installed if that is possible. Said aloud
/// when they cannot be had.
pub fn have(programs: &[&str], packages: &[&str]) -> bool {
    let quiet = |command: &mut Command| {
        let run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    let there = || {
        let found = |program: &&str| quiet(Command::new("sh").args(["-c", &format!("command -v {program}")]));
        programs.iter().all(found)
    };
    if there() {
        return true;
    }
    quiet(Command::new("apt-get").args(["install", "-y", "--no-install-recommends"]).args(packages));
    let there = there();
    if !there {
        eprintln!("skipped: {programs:?} are not here and cannot be installed (apt, root)");
    }
    there
}
