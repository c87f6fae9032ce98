//! Limits of the host's memory and CPU for a machine, by a control group of its process.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Home, engines, program, rounds, text};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
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

/// What a host with version 2 alone does for a session of its user, and what is tried there: a machine within its limits,
/// frozen, started again and copied, and one that goes beyond.
const ON_A_HOST: &str = r#"
set -e
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup
echo '+cpu +memory' >cgroup.subtree_control
mkdir -p user.slice
echo '+cpu +memory' >user.slice/cgroup.subtree_control
mkdir -p user.slice/session.scope
echo $$ >user.slice/session.scope/cgroup.procs
cd /
export SMOLVM_HOME=/root/home
smolvm=/nest/smolvm
$smolvm doctor | grep '^limits'
$smolvm run -q -d --name m --memory-limit 400MiB --cpu-limit 0.3 -- sleep 100000
group=$(echo /sys/fs/cgroup/user.slice/smolvm.m.*)
echo "set $(cat $group/memory.max) $(cat $group/cpu.max) $(cat $group/cgroup.procs | wc -l)"
$smolvm exec m sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done'
echo "throttled $(awk '$1 == "nr_throttled" { print ($2 > 0) }' $group/cpu.stat)"
echo "used $(awk '{ print ($1 > 1048576) }' $group/memory.current)"
$smolvm freeze -q m
echo "frozen $(ls -d /sys/fs/cgroup/user.slice/smolvm.* 2>/dev/null | wc -l)"
$smolvm start m
$smolvm fork -q m --name copy
for name in m copy; do cat /sys/fs/cgroup/user.slice/smolvm.$name.*/memory.max; done
$smolvm rm -f m copy
$smolvm run -q -d --name over --memory-limit 120MiB -- sleep 100000
fill='mkdir -p /mnt/t; mount -t tmpfs -o size=220m t /mnt/t; dd if=/dev/zero of=/mnt/t/f bs=1M count=200'
$smolvm exec over sh -c "$fill" || true
echo "over $($smolvm wait over)"
$smolvm rm over
echo "left $(ls -d /sys/fs/cgroup/user.slice/smolvm.* 2>/dev/null | wc -l)"
"#;

/// Inside that machine; nothing anywhere else.
#[test]
fn on_a_host_of_version_2() {
    if std::env::var_os("SMOLVM_TEST_NESTED").is_none() {
        return;
    }
    // As on the host: from its first group on.
    let first = fs::File::open("/proc/1/ns/cgroup").unwrap();
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&first), Some(LinkNameSpaceType::ControlGroup))
        .unwrap();
    panic!("{}", Command::new("unshare").args(["-m", "sh", "-c", ON_A_HOST]).exec());
}

/// The kernel of our machines knows version 2 only: a smolvm in one of them is on a host of that kind, whatever this one is.
#[test]
fn limits_hold_by_version_2_too() {
    if rounds(0, 1) == 0 {
        eprintln!("left to the long setting: a machine in a machine takes minutes");
        return;
    }
    let home = Home::new("soft");
    let ours = std::env::current_exe().unwrap();
    let libraries = text(&Command::new("ldd").arg(program()).arg(&ours).output().unwrap().stdout);
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut shared: Vec<String> = libraries.map(|path| format!("{path}:{path}:ro")).collect();
    shared.sort();
    shared.dedup();
    shared.push(format!("{}:/nest/smolvm:ro", program().display()));
    shared.push(format!("{}:/nest/test:ro", ours.display()));
    let mut words = vec!["run", "--cold", "--memory", "3GiB", "-e", "SMOLVM_TEST_NESTED=1"];
    shared.iter().for_each(|mount| words.extend(["-v", mount]));
    words.extend(["--", "/nest/test", "--exact", "on_a_host_of_version_2", "--nocapture"]);
    let said = home.run(&words);
    let (out, err) = (text(&said.stdout), text(&said.stderr));
    let told = |line: &str| out.lines().any(|said| said == line);
    assert!(out.contains("work (cgroup v2)"), "{out}\n{err}");
    for line in ["set 419430400 30000 100000 1", "throttled 1", "used 1", "frozen 0", "over 137", "left 0"] {
        assert!(told(line), "{line}: {out}\n{err}");
    }
    assert_eq!(out.lines().filter(|line| *line == "419430400").count(), 2, "{out}\n{err}");
}
