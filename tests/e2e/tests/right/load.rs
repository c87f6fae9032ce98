//! In the midst of work: threads that compute on all processors and a database that brings each row to the disk, frozen
//! and gone on with elsewhere again and again. `guest/load.py` checks everything that it computes.

use std::fs;

use e2e::{Home, NO_AVX, engines, has_kvm, rounds};

use crate::common::{assert_calm, kernel_log, number, python, sh};

/// What the digests come out as, computed here: SHA-256 over 64 KiB blocks, each starting with the digest before.
fn expected() -> String {
    use sha2::{Digest, Sha256};
    let mut block = vec![7u8; 65536];
    let mut digest = [0u8; 32];
    for _ in 0..32 {
        block[..32].copy_from_slice(&digest);
        digest = Sha256::digest(&block).into();
    }
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until every thread and the database have done something more.
fn progress(home: &Home, what: &str) {
    let said = sh(home, "m", "timeout 300 python3.11 /srv/load.py wait");
    assert_eq!(said, "went on\n", "{what}");
}

/// Checks the database whole; how many rows it has.
fn check(home: &Home, what: &str) -> f64 {
    let said = sh(home, "m", "timeout 300 python3.11 /srv/load.py check");
    let rows = said.strip_prefix("whole, rows: ").unwrap_or_else(|| panic!("{what}: {said}"));
    number(rows)
}

#[test]
fn work_goes_on_through_snapshots_freezes_and_moves() {
    for engine in engines() {
        let Some(file) = python() else { return };
        let processors: &[&str] = if rounds(0, 1) == 0 { &["1", "3"] } else { &["1", "2", "3", "4"] };
        for cpus in processors {
            let mut home = Home::new(engine);
            let digest = expected();
            let work = ["--", "python3.11", "/srv/load.py", "work", &digest];
            let run = ["run", "-d", "--name", "m", "--cold", "--cpus", cpus, file.to_str().unwrap()];
            home.ok(&[&run[..], &work].concat());
            assert_eq!(sh(&home, "m", "nproc").trim(), *cpus);
            let known = kernel_log(&home, "m").len();
            let mut rows = 0.0;
            for round in 0..rounds(2, 8) {
                let what = format!("{engine}, {cpus} vCPUs, round {round}");
                progress(&home, &what);
                home.ok(&["snapshot", "-q", "m", "-o", "s.smolmachine"]);
                progress(&home, &what);
                home.ok(&["freeze", "m"]);
                home.ok(&["start", "m"]);
                progress(&home, &what);
                // From the snapshot, which is older than what this one did since.
                let there = Home::new(engine);
                fs::rename(home.path("s.smolmachine"), there.path("s.smolmachine")).unwrap();
                there.ok(&["run", "-d", "--name", "m", "./s.smolmachine"]);
                home = there;
                progress(&home, &what);
                let now = check(&home, &what);
                assert!(now > rows, "{what}: {now} rows after {rows}");
                rows = now;
                assert_calm(&kernel_log(&home, "m"), known, &what);
            }
        }
    }
}

/// From engine to engine, on whatever KVM this host has. Programs that look at the work are started without AVX
/// ([`NO_AVX`]); the work itself was started on soft.
#[test]
fn work_goes_on_through_moves_between_engines() {
    if !has_kvm() {
        return;
    }
    let Some(file) = python() else { return };
    let processors: &[&str] = if rounds(0, 1) == 0 { &["2"] } else { &["1", "2", "3", "4"] };
    for cpus in processors {
        let home = Home::new("soft");
        let digest = expected();
        let work = ["--", "python3.11", "/srv/load.py", "work", &digest];
        let run = ["run", "-d", "--name", "m", "--cold", "--cpus", cpus, file.to_str().unwrap()];
        home.ok(&[&run[..], &work].concat());
        let known = kernel_log(&home, "m").len();
        progress(&home, "before it moves");
        let mut rows = check(&home, "before it moves");
        for round in 0..rounds(1, 4) {
            for engine in ["kvm", "soft"] {
                let what = format!("{cpus} vCPUs, round {round}, on {engine}");
                home.ok(&["snapshot", "-q", "m", "-o", "s.smolmachine"]);
                home.ok(&["rm", "-f", "m"]);
                home.on(engine, &["run", "-d", "--name", "m", "./s.smolmachine"]);
                let look =
                    ["exec", "-e", NO_AVX, "m", "timeout", "600", "python3.11", "/srv/load.py", "wait"];
                assert_eq!(home.ok(&look), "went on\n", "{what}");
                assert_calm(&kernel_log(&home, "m"), known, &what);
            }
            let now = check(&home, &format!("{cpus} vCPUs, round {round}"));
            assert!(now > rows, "{cpus} vCPUs: {now} rows after {rows}");
            rows = now;
        }
    }
}
