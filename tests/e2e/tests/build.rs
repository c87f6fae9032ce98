//! Definitions become files: snapshots, steps that earlier builds know, and the same base again.

use std::fs;
use std::process::Command;

use e2e::{Home, engines};
use serde_json::Value;

/// A machine with a service, two steps and a point to resume from after the first.
const TWO: &str = r#"
name = "two"
memory = "128MiB"
[root]
files = { "app" = "/srv/app" }
[build]
steps = ["echo app:x:1000:1000::/:/bin/sh >>/etc/passwd", "echo two >/srv/two"]
[run]
command = ["sh", "-c", "echo up; exec sleep 100000"]
user = "app"
[ready]
log = "up"
[[snapshot]]
name = "migrated"
after_step = 1
[[snapshot]]
name = "ready"
at = "ready"
"#;

fn with_app(engine: &'static str) -> Home {
    let home = Home::new(engine);
    fs::create_dir(home.path("app")).unwrap();
    fs::write(home.path("app/data"), "data\n").unwrap();
    home
}

fn build(home: &Home, definition: &str, flags: &[&str]) -> Value {
    fs::write(home.path("Smolfile"), definition).unwrap();
    let said = home.ok(&[&["build", "--json"], flags].concat());
    serde_json::from_str(&said).unwrap()
}

fn json(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&home.ok(&[args, &["--json"]].concat())).unwrap()
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().or(v["name"].as_str()).unwrap()).collect()
}

#[test]
fn one_file_holds_the_machine_at_several_points() {
    for engine in engines() {
        let home = with_app(engine);
        let report = build(&home, TWO, &[]);
        assert_eq!(names(&report["snapshots"]), ["migrated", "ready"]);
        let file = "./two.smolmachine";
        home.ok(&["verify", file]);
        assert_eq!(names(&json(&home, &["inspect", file])["snapshots"]), ["migrated", "ready"]);
        assert_eq!(names(&json(&home, &["images"])[0]["snapshots"]), ["migrated", "ready"]);
        let look = "cat /srv/app/data; ls /srv; ps | grep -c '[s]leep 100000'";
        let run = |flags: &[&str]| home.run(&[&["run"], flags, &[file, "--", "sh", "-c", look]].concat());
        let said = |flags: &[&str]| e2e::text(&run(flags).stdout);
        // The last is the default; before the second step there is neither its file nor a service.
        assert_eq!(said(&[]), "data\napp\ntwo\n1\n");
        assert_eq!(said(&["--snapshot", "ready"]), "data\napp\ntwo\n1\n");
        assert_eq!(said(&["--snapshot", "migrated"]), "data\napp\n0\n");
        assert_eq!(said(&["--cold"]), "data\napp\ntwo\n1\n");
        let refused = home.fails(&["run", "--snapshot", "nope", file, "--", "true"], 125);
        assert!(refused.contains("two.smolmachine: there is no snapshot `nope`"), "{refused}");
        assert!(refused.contains("migrated, ready"), "{refused}");
        home.fails(&["run", "--cold", "--snapshot", "ready", file], 125);
        assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    }
}

#[test]
fn an_instance_of_an_earlier_point_lives_on_as_any_other() {
    let home = with_app("soft");
    build(&home, TWO, &[]);
    home.ok(&["run", "-d", "--name", "m", "--snapshot", "migrated", "two"]);
    home.ok(&["exec", "m", "sh", "-c", "echo mine >/srv/mine; sleep 4242 >/dev/null 2>&1 &"]);
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    let look = "cat /srv/mine; ls /srv; ps | grep -c '[s]leep 4242'; ps | grep -c '[s]leep 100000'";
    assert_eq!(e2e::text(&home.run(&["exec", "m", "sh", "-c", look]).stdout), "mine\napp\nmine\n1\n0\n");
    // A file of its own: one snapshot, its own root, still without the service.
    home.ok(&["snapshot", "m", "-o", "mine.smolmachine"]);
    let shown = json(&home, &["inspect", "./mine.smolmachine"]);
    assert_eq!(names(&shown["snapshots"]), ["migrated"]);
    let resumed = home.run(&["run", "./mine.smolmachine", "--", "sh", "-c", look]);
    assert_eq!(e2e::text(&resumed.stdout), "mine\napp\nmine\n1\n0\n");
    // What builds on the file builds on that snapshot of it; so does a copy.
    home.ok(&["run", "-d", "--name", "n", "--snapshot", "migrated", "two"]);
    home.ok(&["exec", "n", "sh", "-c", "echo mine >/srv/mine; sleep 4242 >/dev/null 2>&1 &"]);
    home.ok(&["snapshot", "n", "--incremental", "-o", "changes.smolmachine"]);
    home.ok(&["fork", "n", "--name", "copy"]);
    let resumed = home.run(&["run", "./changes.smolmachine", "--", "sh", "-c", look]);
    assert_eq!(e2e::text(&resumed.stdout), "mine\napp\nmine\n1\n0\n");
    assert_eq!(e2e::text(&home.run(&["exec", "copy", "sh", "-c", look]).stdout), "mine\napp\nmine\n1\n0\n");
    assert!(e2e::text(&home.run(&["diff", "n"]).stdout).contains("/srv/mine"));
    home.ok(&["rm", "-f", "n", "copy"]);
    home.ok(&["stop", "-t", "1s", "m"]);
    home.ok(&["start", "m"]);
    let look = "cat /srv/mine; ls /srv; ps | grep -c '[s]leep 100000'";
    assert_eq!(e2e::text(&home.run(&["exec", "m", "sh", "-c", look]).stdout), "mine\napp\nmine\n0\n");
    home.ok(&["rm", "-f", "m"]);
}

