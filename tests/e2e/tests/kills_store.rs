//! SIGKILL at many instants of what changes the store and the machines in it: an incremental snapshot, a fork, a
//! prune, an update. Nothing that was there is lost, nothing half is taken for whole, and `doctor --repair` has the
//! last word.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::{Home, instant, rounds, text};

fn build(home: &Home, name: &str, version: u32) -> String {
    fs::write(home.path("version"), format!("{version}\n")).unwrap();
    let definition = format!(
        "name = \"{name}\"\nmemory = \"64MiB\"\n[root]\nfiles = {{ \"version\" = \"/srv/version\" }}\n\
         [run]\ncommand = \"echo up; exec sleep 99999\"\n[ready]\nlog = \"up\"\n"
    );
    fs::write(home.path("Smolfile"), definition).unwrap();
    let file = format!("{name}-{version}.smolmachine");
    home.ok(&["build", "-q", "-o", &file]);
    format!("./{file}")
}

/// Kills `args` after `delay`; whether it was still at work.
fn cut_off(home: &Home, args: &[&str], delay: Duration) -> bool {
    let mut child = home.spawn(args);
    std::thread::sleep(delay);
    let _ = child.kill();
    child.wait().unwrap().code().is_none()
}

fn rows(home: &Home) -> Vec<(String, String)> {
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["ps", "-a", "--json"])).unwrap();
    let word = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (word(row, "name"), word(row, "state"))).collect()
}

