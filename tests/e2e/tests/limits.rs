//! Limits of the host's memory and CPU for a machine, by a control group of its process.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::{Home, engines, text};
use serde_json::Value;

/// Whether this host and user can limit machines at all; said aloud where not.
fn can_limit(home: &Home) -> bool {
    let said = home.run(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(&text(&said.stdout)).expect("JSON");
    let works = report["limits"]["work"] == true;
    if !works {
        eprintln!("skipped: no control group can be made here: {}", report["limits"]["how"]);
    }
    works
}

/// The groups of ours that a process is in, and those that are left of nobody.
fn groups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                match entry.file_name().to_string_lossy().starts_with("smolvm.limited") {
                    true => found.push(entry.path()),
                    false => dirs.push(entry.path()),
                }
            }
        }
    }
    found
}

fn stats(home: &Home, name: &str) -> Value {
    let said = home.ok(&["stats", "--once", "--interval", "10ms", "--json", name]);
    serde_json::from_str::<Value>(&said).expect("JSON")[0].clone()
}

#[test]
fn a_machine_is_held_to_its_limits_and_leaves_nothing() {
    for engine in engines() {
        let home = Home::new(engine);
        if !can_limit(&home) {
            return;
        }
        let name = format!("limited-{}", std::process::id());
        let ours = || groups().iter().filter(|dir| dir.to_string_lossy().contains(&name)).count();
        let flags = ["--memory-limit", "700MiB", "--cpu-limit", "0.03"];
        home.ok(&[&["run", "-d", "--name", &name], &flags[..], &["--", "sleep", "1000"]].concat());
        assert!(ours() > 0, "no group is there");
        let before = stats(&home, &name);
        assert_eq!(before["limits"]["memory"], 700u64 << 20);
        assert_eq!(before["limits"]["cpu_milli"], 30);
        assert!(before["limits"]["memory_used"].as_u64().unwrap() > 1 << 20, "{before}");
        // It wants all that there is, and is made to wait.
        home.ok(&["exec", &name, "sh", "-c", "i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); done"]);
        let after = stats(&home, &name);
        assert!(
            after["limits"]["throttled_ms"].as_u64() > before["limits"]["throttled_ms"].as_u64(),
            "{after}"
        );
        assert!(home.ok(&["stats", "--once", "--interval", "10ms"]).contains("/ 700.0 MiB"));
        // Frozen it is nobody's, and it has them again when it goes on.
        home.ok(&["freeze", "-q", &name]);
        assert_eq!(ours(), 0, "{:?}", groups());
        home.ok(&["start", &name]);
        assert_eq!(stats(&home, &name)["limits"]["cpu_milli"], 30);
        // Its copies have limits of their own.
        let copy = format!("{name}-copy");
        home.ok(&["fork", "-q", &name, "--name", &copy]);
        assert_eq!(stats(&home, &copy)["limits"]["memory"], 700u64 << 20);
        home.ok(&["rm", "-f", &name, &copy]);
        assert_eq!(ours(), 0, "{:?}", groups());
        home.ok(&["run", "--memory-limit", "700MiB", "--", "true"]);
        assert!(groups().iter().all(|dir| !dir.to_string_lossy().contains(&name)));
    }
}

#[test]
fn a_machine_that_takes_more_memory_than_it_may_is_ended_and_others_are_not() {
    let home = Home::new("soft");
    if !can_limit(&home) {
        return;
    }
    let name = format!("limited-over-{}", std::process::id());
    home.ok(&["run", "-d", "--name", "other", "--", "sleep", "1000"]);
    let run = home.run(&["run", "-d", "--name", &name, "--memory-limit", "120MiB", "--", "sleep", "1000"]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("the host ends the machine"), "{}", text(&run.stderr));
    let fill = "mkdir -p /mnt/t; mount -t tmpfs -o size=220m t /mnt/t; dd if=/dev/urandom of=/mnt/t/f bs=1M count=200";
    assert!(!home.run(&["exec", &name, "sh", "-c", fill]).status.success());
    home.fails(&["wait", &name], 137);
    assert!(home.ok(&["ps", "-a"]).lines().any(|line| line.starts_with(&name) && line.contains("dead")));
    assert_eq!(home.ok(&["exec", "other", "echo", "here"]), "here\n");
    home.ok(&["rm", &name]);
    // Its group is empty, and whoever comes by takes it away; the kernel lets nobody while the host has not yet buried
    // the killed process.
    home.ok(&["run", "--memory-limit", "700MiB", "--", "true"]);
    let left = groups().into_iter().filter(|dir| dir.to_string_lossy().contains(&name));
    left.for_each(|dir| assert_eq!(living(&dir), Vec::<String>::new(), "{}", dir.display()));
}

/// Processes in a group that are more than an entry in the host's table.
fn living(group: &Path) -> Vec<String> {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let state =
        |pid: &str| text(Path::new(&format!("/proc/{pid}/stat"))).rsplit(')').next().map(str::to_owned);
    let lives = |pid: &&str| state(pid).is_some_and(|state| !state.is_empty() && !state.starts_with(" Z"));
    text(&group.join("cgroup.procs")).lines().filter(lives).map(str::to_owned).collect()
}

#[test]
fn words_that_are_no_limits_are_refused() {
    let home = Home::new("soft");
    for words in
        [["--memory-limit", "600"], ["--memory-limit", "much"], ["--cpu-limit", "0"], ["--cpu-limit", "half"]]
    {
        let said = home.fails(&[&["run"], &words[..], &["--", "true"]].concat(), 125);
        assert!(said.contains(words[0]), "{said}");
    }
}
