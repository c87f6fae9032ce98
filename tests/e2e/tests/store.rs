//! What is kept: how much room it takes, what a prune leaves, moves, repairs, two at once.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::{Home, rounds, text};
use serde_json::Value;

fn build(home: &Home, name: &str) -> String {
    fs::write(home.path("Smolfile"), format!("name = \"{name}\"\nmemory = \"64MiB\"\n")).unwrap();
    home.ok(&["build", "-q"]);
    format!("./{name}.smolmachine")
}

fn json(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&home.ok(args)).unwrap()
}

fn row<'a>(df: &'a Value, what: &str) -> &'a Value {
    df["summary"].as_array().unwrap().iter().find(|row| row["type"] == what).unwrap()
}

#[test]
fn df_says_what_takes_room_and_what_needs_what() {
    let home = Home::new("soft");
    let df = json(&home, &["system", "df", "--json"]);
    assert_eq!((&row(&df, "machine files")["total"], &row(&df, "machines")["bytes"]), (&0.into(), &0.into()));
    let file = build(&home, "x");
    home.ok(&["run", "-d", "--name", "m", "-v", "data:/data", &file]);
    home.ok(&["run", "-d", "--name", "n", &file]);
    home.ok(&["snapshot", "-q", "n", "--incremental", "-o", "changes.smolmachine"]);
    home.ok(&["import", "changes.smolmachine", "--name", "changes"]);
    home.ok(&["freeze", "-q", "n"]);
    let df = json(&home, &["system", "df", "--json"]);
    let files = row(&df, "machine files");
    assert_eq!((&files["total"], &files["active"]), (&2.into(), &1.into()), "{df}");
    let machines = row(&df, "machines");
    assert_eq!((&machines["total"], &machines["active"]), (&2.into(), &1.into()), "{df}");
    assert!(machines["bytes"].as_u64().unwrap() > 1 << 20, "{df}");
    assert_eq!((&row(&df, "volumes")["total"], &row(&df, "volumes")["active"]), (&1.into(), &1.into()));
    let of = |name: &str| {
        let all = df["machine_files"].as_array().unwrap();
        all.iter().find(|file| file["names"][0] == name).unwrap().clone()
    };
    let (base, changes) = (of("x"), of("changes"));
    assert_eq!((&changes["kind"], &changes["builds_on"]), (&"changes".into(), &base["id"]));
    let mut needed: Vec<&str> =
        base["needed_by"].as_array().unwrap().iter().map(|who| who.as_str().unwrap()).collect();
    needed.sort_unstable();
    assert_eq!(needed, ["changes", "m", "n"]);
    // What it says can be had back is what comes back.
    let reclaimable: u64 =
        df["summary"].as_array().unwrap().iter().map(|row| row["reclaimable"].as_u64().unwrap()).sum();
    let said = home.ok(&["system", "df", "-v"]);
    for words in ["TYPE", "RECLAIMABLE", "  changes", "  m ", "frozen", "data", "NEEDED BY"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let freed = json(&home, &["prune", "-a", "--json"]);
    assert_eq!(freed["freed_bytes"].as_u64(), Some(reclaimable), "{df} {freed}");
    assert_eq!(json(&home, &["system", "df", "--json"])["machine_files"].as_array().unwrap().len(), 1);
    home.ok(&["start", "n"]);
}

#[test]
fn settings_say_what_a_prune_leaves() {
    let home = Home::new("soft");
    let file = build(&home, "x");
    let config = home.path("home/config/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let set = |text: &str| fs::write(&config, text).unwrap();
    let images = || json(&home, &["images", "--json"]).as_array().unwrap().len();
    let before = images();
    assert!(before >= 1);
    set("[store]\nkeep = \"30d\"\n");
    assert!(home.ok(&["prune", "-a"]).contains("0 B freed"));
    set("[store]\nkeep = \"30d\"\nmax_size = \"1KiB\"\n");
    let output = home.run(&["prune"]);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("more than the 1.0 KiB"), "{}", text(&output.stderr));
    home.ok(&["run", &file, "--", "true"]);
    home.ok(&["prune", "-a"]);
    assert_eq!(images(), 0);
    // The command line goes before the settings.
    home.ok(&["import", &file]);
    set("[store]\nkeep = \"30d\"\n");
    home.ok(&["prune", "-a", "--keep", "0s"]);
    assert_eq!(images(), 0);
    for wrong in ["[store]\nkeep = 30\n", "[store]\nkeeps = \"1d\"\n", "[sotre]\n"] {
        set(wrong);
        let said = home.fails(&["prune"], 125);
        assert!(said.contains("config.toml") && said.contains("line"), "{said}");
    }
}

#[test]
fn what_a_removed_machine_needed_is_not_held_by_the_next_of_its_name() {
    let home = Home::new("soft");
    let file = build(&home, "x");
    home.ok(&["run", "-d", "--name", "m", &file]);
    home.ok(&["rm", "-f", "m"]);
    // The next `m` is a copy of another file, and needs only that.
    home.ok(&["run", "-d", "--name", "m"]);
    let ids = || -> Vec<String> {
        let images = json(&home, &["images", "--json"]);
        images.as_array().unwrap().iter().map(|image| image["id"].as_str().unwrap().to_owned()).collect()
    };
    let x = json(&home, &["inspect", &file, "--json"])["id"].as_str().unwrap().to_owned();
    assert!(ids().contains(&x), "{:?} {x}", ids());
    home.ok(&["prune", "-a"]);
    // Gone with the base it was built on; what the running `m` needs stays.
    let left = ids();
    assert!(left.len() == 1 && left[0] != x, "{left:?} {x}");
}

#[test]
fn a_file_moves_into_the_store() {
    let home = Home::new("soft");
    let file = build(&home, "x");
    home.ok(&["prune", "-a"]);
    let inode = fs::metadata(home.path("x.smolmachine")).unwrap().ino();
    fs::create_dir_all(home.path("home/store")).unwrap();
    assert_eq!(home.ok(&["import", "--move", &file]), "x\n");
    assert!(!home.path("x.smolmachine").exists());
    let objects = home.path("home/store/objects");
    let object = fs::read_dir(&objects).unwrap().next().unwrap().unwrap().metadata().unwrap();
    assert_eq!((object.ino(), object.nlink()), (inode, 1), "it was copied");
    assert_eq!(home.ok(&["run", "x", "--", "echo", "here"]), "here\n");
    home.fails(&["import", "--move", &file], 125);
}

#[test]
fn doctor_finds_and_repairs() {
    let home = Home::new("soft");
    let file = build(&home, "x");
    for name in ["frozen", "lost", "other"] {
        home.ok(&["run", "-d", "--name", name, &file]);
        home.ok(&["freeze", "-q", name]);
    }
    let said = home.ok(&["doctor"]);
    assert!(said.contains("kept     all of it is whole"), "{said}");
    assert!(home.ok(&["doctor", "--repair"]).contains("nothing to repair"));
    let at = |path: &str| home.path(&format!("home/{path}"));
    // A bad disk.
    let saved = at("state/instances/lost/saved");
    fs::File::options().write(true).open(&saved).unwrap().write_all_at(b"rot", 20_000).unwrap();
    let object = fs::read_dir(at("store/objects")).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().write(true).open(&object).unwrap().write_all_at(b"rot", 20_000).unwrap();
    // A power failure, a kill.
    fs::write(at("store/tmp/.smolvm-tmp-1-2"), b"half").unwrap();
    fs::write(at("store/tags/gone"), format!("{} built\n", "0".repeat(64))).unwrap();
    fs::create_dir_all(at("volumes/.data.77")).unwrap();
    fs::write(at("state/instances/other/record.json.new"), b"{").unwrap();
    fs::write(at("run/frozen.sock"), b"").unwrap();
    fs::create_dir_all(at("cache/debian/download-x")).unwrap();
    fs::create_dir_all(at("state/instances/torn")).unwrap();
    fs::write(at("state/instances/torn/record.json"), b"").unwrap();
    let output = home.run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let told = told["faults"].as_array().unwrap().clone();
    let words = [
        "left unfinished",
        "machine x: damaged in",
        "name \"gone\"",
        "lost: what it saved cannot be used",
        "volume whose making",
        "record.json.new",
        "nobody listens",
        "downloads",
        "torn: its record",
    ];
    for word in words {
        assert!(told.iter().any(|fault| fault["what"].as_str().unwrap().contains(word)), "{word}: {told:?}");
    }
    assert!(told.iter().all(|fault| fault["repaired"] == false));
    // The machines' file is set aside, and its source has another path here: only a person can help, and is told how.
    let output = home.run(&["doctor", "--repair"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(if said.contains("left to you") { 1 } else { 0 }), "{said}");
    assert!(said.contains("set aside as"), "{said}");
    home.ok(&["import", &file]);
    home.ok(&["doctor", "--repair"]);
    assert!(home.ok(&["doctor", "--repair"]).contains("nothing to repair"));
    assert!(home.ok(&["doctor"]).contains("all of it is whole"));
    // What was whole goes on, what was not begins anew.
    for name in ["frozen", "lost", "other"] {
        home.ok(&["start", name]);
        assert_eq!(home.ok(&["exec", name, "echo", "up"]), "up\n");
    }
    assert!(at("state/instances/lost/saved.damaged").exists());
    let df = json(&home, &["system", "df", "--json"]);
    assert!(row(&df, "set aside")["total"].as_u64().unwrap() >= 2, "{df}");
}

#[test]
fn the_output_and_the_store_on_two_file_systems() {
    let home = Home::new("soft");
    let there = tempfile::tempdir_in("/dev/shm");
    let device = |path: PathBuf| fs::metadata(path).unwrap().dev();
    let Some(there) = there.ok().filter(|dir| device(dir.path().into()) != device(home.path("."))) else {
        eprintln!("skipped: /dev/shm is no other file system here");
        return;
    };
    let path = |name: &str| there.path().join(name).to_str().unwrap().to_owned();
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q", "-o", &path("x.smolmachine")]);
    home.ok(&["run", "-d", "--name", "m", &path("x.smolmachine")]);
    home.ok(&["exec", "m", "sh", "-c", "echo kept >/file"]);
    home.ok(&["snapshot", "-q", "m", "-o", &path("s.smolmachine")]);
    home.ok(&["snapshot", "-q", "m", "--incremental", "-o", &path("i.smolmachine")]);
    for name in ["s.smolmachine", "i.smolmachine"] {
        assert_eq!(home.ok(&["run", &path(name), "--", "cat", "/file"]), "kept\n");
    }
    home.ok(&["import", "--move", &path("s.smolmachine"), "--name", "moved"]);
    assert!(!there.path().join("s.smolmachine").exists());
    assert_eq!(home.ok(&["run", "moved", "--", "cat", "/file"]), "kept\n");
    fs::copy(there.path().join("x.smolmachine"), home.path("copy.smolmachine")).unwrap();
    home.ok(&["delta", "create", "copy.smolmachine", &path("i.smolmachine"), "-o", &path("d")]);
    home.ok(&["delta", "apply", "copy.smolmachine", &path("d"), "-o", &path("again.smolmachine")]);
    home.ok(&["verify", &path("again.smolmachine")]);
}

#[test]
fn one_file_resumed_twice_at_once_for_the_first_time() {
    let home = Home::new("soft");
    let file = build(&home, "x");
    for _ in 0..rounds(3, 30) {
        home.ok(&["prune", "-a"]);
        let run = |word: &str| {
            let mut command = home.command(&["run", &file, "--", "echo", word]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let both = [("one", run("one")), ("two", run("two"))];
        for (word, child) in both {
            let output = child.wait_with_output().unwrap();
            assert_eq!(text(&output.stdout), format!("{word}\n"), "{}", text(&output.stderr));
        }
        // One copy came into the store.
        assert_eq!(json(&home, &["images", "--json"]).as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_resume_while_everything_is_pruned_again_and_again() {
    let home = Home::new("soft");
    let file = build(&home, "x");
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let mut freed = 0;
            while !enough.load(Ordering::Relaxed) {
                freed += json(&home, &["prune", "-a", "--json"])["freed_bytes"].as_u64().unwrap();
            }
            freed
        });
        let work = || {
            for round in 0..rounds(8, 100) {
                let word = format!("{round}");
                let output = home.run(&["run", &file, "--", "echo", &word]);
                assert_eq!(text(&output.stdout), format!("{word}\n"), "{}", text(&output.stderr));
            }
            home.ok(&["run", "-d", "--name", "m", &file]);
            home.ok(&["freeze", "-q", "m"]);
            home.ok(&["start", "m"]);
            assert_eq!(home.ok(&["exec", "m", "echo", "here"]), "here\n");
        };
        // The pruner ends in any case. Control: it took what nobody held.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        enough.store(true, Ordering::Relaxed);
        assert!(pruner.join().unwrap() > 0);
        done.unwrap();
    });
}
