//! What a machine says and is told: logs, attach and its detach keys, wait, ps, tar streams.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use e2e::{Home, Terminal, text};

/// A machine whose service speaks on both streams, then counts.
fn speaking(home: &Home) {
    let definition = "name = \"x\"\nmemory = \"64MiB\"\n[run]\n\
                      command = \"echo to-out; echo to-err >&2; n=0; while [ ! -e /stop ]; do n=$((n+1)); echo line $n; sleep 0.2; done; exit 4\"\n\
                      [ready]\nlog = \"line 2\"\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
}

#[test]
fn logs_whole_last_since_stamped_and_followed() {
    let home = Home::new("soft");
    speaking(&home);
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    let output = home.run(&["logs", "m"]);
    assert!(text(&output.stdout).starts_with("to-out\nline 1\nline 2\n"), "{}", text(&output.stdout));
    assert_eq!(text(&output.stderr), "to-err\n");
    assert_eq!(home.ok(&["logs", "--tail", "1", "m"]).lines().count(), 1);
    assert_eq!(home.ok(&["logs", "--tail", "0", "m"]), "");
    let stamped = home.ok(&["logs", "-t", "--tail", "1", "m"]);
    let (stamp, rest) = stamped.split_once(' ').unwrap();
    assert!(stamp.ends_with('Z') && stamp.contains('T') && rest.starts_with("line "), "{stamped}");
    // What was said before the freeze is older than a tenth of a second.
    let recent = home.ok(&["logs", "--since", "100ms", "m"]);
    assert!(!recent.contains("to-out"), "{recent}");
    assert!(home.ok(&["logs", "--since", "10m", "m"]).contains("to-out"));
    home.fails(&["logs", "--since", "yesterday", "m"], 125);

    let mut child = home.command(&["logs", "-f", "--tail", "1", "m"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let number = |line: String| line.strip_prefix("line ").unwrap().parse::<u64>().unwrap();
    let first = number(lines.next().unwrap().unwrap());
    for n in 1..4 {
        assert_eq!(number(lines.next().unwrap().unwrap()), first + n);
    }
    // It ends with the service, and so does the machine.
    home.ok(&["exec", "m", "touch", "/stop"]);
    assert!(lines.all(|line| line.unwrap().starts_with("line ")));
    child.wait().unwrap();
    let waited = home.run(&["wait", "m"]);
    assert_eq!((text(&waited.stdout).as_str(), waited.status.code()), ("4\n", Some(4)));
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["ps", "-a", "--json"])).unwrap();
    assert_eq!((rows[0]["state"].as_str(), rows[0]["exit_code"].as_u64()), (Some("stopped"), Some(4)));
    assert_eq!(home.ok(&["ps", "-q"]), "");
    // What it said stays readable, and so does the kernel's log.
    let left = home.ok(&["logs", "m"]);
    assert!(left.starts_with("to-out\nline 1\nline 2\n"), "{left}");
    assert_eq!(home.ok(&["logs", "--tail", "1", "m"]), left.split_inclusive('\n').next_back().unwrap());
    assert_eq!(home.ok(&["logs", "--since", "1ms", "m"]), "");
    home.ok(&["logs", "--kernel", "m"]);
}