#[test]
fn a_step_can_be_the_last_point() {
    let home = with_app("soft");
    let at = TWO.find("[[snapshot]]\nname = \"ready\"").unwrap();
    build(&home, &TWO[..at], &[]);
    // Not the root that the base has: the second step is not in it.
    assert_eq!(home.ok(&["run", "two", "--", "ls", "/srv"]), "app\n");
    assert_eq!(home.ok(&["run", "--cold", "two", "--", "ls", "/srv"]), "app\ntwo\n");
    home.ok(&["run", "-d", "--name", "m", "two"]);
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    assert_eq!(home.ok(&["exec", "m", "ls", "/srv"]), "app\n");
    home.ok(&["rm", "-f", "m"]);
}

#[test]
fn steps_that_earlier_builds_ran_are_not_run_again() {
    let home = with_app("soft");
    let ran = |report: &Value| report["steps_run"].as_u64().unwrap();
    let first = build(&home, TWO, &[]);
    assert_eq!(ran(&first), 2);
    let again = build(&home, TWO, &[]);
    assert_eq!((ran(&again), &again["root"]), (0, &first["root"]));
    // Another service, the same root.
    let other = build(&home, &TWO.replace("echo up;", "echo up; echo on;"), &[]);
    assert_eq!((ran(&other), &other["root"]), (0, &first["root"]));
    // Another second step: the first is known.
    let changed = TWO.replace("echo two", "echo three");
    let second = build(&home, &changed, &[]);
    assert_eq!(ran(&second), 1);
    // Run whole, it gives the same root, bit for bit.
    let whole = build(&home, &changed, &["--no-cache"]);
    assert_eq!((ran(&whole), &whole["root"]), (2, &second["root"]));
    assert_ne!(first["root"], second["root"]);
    // Other files: both again.
    fs::write(home.path("app/data"), "other\n").unwrap();
    assert_eq!(ran(&build(&home, TWO, &[])), 2);
    // Each step is told as it begins; with --verbose its output, too.
    fs::write(home.path("Smolfile"), TWO.replace("echo two", "echo told; echo two")).unwrap();
    let said = e2e::text(&home.run(&["build", "--verbose"]).stderr);
    for told in ["adding files", "step 2 of 2: echo told", "told\n", "freezing", "snapshots: migrated, ready"]
    {
        assert!(said.contains(told), "{told}: {said}");
    }
    // The cache goes with `prune`, and builds go on without it.
    home.ok(&["prune"]);
    assert_eq!(fs::read_dir(home.path("home/cache/build")).unwrap().count(), 0);
    let images = json(&home, &["images"]);
    assert!(images.as_array().unwrap().iter().all(|i| i["names"][0].is_string()), "{images}");
}

#[test]
fn what_a_step_leaves_running_ends_with_it() {
    let home = Home::new("soft");
    let definition = "name = \"x\"\nmemory = \"128MiB\"\n[build]\nsteps = [\n\"sleep 4242 & echo a >/tmp/a; echo b >/srv/b\",\n\
                      \"! ps | grep '[s]leep 4242' && cat /tmp/a >/srv/a\",\n]\n";
    build(&home, definition, &[]);
    // Temporary files pass from step to step and are gone in the end.
    assert_eq!(home.ok(&["run", "x", "--", "cat", "/srv/a", "/srv/b"]), "a\nb\n");
    assert_eq!(home.ok(&["run", "x", "--", "ls", "/tmp"]), "");
}

