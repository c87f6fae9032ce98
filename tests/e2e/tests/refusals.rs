//! Bad input: a clear error with the way out, the right exit code, nothing left behind.

use std::fs;

use e2e::Home;

/// A home in which a definition is refused by `verbs`, with all of `needles` said and nothing left.
fn refused_by(verbs: &[&str], text: &str, needles: &[&str]) {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), text).unwrap();
    fs::write(home.path("old.smolmachine"), "old").unwrap();
    for verb in verbs {
        let mut args = vec![*verb];
        if *verb == "build" {
            args.extend(["-o", "old.smolmachine"]);
        }
        let said = home.fails(&args, 125);
        assert!(said.contains("Smolfile"), "{verb}: {said}");
        for needle in needles {
            assert!(said.contains(needle), "{verb}: no {needle:?} in: {said}");
        }
    }
    assert_eq!(fs::read(home.path("old.smolmachine")).unwrap(), b"old");
    let mut left: Vec<_> = fs::read_dir(home.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.retain(|name| name != "Smolfile.lock");
    assert!(left.len() <= 3, "{left:?}");
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    assert_eq!(home.ok(&["images", "--json"]).trim(), "[]");
}

#[test]
fn definitions_are_refused_with_line_and_advice() {
    let refused = |text: &str, needles: &[&str]| refused_by(&["check", "build"], text, needles);
    refused("name = \"x\"\nmemroy = \"1GiB\"\n", &["line 2: unknown key `memroy`; did you mean `memory`?"]);
    refused("[root]\ndir = \"a\"\ntar = \"b\"\n", &["line 3: [root] has 2 sources (dir, tar); keep one"]);
    refused("memory = \"0MiB\"\n", &["line 1: memory", "64MiB to 1TiB"]);
    refused("memory = 512\n", &["line 1", "512MiB"]);
    refused("name = \"x\"\nmemory = \"900GiB\"\n", &["line 2: memory", "this host has", "lower it"]);
    refused("name = \"Not A Name\"\n", &["line 1: name", "a-z or 0-9"]);
    refused("name = \"x\"\n[root]\ndir = \"missing\"\n", &["line 3: [root] dir", "missing", "not there"]);
    refused("[root]\ntar = \"gone.tar\"\n", &["line 2: [root] tar", "gone.tar", "not there"]);
    refused("[root]\nfiles = { \"a.b\" = \"/x\" }\n", &["line 2: [root] files", "a.b", "not there"]);
    refused("[root]\nfiles = { \"Smolfile\" = \"x\" }\n", &["line 2: files", "absolute"]);
    refused("cpus = 17\n", &["line 1: cpus", "1 to 16"]);
    let step = "[build]\nsteps = [\"true\"]\n[[snapshot]]\nname = \"s\"\n";
    refused(&format!("{step}after_step = 2\n"), &["line 5: after_step = 2", "has 1 step"]);
    let twice = format!("{step}after_step = 1\n[[snapshot]]\nname = \"s\"\nafter_step = 1\n");
    refused(&twice, &["line 7: two snapshots are named `s`"]);
    refused(&step.replace("\"s\"", "\"S!\""), &["line 4: snapshot name \"S!\" is no name"]);
    refused("= nonsense\n", &["line 1"]);
}

#[test]
fn what_only_a_build_can_tell_names_the_line_too() {
    let service = "name = \"x\"\nmemory = \"128MiB\"\n[run]\ncommand = [\"sleep\", \"9\"]\n";
    let refused = |text: &str, needles: &[&str]| refused_by(&["build"], text, needles);
    refused(
        &format!("{service}user = \"nobdy\"\n"),
        &["line 5: [run] user", "nobdy", "/etc/passwd", "useradd"],
    );
    refused(&service.replace("sleep", "sleeep"), &["line 4: [run] command", "sleeep", "[root] files"]);
    refused(&format!("{service}workdir = \"/none\"\n"), &["line 5: [run] workdir", "/none"]);
    refused("[root]\ntar = \"Smolfile\"\n", &["line 2: [root] tar", "tar"]);
}

#[test]
fn a_step_that_fails_shows_the_end_of_its_output() {
    let step = "for i in $(seq 3000); do echo line $i of many; done; echo the last word >&2; exit 3";
    let text = format!("name = \"x\"\nmemory = \"128MiB\"\n[build]\nsteps = [\n\"{step}\"]\n");
    let needles = ["line 5: step 1 (`", "exit code 3", "line 3000 of many", "the last word"];
    refused_by(&["build"], &text, &needles);
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), text).unwrap();
    let said = home.fails(&["build", "-q"], 125);
    assert!(said.len() < 20_000 && !said.contains("line 1 of many\n"), "{} bytes", said.len());
}