#[test]
fn a_service_in_the_foreground_is_followed_to_its_end() {
    let home = Home::new("soft");
    speaking(&home);
    let mut child =
        home.command(&["run", "--name", "m", "x.smolmachine"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("line "));
    home.ok(&["exec", "m", "touch", "/stop"]);
    assert!(lines.all(|line| line.unwrap().starts_with("line ")));
    assert_eq!(child.wait().unwrap().code(), Some(4));
    home.ok(&["rm", "m"]);
}

#[test]
fn what_a_service_says_at_once_is_shown() {
    let home = Home::new("soft");
    let service = "echo early; read -r old </run/smolvm/generation; : >/run/there; \
                   while read -r new </run/smolvm/generation; [ $new = $old ]; do :; done; echo awake; exit 3";
    let definition = format!(
        "name = \"x\"\nmemory = \"64MiB\"\n[run]\ncommand = \"{service}\"\n\
         [ready]\nexec = [\"test\", \"-e\", \"/run/there\"]\n"
    );
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    // Of a resume what came after it, and not what came before the freeze.
    let output = home.run(&["run", "x.smolmachine"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("awake\n", Some(3)));
    // Of a start all.
    let args = ["run", "--cold", "--name", "m", "x.smolmachine"];
    let mut child = home.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "early");
    home.ok(&["kill", "m"]);
    child.wait().unwrap();
}

#[test]
fn the_detach_keys_leave_a_session_running_and_attach_joins_it() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let mut shell = Terminal::start(&mut home.command(&["exec", "-it", "m", "sh"]));
    shell.until("# ");
    shell.type_in(b"echo my pid is $$.\n");
    shell.until("is $$.\r\n");
    let said = shell.until(".\r\n");
    let pid = said.trim_end_matches(".\r\n").rsplit(' ').next().unwrap().to_owned();
    shell.until("# ");
    // Ctrl-P Ctrl-Q.
    shell.type_in(&[0x10, 0x11]);
    assert_eq!(shell.wait(), Some(0));
    let mut again = Terminal::start(&mut home.command(&["attach", "m"]));
    // What was on the screen when it was left.
    again.until(&format!("is {pid}.\r\n"));
    again.until("# ");
    again.type_in(b"echo now pid $$.\n");
    again.until("now pid $$.\r\n");
    let said = again.until(".\r\n");
    assert!(said.contains(&format!("now pid {pid}.")), "{said}: another shell than {pid}");
    again.until("# ");
    again.type_in(b"exit 5\n");
    assert_eq!(again.wait(), Some(5));
    let said = home.fails(&["attach", "m"], 125);
    assert!(said.contains("smolvm exec m"), "{said}");
}

#[test]
fn tar_streams_go_both_ways() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&[
        "exec",
        "m",
        "sh",
        "-c",
        "mkdir -p /srv/in /srv/out && echo alpha >/srv/in/a && ln -s a /srv/in/b",
    ]);
    let tar = home.run(&["cp", "m:/srv/in", "-"]);
    assert!(tar.status.success(), "{}", text(&tar.stderr));
    let mut child = home.command(&["cp", "-", "m:/srv/out"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(home.ok(&["exec", "m", "cat", "/srv/out/in/b"]), "alpha\n");
    let mut child = home
        .command(&["cp", "-", "m:/srv/out"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"this is no tar archive at all").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert_eq!(home.ok(&["exec", "m", "ls", "/srv/out"]), "in\n");
}

#[test]
fn the_virtio_console_speaks_into_the_kernel_log() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&["exec", "m", "sh", "-c", "echo over virtio >/dev/hvc0; echo over serial >/dev/ttyS0; sync"]);
    home.ok(&["kill", "m"]);
    let said = home.ok(&["logs", "--kernel", "m"]);
    assert!(said.contains("over virtio") && said.contains("over serial"), "{said}");
    home.ok(&["rm", "m"]);
}

#[test]
fn a_time_limit_ends_a_run_with_124() {
    let home = Home::new("soft");
    home.ok(&["run", "--", "true"]);
    let said = home.fails(&["run", "--timeout", "300ms", "--", "sleep", "1000"], 124);
    assert!(said.contains("--timeout"), "{said}");
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn a_machine_that_dies_under_a_command_is_a_failure() {
    let home = Home::new("soft");
    let said =
        home.fails(&["run", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; reboot -f; sleep 1000"], 125);
    assert!(said.contains("the machine"), "{said}");
    let mut child = home.command(&["run", "--name", "m", "--", "sleep", "1000"]).spawn().unwrap();
    while !home.run(&["exec", "m", "true"]).status.success() {}
    home.ok(&["kill", "m"]);
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn a_reader_that_has_gone_stops_nothing_and_a_full_disk_is_told() {
    let home = Home::new("soft");
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    for words in
        [vec!["doctor"], vec!["ps", "-a"], vec!["images", "--json"], vec!["completions", "bash"], vec!["man"]]
    {
        let output = home.command(&words).stdout(gone()).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{words:?}");
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = home.command(&words).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(text(&output.stderr).contains("cannot be written to stdout"), "{}", text(&output.stderr));
    }
    // Progress that nobody hears: the file is made all the same.
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    let built = home.command(&["build"]).stdout(gone()).stderr(gone()).status().unwrap();
    assert!(built.success());
    home.ok(&["verify", "x.smolmachine"]);
    home.ok(&["run", "-d", "--name", "a", "./x.smolmachine"]);
    home.ok(&["run", "-d", "--name", "b", "./x.smolmachine"]);
    let output = home.command(&["rm", "-f", "a", "b"]).stdout(gone()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    home.ok(&["run", "-d", "--name", "c", "./x.smolmachine"]);
    let output = home.command(&["logs", "--kernel", "-f", "c"]).stdout(gone()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}