#[test]
fn two_builds_in_two_homes_give_the_same_base() {
    let source = Home::new("soft");
    let (root, bin, etc) = (source.path("root"), source.path("root/bin"), source.path("root/etc"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    // The guest's busybox, out of the built-in machine.
    source.ok(&["run", "-d", "--name", "m"]);
    source.ok(&["cp", "m:/bin/busybox", bin.join("busybox").to_str().unwrap()]);
    for name in ["sh", "date", "dd"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
    }
    let definition = "name = \"x\"\nmemory = \"128MiB\"\n[root]\ndir = \"root\"\n[build]\nsteps = [\n\
                      \"echo one >/etc/one; date >/tmp/now\", \"dd if=/dev/zero of=/etc/zero bs=1000 count=50\"]\n";
    let base = || {
        let home = Home::new("soft");
        let copied = Command::new("cp").arg("-a").arg(&root).arg(home.path("")).status().unwrap();
        assert!(copied.success());
        let report = build(&home, definition, &[]);
        (report["root"].clone(), fs::read_to_string(home.path("Smolfile.lock")).unwrap())
    };
    let first = base();
    assert!(first.0.is_string());
    // Another moment, another home.
    assert_eq!(first, base());
}

#[test]
fn a_step_that_fails_shows_its_output_and_leaves_the_old_file() {
    let home = Home::new("soft");
    fs::write(home.path("x.smolmachine"), "the old one").unwrap();
    let definition = "name = \"x\"\nmemory = \"128MiB\"\n[build]\nsteps = [\"echo fine\", \"echo what went wrong; exit 3\"]\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    let said = home.fails(&["build"], 125);
    assert!(said.contains("line 4") && said.contains("step 2") && said.contains("exit code 3"), "{said}");
    assert!(said.contains("what went wrong"), "{said}");
    assert_eq!(fs::read_to_string(home.path("x.smolmachine")).unwrap(), "the old one");
    assert_eq!(
        fs::read_dir(home.path("")).unwrap().count(),
        3,
        "the definition, the old file, smolvm's home"
    );
}

#[test]
fn the_first_definition_builds_as_it_is() {
    let home = Home::new("soft");
    home.ok(&["init", "site"]);
    let checked = home.ok(&["check", "site/Smolfile"]);
    for part in ["site: 1 CPU, 128MiB", "built-in busybox", "httpd", "within 60 s", "ready"] {
        assert!(checked.contains(part), "{part}: {checked}");
    }
    let report = build_in(&home, "site/Smolfile");
    assert_eq!(names(&report["snapshots"]), ["ready"]);
    let page = "wget -q -O - http://127.0.0.1:8000/";
    assert_eq!(home.ok(&["run", "site", "--", "sh", "-c", page]), "hello from site\n");
    let said = home.fails(&["init", "site"], 125);
    assert!(said.contains("is there already"), "{said}");
}

fn build_in(home: &Home, smolfile: &str) -> Value {
    serde_json::from_str(&home.ok(&["build", "--json", "-f", smolfile])).unwrap()
}

#[test]
fn a_file_is_little_more_than_its_pages_and_its_root() {
    let home = Home::new("soft");
    let sizes = |what: &str| {
        let sizes = json(&home, &["inspect", what])["sizes"].clone();
        let bytes = |key: &str| sizes[key].as_u64().unwrap();
        let ratio = sizes["ratio"].as_f64().unwrap();
        let stands_for = bytes("nonzero_memory") + bytes("root_images");
        assert!((ratio - bytes("file") as f64 / stands_for as f64).abs() < 0.001, "{sizes}");
        assert!(bytes("boot") <= 4 << 20, "{sizes}");
        (bytes("shared_memory"), ratio)
    };
    home.ok(&["run", "--", "true"]);
    let images = json(&home, &["images"]);
    let built_in = images.as_array().unwrap().iter().find(|i| i["kind"] == "snapshot").unwrap();
    assert!(built_in["names"][0].as_str().unwrap().starts_with("builtin-"));
    // Kernel and agent are as large in every machine, and this is the smallest.
    let (shared, ratio) = sizes(built_in["id"].as_str().unwrap());
    assert!(ratio <= 1.1 && shared > 1 << 20, "built-in machine: {ratio}, {shared} bytes shared");
    // A service that read a file of the root: its pages are there once.
    let definition = "name = \"x\"\nmemory = \"128MiB\"\n[build]\n\
                      steps = [\"dd if=/dev/urandom of=/srv/data bs=1M count=16 2>/dev/null\"]\n\
                      [run]\ncommand = \"cat /srv/data >/dev/null; echo read; exec sleep 1000\"\n\
                      [ready]\nlog = \"read\"\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    let (shared, ratio) = sizes("./x.smolmachine");
    assert!(ratio < 0.9 && shared > 12 << 20, "{ratio}, {shared} bytes shared");
    let sums = "sha256sum /srv/data; echo 3 >/proc/sys/vm/drop_caches; sha256sum /srv/data";
    let sums = home.ok(&["run", "x", "--", "sh", "-c", sums]);
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums[0], sums[1], "in memory, and read again from the disk");
}
