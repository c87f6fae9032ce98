//! `run --deterministic`: the same file and the same command line give the same run, to the bit.

use std::fs;

use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionKind};
use e2e::{Home, text, wait_until};

/// Time, random numbers, processes at once, timers, a disk.
const BUSY: &str = "date +%s.%N; od -An -N8 -tx1 /dev/urandom; for i in 1 2 3; do (seq $((i*3000)) | sha256sum) & \
                    done; sleep 0.4; wait; dd if=/dev/zero of=/root/x bs=64k count=20 2>/dev/null; sync; \
                    cat /proc/uptime; echo done; exit 3";

/// What it wrote, and its last line on standard error.
fn run(home: &Home, args: &[&str], command: &str) -> (String, String) {
    let output = home.run(&[&["run", "--deterministic"], args, &["--", "sh", "-c", command]].concat());
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    let state = err.lines().last().unwrap_or_default().to_owned();
    assert!(state.starts_with("smolvm: state "), "{err}");
    (text(&output.stdout), state)
}

#[test]
fn the_same_command_is_the_same_run() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"128MiB\"\ncpus = 3\n").unwrap();
    home.ok(&["build", "-q"]);
    let first = run(&home, &["./x.smolmachine"], BUSY);
    assert!(first.0.ends_with("done\n"), "{}", first.0);
    for _ in 0..2 {
        assert_eq!(run(&home, &["./x.smolmachine"], BUSY), first);
    }
    let other = run(&home, &["./x.smolmachine"], "exit  3");
    assert_ne!(other.1, first.1);
}

#[test]
fn what_ran_often_before_the_freeze_changes_when_code_is_translated_and_nothing_else() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let work = "seq 4000 | sort -r | md5sum";
    home.ok(&["exec", "m", "sh", "-c", &format!("for i in $(seq 40); do {work}; done")]);
    home.ok(&["snapshot", "m", "-o", "with.smolmachine"]);
    let with = MachineFile::open_path(&home.path("with.smolmachine")).unwrap();
    let mut without = MachineFileWriter::create(&home.path("without.smolmachine")).unwrap();
    let is_list = |kind: Option<SectionKind>| kind == Some(SectionKind::HotBlocks);
    for section in with.sections().iter().filter(|section| !is_list(section.kind())) {
        without.copy_section(&with, section, CopyCheck::Rehash).unwrap();
    }
    without.finish().unwrap();
    let list = with.section(SectionKind::HotBlocks).expect("much ran often");
    assert!(list.len >= 8 * 500, "{} bytes", list.len);
    let work = format!("{work}; exit 3");
    let told = run(&home, &["./with.smolmachine"], &work);
    assert_eq!(run(&home, &["./without.smolmachine"], &work), told);
    // It is used: a machine that has nothing to do translates what it will need; one that knows nothing does not.
    let translations = |name: &str| {
        let shown = home.ok(&["stats", "--once", "--engine", "--json", name]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["vcpus"][0]["translations"].as_u64().unwrap_or_else(|| panic!("{shown}"))
    };
    for file in ["with", "without"] {
        home.ok(&["run", "-d", "--name", file, &format!("./{file}.smolmachine")]);
    }
    wait_until("the list to be translated", || translations("with") >= 400);
    let unknown = translations("without");
    assert!(unknown < 300, "{unknown} translations of what nobody foresaw");
}

#[test]
fn output_that_nobody_reads_at_once_changes_nothing() {
    let home = Home::new("soft");
    let much = "seq 200000; exit 3";
    let first = run(&home, &[], much);
    assert_eq!(first.0.lines().count(), 200_000);
    assert_eq!(run(&home, &[], much), first);
}

/// Signals, floating point, processes, patterns, a disk: each piece of it interpreted and translated.
const MIXED: &str = "(sleep 0.01; kill -USR1 $$) & trap 'echo signal' USR1; awk 'BEGIN { for (i = 0; i < 20000; i++) \
                     s += sqrt(i) / 3; print s }'; seq 3000 | sort -r | sed 's/1/one/g' | md5sum; \
                     head -c 300000 /dev/urandom | gzip | gunzip | cksum; wait; exit 3";

#[test]
fn interpreter_and_translated_code_go_in_lockstep() {
    let home = Home::new("soft");
    let output = home.run(&["run", "--lockstep", "--", "sh", "-c", MIXED]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(text(&output.stdout).contains("signal"), "{}", text(&output.stdout));
    let last = err.lines().last().unwrap_or_default();
    let equal = last.strip_suffix(" pieces and the state at the end are equal");
    let pieces: u64 =
        equal.and_then(|l| l.strip_prefix("smolvm: ")?.parse().ok()).unwrap_or_else(|| panic!("{err}"));
    assert!(pieces > 1000, "{err}");
    // The run is the deterministic one.
    let alone = home.run(&["run", "--deterministic", "--", "sh", "-c", MIXED]);
    assert_eq!(alone.stdout, output.stdout);
}

#[test]
fn what_cannot_be_repeated_is_refused() {
    let home = Home::new("soft");
    let err = home.fails(&["run", "--deterministic"], 125);
    assert!(err.contains("name one"), "{err}");
    let err = home.fails(&["run", "--deterministic", "--engine", "kvm", "--", "true"], 125);
    assert!(err.contains("use soft"), "{err}");
    home.fails(&["run", "--deterministic", "-d", "--", "true"], 125);
    home.fails(&["run", "--lockstep", "--net", "--", "true"], 125);
}