#[test]
fn a_package_that_does_not_exist_names_its_line() {
    let apt = std::process::Command::new("apt-cache").args(["show", "python3-minimal"]).output();
    if !apt.is_ok_and(|shown| shown.status.success()) {
        return eprintln!("skipped: this host's apt has no package lists");
    }
    let text = "[root]\npackages = [\n  \"dash\",\n  \"python3-minimial\",\n]\n";
    refused_by(&["build"], text, &["line 4: packages", "python3-minimial", "package lists"]);
    let text = "[root]\npackages = [\"dash=99*\"]\n";
    refused_by(&["build"], text, &["line 2: packages", "99*", "there is"]);
    refused_by(&["build"], "[root]\npackages = [\"--force\"]\n", &["line 2: packages", "--force"]);
}

#[test]
fn a_service_that_never_gets_ready_shows_its_output_and_leaves_no_file() {
    let home = Home::new("soft");
    let definition = "name = \"x\"\nmemory = \"128MiB\"\n[run]\ncommand = \"echo what went wrong; sleep 100\"\n\
                      [ready]\nport = 1\ntimeout = \"1s\"\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    let said = home.fails(&["build"], 125);
    assert!(said.contains("what went wrong"), "{said}");
    assert!(!home.path("x.smolmachine").exists());
    let ends = definition.replace("sleep 100", "exit 3").replace("1s", "100s");
    fs::write(home.path("Smolfile"), ends).unwrap();
    let said = home.fails(&["build"], 125);
    assert!(said.contains("what went wrong"), "{said}");
}

#[test]
fn files_that_are_no_machines_are_named_for_what_they_are() {
    let home = Home::new("soft");
    let refused = |bytes: &[u8], needle: &str| {
        fs::write(home.path("x.smolmachine"), bytes).unwrap();
        for verb in ["run", "inspect", "verify"] {
            let said = home.fails(&[verb, "./x.smolmachine"], 125);
            assert!(said.contains(needle), "{verb}: {said}");
        }
    };
    refused(b"", "empty");
    refused(b"QFI\xfb\0\0\0\x03rest of a qcow2 image, as qemu-img makes them", "qcow2");
    refused(&[vec![7; 5000], b"SMOLPACK".to_vec(), vec![0; 56]].concat(), "another program called smolvm");
    let said = home.fails(&["run", "./nothing.smolmachine"], 125);
    assert!(said.contains("nothing.smolmachine"), "{said}");
    // Anything else is a container image's name, for which somebody must be asked.
    let nobody = "http://127.0.0.1:1";
    let asked = home
        .command(&["run", "-q", "ls"])
        .env("HTTPS_PROXY", nobody)
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    let said = e2e::text(&asked.stderr);
    assert_eq!(asked.status.code(), Some(125), "{said}");
    for needle in ["no machine file", "no name in the store", "docker.io", "did you mean: smolvm run -- ls?"]
    {
        assert!(said.contains(needle), "no {needle:?} in: {said}");
    }
}

#[test]
fn a_damaged_machine_file_never_starts() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"128MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    assert_eq!(home.ok(&["run", "./x.smolmachine", "--", "echo", "whole"]), "whole\n");
    let whole = fs::read(home.path("x.smolmachine")).unwrap();
    for at in [0, 100, 4096, whole.len() / 3, whole.len() / 2, whole.len() - 5000, whole.len() - 1] {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(home.path("bad.smolmachine"), &bad).unwrap();
        home.fails(&["run", "./bad.smolmachine", "--", "true"], 125);
    }
    for len in [10, 4096, whole.len() / 2, whole.len() - 1] {
        fs::write(home.path("bad.smolmachine"), &whole[..len]).unwrap();
        home.fails(&["run", "./bad.smolmachine", "--", "true"], 125);
    }
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn names_ports_and_engines_that_cannot_be_had() {
    let home = Home::new("soft");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = home.fails(&["run", "-p", &format!("{port}:80"), "--", "true"], 125);
    assert!(said.contains("is taken"), "{said}");
    let said = home.fails(&["run", "--name", "Not_Good!", "--", "true"], 125);
    assert!(said.contains("cannot name an instance"), "{said}");
    let said = home.fails(&["run", "--engine", "warp", "--", "true"], 125);
    assert!(said.contains("auto, soft or kvm"), "{said}");
    let said = home.fails(&["exec", "nobody", "true"], 125);
    assert!(said.contains("smolvm ps -a"), "{said}");
    home.fails(&["run", "--no-such-flag"], 125);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}
