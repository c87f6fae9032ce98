//! A machine's life: run, exec, freeze, start, stop, copy, remove.

use std::io::{Read, Write};
use std::process::Stdio;

use e2e::{Home, engines, text, wait_until};

#[test]
fn the_built_in_machine_answers_and_passes_exit_codes_on() {
    for engine in engines() {
        let home = Home::new(engine);
        assert_eq!(home.ok(&["run", "--", "echo", "hello"]), "hello\n");
        // Resumed from the store this time.
        assert_eq!(home.ok(&["run", "--", "sh", "-c", "echo $((6*7))"]), "42\n");
        assert_eq!(home.run(&["run", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
        assert_eq!(home.run(&["run", "--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
        home.fails(&["run", "--", "no-such-command"], 127);
        home.fails(&["run", "--", "/etc/passwd"], 126);
        // Nothing is left of them.
        assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    }
}

/// A lock or a pipe of the script that starts a machine is not the machine's.
#[test]
fn a_machine_in_the_background_holds_nothing_of_whoever_started_it() {
    let home = Home::new("soft");
    let held = home.path("held");
    let shell = |words: &str| {
        let mut shell = std::process::Command::new("sh");
        let line = format!("exec 9>{}; \"$0\" {words} >/dev/null; ls -l /proc/$$/fd", held.display());
        let shell = shell.args(["-c", &line]).arg(e2e::program()).current_dir(home.path(""));
        let output =
            shell.env("SMOLVM_HOME", home.path("home")).env("SMOLVM_ENGINE", "soft").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        // Control: the shell holds it, and so does what it starts.
        assert!(text(&output.stdout).contains("held"), "{}", text(&output.stdout));
    };
    shell("run -d --name m");
    shell("fork m --count 2");
    home.ok(&["freeze", "m"]);
    shell("start m");
    for name in ["m", "m-1", "m-2"] {
        let shown: serde_json::Value = serde_json::from_str(&home.ok(&["inspect", "--json", name])).unwrap();
        let fds = std::fs::read_dir(format!("/proc/{}/fd", shown["pid"])).unwrap();
        let open: Vec<_> = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
        assert!(!open.is_empty() && !open.contains(&held), "{name}: {open:?}");
    }
}

#[test]
fn streams_are_carried_whole() {
    let home = Home::new("soft");
    let mut child = home
        .command(&["run", "-q", "-i", "--", "sh", "-c", "cat; echo to-stderr >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let (mut stdin, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(back == bytes, "{} of {} bytes came back", back.len(), bytes.len());
    assert_eq!(err, "to-stderr\n");
}

#[test]
fn a_frozen_process_goes_on_where_it_was() {
    for engine in engines() {
        let home = Home::new(engine);
        assert_eq!(home.ok(&["run", "-d", "--name", "m"]), "m\n");
        // A process with an open file, a counter in memory and a pending timer.
        let script = "exec 3>/tmp/log; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.02; done";
        home.ok(&["exec", "m", "sh", "-c", &format!("sh -c '{script}' >/dev/null 2>&1 & echo $! >/tmp/pid")]);
        home.ok(&["exec", "m", "sh", "-c", "while [ $(wc -l </tmp/log) -lt 10 ]; do sleep 0.05; done"]);
        let before = home.ok(&["exec", "m", "cat", "/tmp/pid", "/proc/uptime"]);
        home.ok(&["freeze", "m"]);
        assert!(home.ok(&["ps", "-a"]).contains("frozen"));
        home.ok(&["start", "m"]);
        let check = "p=$(cat /tmp/pid); n=$(wc -l </tmp/log); kill -0 $p && \
                     while [ $(wc -l </tmp/log) -lt $((n+10)) ]; do sleep 0.05; done; \
                     seq 1 $(wc -l </tmp/log) >/tmp/want; head -n $(wc -l </tmp/want) /tmp/log | cmp - /tmp/want";
        home.ok(&["exec", "m", "sh", "-c", check]);
        let after = home.ok(&["exec", "m", "cat", "/tmp/pid"]);
        assert!(before.starts_with(&after));
        // The clock is the host's again.
        let guest: u64 = home.ok(&["exec", "m", "date", "+%s"]).trim().parse().unwrap();
        let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(guest.abs_diff(host) <= 1, "guest {guest}, host {host}");
        home.ok(&["rm", "-f", "m"]);
    }
}

#[test]
fn clones_of_one_file_share_nothing_they_write() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "a"]);
    home.ok(&["exec", "a", "sh", "-c", "echo one >/etc/state"]);
    home.ok(&["snapshot", "a", "-o", "state.smolmachine"]);
    home.ok(&["run", "-d", "--name", "b", "./state.smolmachine"]);
    home.ok(&["exec", "b", "sh", "-c", "cat /etc/state && echo two >/etc/state"]);
    assert_eq!(home.ok(&["run", "./state.smolmachine", "--", "cat", "/etc/state"]), "one\n");
    assert_eq!(home.ok(&["exec", "a", "cat", "/etc/state"]), "one\n");
    assert_eq!(home.ok(&["exec", "b", "cat", "/etc/state"]), "two\n");
    let random = |name| home.ok(&["exec", name, "cat", "/proc/sys/kernel/random/uuid"]);
    assert_ne!(random("a"), random("b"));
    // The user's file may go: the store has it.
    std::fs::write(home.path("state.smolmachine"), b"overwritten").unwrap();
    assert_eq!(home.ok(&["exec", "b", "cat", "/etc/state"]), "two\n");
    let said = home.fails(&["run", "./state.smolmachine", "--", "true"], 125);
    assert!(said.contains("not a machine file") || said.contains("cut short"), "{said}");
}

#[test]
fn stop_keeps_the_disk_and_rm_takes_everything() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&["exec", "m", "sh", "-c", "echo kept >/root/file; sync"]);
    home.ok(&["stop", "-t", "1s", "m"]);
    assert!(home.ok(&["ps", "-a"]).contains("stopped"));
    let said = home.fails(&["exec", "m", "true"], 125);
    assert!(said.contains("smolvm start m"), "{said}");
    home.ok(&["start", "m"]);
    assert_eq!(home.ok(&["exec", "m", "cat", "/root/file"]), "kept\n");
    home.fails(&["rm", "m"], 125);
    let taken = home.fails(&["run", "-d", "--name", "m"], 125);
    assert!(taken.contains("smolvm start m"), "{taken}");
    home.ok(&["rm", "-f", "m"]);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn files_go_in_and_out() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    std::fs::create_dir_all(home.path("dir/sub")).unwrap();
    std::fs::write(home.path("dir/sub/a"), b"alpha").unwrap();
    home.ok(&["cp", "dir", "m:/srv/"]);
    assert_eq!(home.ok(&["exec", "m", "cat", "/srv/dir/sub/a"]), "alpha");
    home.ok(&["cp", "dir/sub/a", "m:/srv/renamed"]);
    home.ok(&["cp", "m:/srv/renamed", "back"]);
    assert_eq!(std::fs::read(home.path("back")).unwrap(), b"alpha");
    home.ok(&["cp", "m:/srv/dir", "out"]);
    assert_eq!(std::fs::read(home.path("out/sub/a")).unwrap(), b"alpha");
    home.fails(&["cp", "m:/no/such", "x"], 127);
}

#[test]
fn a_killed_vmm_is_seen_as_dead_and_goes() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let shown = home.ok(&["ps", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let pid = rows[0]["pid"].as_u64().unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(waited(&home, "m"), ("137\n".into(), Some(137)));
    assert!(home.ok(&["ps", "-a"]).contains("dead"));
    home.ok(&["rm", "m"]);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

/// What `wait` prints and ends with.
fn waited(home: &Home, name: &str) -> (String, Option<i32>) {
    let said = home.run(&["wait", name]);
    (text(&said.stdout), said.status.code())
}

#[test]
fn the_exit_code_of_a_machine_says_how_it_ended() {
    let home = Home::new("soft");
    let run = |name, command: &[&str]| home.ok(&[&["run", "-d", "--name", name, "--"], command].concat());
    // By the verb, before its command ended.
    run("killed", &["sleep", "1000"]);
    home.ok(&["kill", "killed"]);
    assert_eq!(waited(&home, "killed"), ("137\n".into(), Some(137)));
    // A command that was killed inside is the same to whoever waits; one that ends has its own.
    run("inside", &["sh", "-c", "kill -9 $$"]);
    assert_eq!(waited(&home, "inside"), ("137\n".into(), Some(137)));
    run("three", &["sh", "-c", "exit 3"]);
    assert_eq!(waited(&home, "three"), ("3\n".into(), Some(3)));
    // The last one's is the exit code; what ended stays known, and goes with the next start.
    let said = home.run(&["wait", "three", "killed"]);
    assert_eq!((text(&said.stdout), said.status.code()), ("3\n137\n".into(), Some(137)));
    home.ok(&["start", "killed"]);
    home.ok(&["stop", "killed"]);
    assert_ne!(waited(&home, "killed").1, Some(137));
    // Nobody kills a guest that turns itself off, nor one that starts over, which a kernel that panics does.
    run("off", &["sh", "-c", "poweroff -f; sleep 1000"]);
    assert_eq!(waited(&home, "off"), ("0\n".into(), Some(0)));
    run("over", &["sh", "-c", "reboot -f; sleep 1000"]);
    assert_eq!(waited(&home, "over"), ("1\n".into(), Some(1)));
}

#[test]
fn a_command_beside_others_goes_on_by_itself() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let script = "until test -e /end; do sleep 0.05; done; echo $WHO >/root/done";
    assert_eq!(home.ok(&["exec", "-d", "-e", "WHO=me", "m", "sh", "-c", script]), "");
    home.ok(&["exec", "m", "touch", "/end"]);
    wait_until("it is done", || home.run(&["exec", "m", "cat", "/root/done"]).stdout == b"me\n");
    home.fails(&["exec", "-d", "m", "/no/such"], 127);
}

/// What it said is asked for most often when it has ended.
#[test]
fn what_a_command_in_the_background_said_is_kept() {
    for engine in engines() {
        let home = Home::new(engine);
        let script = "echo first; echo wrong >&2; until test -e /end; do sleep 0.05; done; echo last; exit 3";
        home.ok(&["run", "-d", "--name", "m", "--", "sh", "-c", script]);
        wait_until("the first line", || home.ok(&["logs", "m"]) == "first\n");
        // Who joins takes nothing of it away, and the machine still ends with its command.
        let mut joined = home.spawn(&["attach", "m"]);
        home.ok(&["exec", "m", "touch", "/end"]);
        assert_eq!(waited(&home, "m"), ("3\n".into(), Some(3)));
        joined.wait().unwrap();
        assert!(home.ok(&["ps", "-a"]).contains("stopped (3)"));
        let said = home.run(&["logs", "m"]);
        assert_eq!((text(&said.stdout), text(&said.stderr)), ("first\nlast\n".into(), "wrong\n".into()));
        assert_eq!(home.ok(&["logs", "--tail", "1", "m"]), "last\n");
        // Stopped by name: with what it said to that.
        let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";
        home.ok(&["run", "-d", "--name", "n", "--", "sh", "-c", script]);
        wait_until("the first line", || home.ok(&["logs", "n"]) == "up\n");
        home.ok(&["stop", "n"]);
        assert_eq!(home.ok(&["logs", "n"]), "up\nbye\n");
        // The next run's are its own.
        home.ok(&["start", "n"]);
        wait_until("the first line", || home.ok(&["logs", "n"]) == "up\n");
    }
}

#[test]
fn a_command_that_was_frozen_ends_its_machine_when_it_ends() {
    for engine in engines() {
        let home = Home::new(engine);
        let wait = "until test -e /end; do sleep 0.05; done; echo end; exit 7";
        home.ok(&["run", "-d", "--name", "alone", "--", "sh", "-c", wait]);
        std::fs::write(
            home.path("Smolfile"),
            "memory = \"64MiB\"\n[run]\ncommand = \"echo up; exec sleep 99999\"\n[ready]\nlog = \"up\"\n",
        )
        .unwrap();
        home.ok(&["build", "-q", "-o", "x.smolmachine"]);
        home.ok(&["run", "-d", "--name", "beside", "./x.smolmachine", "--", "sh", "-c", wait]);
        // A snapshot's own command is none of a definition's service; another one runs beside it.
        home.ok(&["snapshot", "-q", "alone", "-o", "both.smolmachine"]);
        home.ok(&["run", "-d", "--name", "both", "./both.smolmachine", "--", "sh", "-c", wait]);
        for name in ["alone", "beside", "both"] {
            home.ok(&["freeze", name]);
            home.ok(&["start", name]);
            home.ok(&["exec", name, "touch", "/end"]);
            assert_eq!(waited(&home, name), ("7\n".into(), Some(7)), "{name}");
        }
        assert_eq!(home.ok(&["ps", "-a"]).matches("stopped (7)").count(), 3);
    }
}

#[test]
fn a_machine_in_the_background_ends_when_its_time_is_over() {
    let home = Home::new("soft");
    let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let flags = ["run", "-d", "--name", "m", "--timeout", "500ms", "--restart", "always", "--"];
    home.ok(&[&flags[..], &["sh", "-c", script]].concat());
    assert_eq!(waited(&home, "m"), ("124\n".into(), Some(124)));
    assert!(home.ok(&["ps", "-a"]).contains("stopped (124)"));
    assert_eq!(home.ok(&["logs", "m"]), "up\n");
    home.fails(&["run", "-d", "--timeout", "soon", "--", "true"], 125);
}
