//! Snapshots of machines that go on meanwhile: what is in the file is one instant.

use std::fs;
use std::process::Stdio;

use e2e::Home;
use serde_json::Value;

/// Fills 6 MiB of memory with the number of the pass, and checks at each pass that all of it holds the
/// number of the pass before: a page of another instant would be seen.
const EVERYWHERE: &str = r#"awk 'BEGIN { for (i = 0; i < 20000; i++) a[i] = 0;
    for (n = 1; ; n++) { for (i = 0; i < 20000; i++) { if (a[i] != n - 1) { print n, i, a[i] >"/tmp/torn"; exit }
    a[i] = n } print n >"/tmp/pass"; close("/tmp/pass") } }'"#;
/// Appends to a file on the disk and reads it back from there.
const DISK: &str = "i=0; while :; do i=$((i+1)); echo $i >>/root/log; sync; \
                    echo 3 >/proc/sys/vm/drop_caches; tail -n 1 /root/log >/dev/null; done";

fn started(home: &Home) {
    home.ok(&["run", "-d", "--name", "m"]);
    write_everywhere(home);
}

fn write_everywhere(home: &Home) {
    for (name, script) in [("everywhere", EVERYWHERE), ("disk", DISK)] {
        fs::write(home.path(name), script).unwrap();
        home.ok(&["cp", name, &format!("m:/root/{name}")]);
        home.ok(&["exec", "m", "sh", "-c", &format!("sh /root/{name} >/dev/null 2>&1 &")]);
    }
    home.ok(&["exec", "m", "sh", "-c", "until [ -s /tmp/pass ] && [ -s /root/log ]; do sleep 0.02; done"]);
}

/// The writers of a resumed machine go on, find nothing torn, and the log has no gap.
fn goes_on_whole(home: &Home, name: &str) {
    let check = "p=$(cat /tmp/pass); until [ \"$(cat /tmp/pass)\" -ge $((p+2)) ] || [ -e /tmp/torn ]; do \
                 sleep 0.05; done; [ -e /tmp/torn ] && cat /tmp/torn && exit 1; \
                 n=$(wc -l </root/log); head -n $((n-1)) /root/log >/tmp/log; seq 1 $((n-1)) | cmp - /tmp/log";
    home.ok(&["exec", name, "sh", "-c", check]);
}

fn snapshot(home: &Home, args: &[&str]) -> Value {
    let args = [&["snapshot", "m", "--json"], args].concat();
    serde_json::from_str(&home.ok(&args)).unwrap()
}

#[test]
fn a_file_is_one_instant_although_memory_and_disk_are_written_meanwhile() {
    let home = Home::new("soft");
    started(&home);
    for round in 0..3 {
        let file = format!("./s{round}.smolmachine");
        let report = snapshot(&home, &["-o", &file]);
        assert!(report["kept_pages"].as_u64().unwrap() > 0, "nothing was written meanwhile: {report}");
        home.ok(&["verify", &file]);
        home.ok(&["run", "-d", "--name", "back", &file]);
        goes_on_whole(&home, "back");
        home.ok(&["rm", "-f", "back"]);
    }
    goes_on_whole(&home, "m");
}

#[test]
fn two_processors_stop_at_the_same_instant() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"128MiB\"\ncpus = 2\n").unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    write_everywhere(&home);
    snapshot(&home, &["-o", "s.smolmachine"]);
    home.ok(&["run", "-d", "--name", "back", "./s.smolmachine"]);
    goes_on_whole(&home, "back");
    goes_on_whole(&home, "m");
}

#[test]
fn commands_are_not_refused_while_snapshots_are_taken() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    std::thread::scope(|scope| {
        let snapshots = scope.spawn(|| {
            for _ in 0..25 {
                home.ok(&["snapshot", "-q", "m", "-o", "s.smolmachine"]);
            }
        });
        while !snapshots.is_finished() {
            assert_eq!(home.ok(&["exec", "m", "echo", "here"]), "here\n");
        }
    });
}