/// What `doctor --repair` finds is repaired, and then nothing is left to find.
fn repaired(home: &Home) {
    home.ok(&["doctor", "--repair"]);
    let said = home.ok(&["doctor", "--repair"]);
    assert!(said.contains("nothing to repair"), "{said}");
    assert_eq!(home.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn an_incremental_snapshot() {
    let home = Home::new("soft");
    let file = build(&home, "x", 1);
    home.ok(&["run", "-d", "--name", "m", &file]);
    let args = ["snapshot", "-q", "m", "--incremental", "-o", "s.smolmachine"];
    home.ok(&["exec", "m", "sh", "-c", "echo 0 >/round"]);
    let life = home.life(&args);
    let mut written = 0;
    for round in 1..=rounds(8, 500) {
        home.ok(&["exec", "m", "sh", "-c", &format!("echo {round} >/round")]);
        let before = fs::read(home.path("s.smolmachine")).unwrap();
        let pid: serde_json::Value = serde_json::from_str(&home.ok(&["ps", "--json"])).unwrap();
        let pid = pid[0]["pid"].as_u64().unwrap().to_string();
        let mut client = home.spawn(&args);
        std::thread::sleep(instant(round, life));
        let mut kill = std::process::Command::new("kill");
        let _ = kill.args(["-9", &pid]).stderr(Stdio::null()).status();
        let code = client.wait().unwrap().code();
        if fs::read(home.path("s.smolmachine")).unwrap() != before {
            home.ok(&["verify", "s.smolmachine"]);
            let said = home.ok(&["run", "./s.smolmachine", "--", "cat", "/round"]);
            assert_eq!(said, format!("{round}\n"));
            written += 1;
        } else {
            assert_eq!(code, Some(125), "an old file after a snapshot that said it was done");
        }
        home.run(&["wait", "m"]);
        repaired(&home);
        home.ok(&["start", "m"]);
    }
    println!("{written} after the new file was whole");
}

#[test]
fn a_fork() {
    let home = Home::new("soft");
    let file = build(&home, "x", 1);
    home.ok(&["run", "-d", "--name", "m", &file]);
    let args = ["fork", "-q", "m", "--count", "3"];
    let life = home.life(&args);
    ["m-1", "m-2", "m-3"].iter().for_each(|name| drop(home.ok(&["rm", "-f", name])));
    let (mut cut, mut alive) = (0, 0);
    for round in 0..rounds(6, 500) {
        cut += u32::from(cut_off(&home, &args, instant(round, life)));
        // The source goes on, whatever became of its copies.
        assert_eq!(home.ok(&["exec", "m", "cat", "/srv/version"]), "1\n");
        for (name, _) in rows(&home).into_iter().filter(|(name, _)| name != "m") {
            // One that runs answers; any can be removed.
            let said = home.run(&["exec", &name, "cat", "/srv/version"]);
            if said.status.success() {
                assert_eq!(text(&said.stdout), "1\n");
                alive += 1;
            }
            home.ok(&["rm", "-f", &name]);
        }
        home.settle();
        repaired(&home);
        assert_eq!(rows(&home).len(), 1);
    }
    println!("{cut} were cut off; {alive} copies were alive");
}

#[test]
fn a_prune() {
    let home = Home::new("soft");
    let file = build(&home, "x", 1);
    home.ok(&["run", "-d", "--name", "frozen", &file]);
    home.ok(&["freeze", "-q", "frozen"]);
    let fill = |home: &Home| {
        for version in 2..5 {
            home.ok(&["import", &build(home, "y", version)]);
        }
    };
    fill(&home);
    let life = home.life(&["prune", "-a"]);
    let mut cut = 0;
    for round in 0..rounds(5, 500) {
        fill(&home);
        cut += u32::from(cut_off(&home, &["prune", "-a"], instant(round, life)));
        repaired(&home);
        // What something needs is there, and so is every name that is left.
        home.ok(&["start", "frozen"]);
        assert_eq!(home.ok(&["exec", "frozen", "cat", "/srv/version"]), "1\n");
        home.ok(&["freeze", "-q", "frozen"]);
        let images: serde_json::Value = serde_json::from_str(&home.ok(&["images", "--json"])).unwrap();
        assert!(images.as_array().unwrap().iter().all(|image| image["kind"] != "damaged"), "{images}");
        if images.as_array().unwrap().iter().any(|image| image["names"][0] == "y") {
            home.ok(&["run", "y", "--", "true"]);
        }
    }
    println!("{cut} were cut off");
}

/// What a prune must never do, done by hand: what is checked after each kill finds it out.
#[test]
fn control_a_needed_file_that_goes_is_found_out() {
    let home = Home::new("soft");
    let file = build(&home, "x", 1);
    home.ok(&["run", "-d", "--name", "frozen", &file]);
    home.ok(&["freeze", "-q", "frozen"]);
    repaired(&home);
    let objects = home.path("home/store/objects");
    for object in fs::read_dir(&objects).unwrap() {
        fs::remove_file(object.unwrap().path()).unwrap();
    }
    fs::rename(home.path(&file), home.path("elsewhere")).unwrap();
    home.fails(&["doctor"], 1);
    home.fails(&["start", "frozen"], 125);
}

/// What `app` says to `line` when it has come to rest. The process of its old version may be about to end, as it was
/// asked to, and that of its new version may come up or end.
fn once_more(home: &Home, line: &str) -> String {
    let begun = Instant::now();
    loop {
        if rows(home)[0].1 == "running" {
            let output = home.run(&["exec", "app", "sh", "-c", line]);
            if output.status.success() {
                return text(&output.stdout);
            }
            let said = text(&output.stderr);
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not come to rest: {said}");
        } else {
            repaired(home);
            home.ok(&["start", "app"]);
        }
    }
}

#[test]
fn an_update() {
    let home = Home::new("soft");
    let (old, new) = (build(&home, "app", 1), build(&home, "app", 2));
    let again = |from: &str| {
        home.ok(&["run", "-d", "--name", "app", from]);
        home.ok(&["exec", "app", "sh", "-c", "echo own >/file"]);
    };
    let args = ["update", "-q", "app", "--to", &new];
    again(&old);
    let life = home.life(&args);
    let (mut cut, mut versions) = (0, [0, 0]);
    for round in 0..rounds(10, 200) {
        home.ok(&["rm", "-f", "app"]);
        again(&old);
        // Of one that runs, and of one that is frozen.
        if round % 2 == 1 {
            home.ok(&["freeze", "-q", "app"]);
        }
        cut += u32::from(cut_off(&home, &args, instant(round, life)));
        home.settle();
        let said = once_more(&home, "cat /srv/version; cat /file 2>/dev/null || echo none");
        match said.as_str() {
            "1\nown\n" => versions[0] += 1,
            "2\nnone\n" => versions[1] += 1,
            other => panic!("neither the old machine nor the new one after {round}: {other}"),
        }
        repaired(&home);
    }
    println!("{cut} were cut off; {versions:?} old and new");
    assert!(versions[0] > 0 && versions[1] > 0, "{versions:?}");
}
