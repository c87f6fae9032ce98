//! SIGKILL at many instants of a snapshot, a freeze and a build, through the program: never half a
//! file under the final name, what was there stays, nothing stays that is not cleaned.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use e2e::{Home, instant, rounds};

fn machine(home: &Home) {
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
}

fn vmm(home: &Home) -> u64 {
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["ps", "--json"])).unwrap();
    rows[0]["pid"].as_u64().unwrap()
}

fn kill(pid: u64) {
    let mut kill = std::process::Command::new("kill");
    let _ = kill.args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
}

#[test]
fn the_machine_is_killed_while_it_writes_a_snapshot() {
    let home = Home::new("soft");
    machine(&home);
    let args = ["snapshot", "-q", "m", "-o", "s.smolmachine"];
    home.ok(&["exec", "m", "sh", "-c", "echo 0 >/round"]);
    let life = home.life(&args);
    let mut written = 0;
    let count = rounds(30, 500);
    for round in 1..=count {
        home.ok(&["exec", "m", "sh", "-c", &format!("echo {round} >/round")]);
        let before = fs::read(home.path("s.smolmachine")).unwrap();
        let pid = vmm(&home);
        let mut client = home.spawn(&args);
        std::thread::sleep(instant(round, life));
        kill(pid);
        let code = client.wait().unwrap().code();
        let after = fs::read(home.path("s.smolmachine")).unwrap();
        if after != before {
            // The new one, whole.
            home.ok(&["verify", "s.smolmachine"]);
            let said = home.ok(&["run", "./s.smolmachine", "--", "cat", "/round"]);
            assert_eq!(said, format!("{round}\n"));
            written += 1;
        } else {
            assert_eq!(code, Some(125), "an old file after a snapshot that said it was done");
        }
        assert_eq!(home.leftovers(), Vec::<std::path::PathBuf>::new());
        home.run(&["wait", "m"]);
        assert!(home.ok(&["ps", "-a"]).contains("dead"));
        home.ok(&["start", "m"]);
    }
    println!("{count} kills, {written} after the new file was whole");
}

#[test]
fn the_machine_is_killed_while_it_freezes() {
    let home = Home::new("soft");
    machine(&home);
    home.ok(&["exec", "m", "sh", "-c", "echo kept >/file"]);
    let life = home.life(&["freeze", "-q", "m"]);
    home.ok(&["start", "m"]);
    for round in 1..=rounds(12, 100) {
        let pid = vmm(&home);
        let mut client = home.spawn(&["freeze", "-q", "m"]);
        std::thread::sleep(instant(round, life));
        kill(pid);
        let code = client.wait().unwrap().code();
        // Until the last of its threads is gone.
        home.run(&["wait", "m"]);
        let shown = home.ok(&["ps", "-a"]);
        assert!(
            shown.contains("frozen") || (shown.contains("dead") && code == Some(125)),
            "{code:?} {shown}"
        );
        assert_eq!(home.leftovers(), Vec::<std::path::PathBuf>::new());
        // From the last freeze that was whole.
        home.ok(&["start", "m"]);
        assert_eq!(home.ok(&["exec", "m", "cat", "/file"]), "kept\n");
    }
}

#[test]
fn the_build_is_killed() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    let life = home.life(&["build", "-q"]);
    for round in 1..=rounds(8, 500) {
        let before = fs::read(home.path("x.smolmachine")).unwrap();
        let mut build = home.spawn(&["build", "-q"]);
        // Most of them near its end, where the file is written.
        std::thread::sleep(life / 2 + instant(round, life / 2));
        let _ = build.kill();
        let code = build.wait().unwrap().code();
        let after = fs::read(home.path("x.smolmachine")).unwrap();
        assert!(after != before || code.is_none(), "the old file after a build that ended well");
        home.ok(&["verify", "x.smolmachine"]);
        assert_eq!(home.leftovers(), Vec::<std::path::PathBuf>::new());
        home.settle();
    }
    home.ok(&["prune", "-a"]);
    assert_eq!(home.ok(&["run", "./x.smolmachine", "--", "echo", "whole"]), "whole\n");
}

/// A writer without care, killed as often: what is checked above finds it out.
#[test]
fn control_a_file_that_is_written_in_place_is_torn_and_found_out() {
    let home = Home::new("soft");
    machine(&home);
    home.ok(&["build", "-q", "-o", "y.smolmachine"]);
    let write = || {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "exec cat y.smolmachine >x.smolmachine"]).current_dir(home.path(""));
        shell.spawn().unwrap()
    };
    let begun = std::time::Instant::now();
    assert!(write().wait().unwrap().success());
    let life = begun.elapsed();
    home.ok(&["verify", "x.smolmachine"]);
    let mut torn = 0;
    for round in 1..=30 {
        let mut writer = write();
        std::thread::sleep(instant(round, life));
        let _ = writer.kill();
        writer.wait().unwrap();
        torn += u32::from(!home.run(&["verify", "x.smolmachine"]).status.success());
    }
    assert!(torn > 0);
}

#[test]
fn what_a_killed_run_left_goes_with_prune_and_nothing_else() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "frozen"]);
    home.ok(&["freeze", "-q", "frozen"]);
    for name in ["dead", "alive"] {
        home.ok(&["run", "-d", "--name", name]);
    }
    home.ok(&["kill", "dead"]);
    let mut run = home.command(&["run", "--", "sh", "-c", "echo up; sleep 1000"]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(run.stdout.as_mut().unwrap(), &mut up).unwrap();
    let names =
        |home: &Home| -> Vec<String> { home.ok(&["ps", "-a", "-q"]).lines().map(str::to_owned).collect() };
    let before = names(&home);
    let unnamed = before.iter().find(|name| !["frozen", "dead", "alive"].contains(&name.as_str())).unwrap();
    // It runs: it stays.
    home.ok(&["prune"]);
    assert_eq!(names(&home), before);
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(home.ok(&["prune", "--dry-run"]).contains(&format!("{unnamed}: dead, would be removed")));
    assert_eq!(names(&home), before);
    assert!(home.ok(&["prune"]).contains(&format!("{unnamed}: dead, removed")));
    let left: Vec<String> = before.iter().filter(|name| *name != unnamed).cloned().collect();
    assert_eq!(names(&home), left);
    // One that was killed before it wrote what it is: a directory that nobody holds, and not a new one.
    let dir = home.path("home/state/instances/half");
    fs::create_dir(&dir).unwrap();
    assert!(!home.ok(&["prune"]).contains("half"));
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(&dir).unwrap().set_modified(old).unwrap();
    assert!(home.ok(&["prune"]).contains("half: dead, removed"));
    assert!(!dir.exists());
    home.ok(&["start", "frozen"]);
    assert_eq!(home.ok(&["exec", "frozen", "echo", "here"]), "here\n");
}