#[test]
fn snapshots_at_the_same_time_are_each_an_instant() {
    let home = Home::new("soft");
    started(&home);
    let files = ["a.smolmachine", "b.smolmachine", "c.smolmachine"];
    let children: Vec<_> =
        files.iter().map(|f| home.command(&["snapshot", "-q", "m", "-o", f]).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for file in files {
        home.ok(&["run", "-d", "--name", "back", file]);
        goes_on_whole(&home, "back");
        home.ok(&["rm", "-f", "back"]);
    }
}

#[test]
fn changes_alone_need_the_file_that_they_build_on() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "first"]);
    home.ok(&[
        "exec",
        "first",
        "sh",
        "-c",
        "echo one >/root/state; dd if=/dev/urandom of=/dev/shm/a bs=1M count=8",
    ]);
    home.ok(&["snapshot", "-q", "first", "-o", "parent.smolmachine"]);
    home.ok(&["run", "-d", "--name", "m", "./parent.smolmachine"]);
    home.ok(&["exec", "m", "sh", "-c", "echo two >>/root/state; rm /dev/shm/a; echo x >/dev/shm/b"]);
    let report = snapshot(&home, &["--incremental", "-o", "one.smolmachine"]);
    let whole = fs::metadata(home.path("parent.smolmachine")).unwrap().len();
    assert!(report["file_bytes"].as_u64().unwrap() < whole / 3, "{report} of {whole}");
    // A chain does not grow: the changes of the changes are over the same parent.
    home.ok(&["run", "-d", "--name", "n", "./one.smolmachine"]);
    home.ok(&["exec", "n", "sh", "-c", "echo three >>/root/state"]);
    home.ok(&["snapshot", "-q", "n", "--incremental", "-o", "two.smolmachine"]);
    let parent = |file: &str| -> Value {
        let shown: Value = serde_json::from_str(&home.ok(&["inspect", "--json", file])).unwrap();
        shown["parent"].clone()
    };
    assert!(parent("one.smolmachine").is_string());
    assert_eq!(parent("one.smolmachine"), parent("two.smolmachine"));
    assert_eq!(
        home.ok(&["run", "./two.smolmachine", "--", "cat", "/root/state", "/dev/shm/b"]),
        "one\ntwo\nthree\nx\n"
    );
    assert_eq!(home.ok(&["run", "./one.smolmachine", "--", "cat", "/root/state"]), "one\ntwo\n");
    // A whole snapshot of what was resumed from changes stands alone.
    home.ok(&["snapshot", "-q", "n", "-o", "whole.smolmachine"]);
    for name in ["first", "m", "n"] {
        home.ok(&["rm", "-f", name]);
    }
    // Nothing runs; the files that build on the parent keep it in the store.
    home.ok(&["prune"]);
    assert_eq!(home.ok(&["run", "./two.smolmachine", "--", "tail", "-n", "1", "/root/state"]), "three\n");

    let other = Home::new("soft");
    for file in ["parent.smolmachine", "one.smolmachine", "whole.smolmachine"] {
        fs::copy(home.path(file), other.path(file)).unwrap();
    }
    assert_eq!(other.ok(&["run", "./whole.smolmachine", "--", "tail", "-n", "1", "/root/state"]), "three\n");
    let said = other.fails(&["run", "./one.smolmachine", "--", "true"], 125);
    assert!(said.contains(parent("one.smolmachine").as_str().unwrap()) && said.contains("import"), "{said}");
    other.ok(&["import", "parent.smolmachine"]);
    assert_eq!(other.ok(&["run", "./one.smolmachine", "--", "cat", "/root/state"]), "one\ntwo\n");
}

#[test]
fn what_cannot_be_written_leaves_the_machine_running() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m", "--cold", "--", "sleep", "1000"]);
    let said = home.fails(&["snapshot", "m", "-o", "no/such/dir/x.smolmachine"], 125);
    assert!(said.contains("no/such/dir"), "{said}");
    let said = home.fails(&["snapshot", "m", "--incremental", "-o", "x.smolmachine"], 125);
    assert!(said.contains("without --incremental"), "{said}");
    home.ok(&["exec", "m", "true"]);
    assert!(!home.path("x.smolmachine").exists());
}

#[test]
fn killed_at_any_instant_it_leaves_the_old_file_or_the_new_one() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "first"]);
    home.ok(&["snapshot", "-q", "first", "-o", "s.smolmachine"]);
    let mut seed = 12345u64;
    for round in 0..12 {
        let name = format!("m{round}");
        home.ok(&["run", "-d", "--name", &name]);
        home.ok(&["exec", &name, "sh", "-c", &format!("echo {round} >/root/round")]);
        let shown: Value = serde_json::from_str(&home.ok(&["inspect", "--json", &name])).unwrap();
        let pid = shown["pid"].as_u64().unwrap().to_string();
        let extra: &[&str] = if round % 2 == 0 { &[] } else { &["--incremental"] };
        let args = [&["snapshot", "-q", &name, "-o", "s.smolmachine"], extra].concat();
        let mut child = home.command(&args).stderr(Stdio::null()).spawn().unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Where the instant falls is the point of it; nothing is waited for.
        std::thread::sleep(std::time::Duration::from_micros(seed >> 33 & 0xffff));
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        let _ = child.wait();
        home.ok(&["verify", "s.smolmachine"]);
        home.ok(&["run", "./s.smolmachine", "--", "true"]);
        home.ok(&["rm", "-f", &name]);
    }
    let left: Vec<_> = fs::read_dir(home.path(""))
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().into_string().ok())
        .filter(|n| n.starts_with(".smolvm-tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
