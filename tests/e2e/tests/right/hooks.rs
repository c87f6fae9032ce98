//! Hooks run at the right time and know why: SMOLVM_REASON is `snapshot` before, and `resume`, `fork` or `crash` after.

use std::fs;

use e2e::{Home, engines, text};

use crate::common::sh;

const BEFORE: &str = "echo $SMOLVM_REASON >>/root/before";
const AFTER: &str = "echo $SMOLVM_REASON >>/root/after";

fn said(home: &Home, name: &str) -> (String, String) {
    let both = sh(home, name, "tr '\\n' ' ' </root/before; echo; tr '\\n' ' ' </root/after");
    let (before, after) = both.split_once('\n').unwrap();
    (before.trim().to_owned(), after.trim().to_owned())
}

/// Ends a machine's process as a failing host would.
fn lose(home: &Home, name: &str) {
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["ps", "--json"])).unwrap();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    let pid = row["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    home.fails(&["wait", name], 137);
}

/// Every way that a machine goes on, from `run` with these words. The first of them has `built` reasons behind it.
fn every_way(home: &Home, run: &[&str], built: (&str, &str)) {
    let join = |old: &str, new: &str| format!("{old} {new}").trim().to_owned();
    home.ok(run);
    let (before, after) = built;
    sh(home, "m", "touch /root/before /root/after; sync");
    assert_eq!(said(home, "m"), (before.to_owned(), after.to_owned()), "resumed from its file");
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    let (before, after) = (join(before, "snapshot"), join(after, "resume"));
    assert_eq!(said(home, "m"), (before.clone(), after.clone()), "frozen and started");
    home.ok(&["fork", "m", "--name", "copy"]);
    let before = join(&before, "snapshot");
    assert_eq!(said(home, "m"), (before.clone(), after.clone()), "the source of a copy only goes on");
    let copied = join(&after, "fork");
    assert_eq!(said(home, "copy"), (before.clone(), copied), "a copy");
    // What they do after this is lost with their processes: they go on from where they came from.
    sh(home, "copy", "echo lost >>/root/after; sync");
    home.ok(&["kill", "copy"]);
    home.ok(&["start", "copy"]);
    assert_eq!(said(home, "copy"), (before.clone(), join(&after, "crash")), "a copy that was killed");
    // The copy of a machine that goes on after a crash is a copy.
    home.ok(&["fork", "copy", "--name", "copy-of-it"]);
    let crashed = join(&after, "crash fork");
    assert_eq!(said(home, "copy-of-it"), (join(&before, "snapshot"), crashed));
    lose(home, "m");
    home.ok(&["start", "m"]);
    let (frozen, _) = before.rsplit_once(' ').unwrap();
    let thawed = after.rsplit_once(' ').map_or("", |(start, _)| start);
    assert_eq!(said(home, "m"), (frozen.to_owned(), join(thawed, "crash")), "a machine that was lost");
    // And the next freeze is an ordinary one.
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    assert!(said(home, "m").1.ends_with("crash resume"), "{:?}", said(home, "m"));
}

#[test]
fn hooks_of_a_definition_are_told_why() {
    for engine in engines() {
        let home = Home::new(engine);
        let definition = format!(
            "name = \"x\"\nmemory = \"64MiB\"\n[run]\ncommand = \"while :; do sleep 1; done\"\n\
             [hooks]\nbefore_snapshot = [\"{BEFORE}\"]\nafter_restore = [\"{AFTER}\"]\n"
        );
        fs::write(home.path("Smolfile"), definition).unwrap();
        home.ok(&["build", "-q"]);
        every_way(&home, &["run", "-d", "--name", "m", "./x.smolmachine"], ("snapshot", "resume"));
    }
}

#[test]
fn hooks_of_a_run_are_told_why() {
    for engine in engines() {
        let home = Home::new(engine);
        let (before, after) = (format!("before_snapshot={BEFORE}"), format!("after_restore={AFTER}"));
        let run = ["run", "-d", "--name", "m", "--hooks", &before, "--hooks", &after];
        every_way(&home, &run, ("", "resume"));
        let output = home.fails(&["run", "--hooks", "at_night=true", "--", "true"], 125);
        assert!(output.contains("before_snapshot=CMD"), "{output}");
    }
}

#[test]
fn a_machine_that_its_policy_starts_again_is_told_of_the_crash() {
    let home = Home::new("soft");
    let hook = format!("after_restore={AFTER}");
    home.ok(&["run", "-d", "--name", "m", "--restart", "always", "--hooks", &hook]);
    // A guest that resets, as one that panics does, takes its machine with it; it starts from where it came from.
    home.run(&["exec", "m", "reboot", "-f"]);
    let begun = std::time::Instant::now();
    let after = loop {
        // While it is down there is nobody to ask.
        let output = home.run(&["exec", "m", "cat", "/root/after"]);
        if output.status.success() && text(&output.stdout) != "resume\n" {
            break text(&output.stdout);
        }
        assert!(begun.elapsed().as_secs() < 120, "it does not come back: {}", text(&output.stderr));
        std::thread::yield_now();
    };
    assert_eq!(after, "crash\n");
}

/// The hook sees the frozen processes standing, and they see what it did before anything else happens to them.
#[test]
fn hooks_run_before_the_processes_go_on() {
    let home = Home::new("soft");
    let hook = "after_restore=cat /run/smolvm/generation >/tmp/hooked; wc -l </tmp/log >/tmp/then; sleep 0.3; \
                wc -l </tmp/log >>/tmp/then";
    home.ok(&["run", "-d", "--name", "m", "--hooks", hook]);
    let loop_ = "g=; while :; do n=$(cat /run/smolvm/generation); [ \"$n\" = \"$g\" ] || \
                 { g=$n; [ \"$(cat /tmp/hooked)\" = \"$n\" ] || echo unhooked >>/tmp/wrong; }; echo $n >>/tmp/log; done";
    sh(&home, "m", &format!("({loop_}) >/dev/null 2>&1 &"));
    for _ in 0..3 {
        sh(
            &home,
            "m",
            "n=$(wc -l </tmp/log); until [ $(wc -l </tmp/log) -ge $((n+5)) ]; do sleep 0.02; done",
        );
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        let seen = sh(&home, "m", "cat /tmp/wrong 2>/dev/null; cat /tmp/then");
        let lines: Vec<&str> = seen.lines().collect();
        assert!(lines.len() == 2 && lines[0] == lines[1], "{seen}");
    }
}

#[test]
fn a_hook_that_fails_stops_a_freeze_and_no_resume() {
    let home = Home::new("soft");
    let hooks = ["--hooks", "before_snapshot=[ ! -e /tmp/no ]", "--hooks", "after_restore=[ -e /tmp/yes ]"];
    let output = home.run(&[&["run", "-d", "--name", "m"], &hooks[..]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("/tmp/yes"), "whoever started it is told: {said}");
    sh(&home, "m", "touch /tmp/no");
    let said = home.fails(&["freeze", "m"], 125);
    assert!(said.contains("hook") && said.contains("/tmp/no"), "{said}");
    assert_eq!(sh(&home, "m", "echo alive; rm /tmp/no"), "alive\n");
    home.ok(&["freeze", "m"]);
    let output = home.run(&["start", "m"]);
    assert!(output.status.success() && text(&output.stderr).contains("/tmp/yes"), "{output:?}");
    assert_eq!(sh(&home, "m", "echo alive"), "alive\n");
    let output = home.run(&["fork", "m", "--name", "copy"]);
    assert!(output.status.success() && text(&output.stderr).contains("copy: hook"), "{output:?}");
}
