//! `doctor`: the host, a file, the engines.

use std::fs;
use std::process::{Command, Stdio};

use e2e::{Home, program, text};

#[test]
fn it_says_which_engine_and_why() {
    let home = Home::new("auto");
    let said = home.ok(&["doctor"]);
    for word in ["engine   ", "kvm      ", "store    ", "host     linux"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let value: serde_json::Value = serde_json::from_str(&home.ok(&["doctor", "--json"])).unwrap();
    let engine = value["engine"]["engine"].as_str().unwrap();
    assert!(engine == "kvm" || !value["engine"]["why"].as_str().unwrap().is_empty(), "{value}");
    assert_eq!(engine == "kvm", value["kvm"]["recommended"].as_bool().unwrap());
    assert!(value["places"][0]["free_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_file_that_runs_here_and_what_it_is() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    let said = home.ok(&["doctor", "x.smolmachine"]);
    for word in ["64.0 MiB", "portable template 1", "sse4_2", "vsock", "runs     on soft"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let value: serde_json::Value =
        serde_json::from_str(&home.ok(&["doctor", "--json", "x.smolmachine"])).unwrap();
    assert_eq!((value["runs"].as_bool(), value["state"]["frozen_on"].as_str()), (Some(true), Some("soft")));
    for verb in ["doctor", "verify"] {
        home.fails(&[verb, "nothing.smolmachine"], 125);
        home.fails(&[verb, "nothing"], 125);
    }
    // With an engine that this host lacks, the answer is no, by name.
    let output = home.command(&["doctor", "x.smolmachine"]).env("SMOLVM_ENGINE", "kvm").output().unwrap();
    if output.status.code() != Some(0) {
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.contains("missing:\n  - a KVM whose "), "{said}");
        // Each by itself, those that `doctor` without a file shows as wrong.
        let host: serde_json::Value = serde_json::from_str(&home.ok(&["doctor", "--json"])).unwrap();
        let facts = host["kvm"]["facts"].as_array().unwrap();
        for fact in
            facts.iter().filter(|fact| ["cpuid", "avx", "device"].contains(&fact["name"].as_str().unwrap()))
        {
            let named = said.contains(&format!("a KVM whose {} is right", fact["name"].as_str().unwrap()));
            assert_eq!(named, fact["good"] == false, "{fact}: {said}");
        }
    }
}

/// A name in the store, and a file that holds changes only: what it builds on says what it is, or is what is missing.
#[test]
fn what_is_in_the_store_and_what_builds_on_it() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    home.ok(&["snapshot", "-q", "m", "--incremental", "-o", "i.smolmachine"]);
    for what in ["x", "i.smolmachine"] {
        let said = home.ok(&["doctor", what]);
        for word in ["machine  x, 1 vCPUs, 64.0 MiB", "devices  state version 1: ", "runs     on soft"] {
            assert!(said.contains(word), "{what}, {word}: {said}");
        }
        home.ok(&["verify", what]);
    }
    let id = home.ok(&["inspect", "--json", "x.smolmachine"]);
    let id: serde_json::Value = serde_json::from_str(&id).unwrap();
    let there = Home::new("soft");
    fs::copy(home.path("i.smolmachine"), there.path("i.smolmachine")).unwrap();
    let output = there.run(&["doctor", "--json", "i.smolmachine"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &value["runs"]), (Some(1), &false.into()), "{value}");
    assert!(value["verdict"]["missing"][0].as_str().unwrap().contains(id["id"].as_str().unwrap()), "{value}");
    assert_eq!(value["builds_on"], id["id"]);
}

#[test]
fn the_engines_of_this_host_agree() {
    let home = Home::new("auto");
    let said = home.ok(&["doctor", "--selftest", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    let legs = value["selftest"]["legs"].as_array().unwrap();
    assert!(legs.iter().all(|leg| leg["passed"] == true), "{said}");
    if legs.len() < 4 {
        eprintln!("skipped: {}", value["selftest"]["skipped"]);
    }
    // Whole machines, too, where there is a KVM at all.
    let machines = value["selftest"]["machines"].as_array().unwrap();
    assert!(machines.iter().all(|leg| leg["passed"] == true), "{said}");
    assert_eq!(machines.is_empty(), legs.len() < 4, "{said}");
    assert_eq!(value["selftest"]["passed"], true, "{said}");
    assert!(legs.len() == 4 || !value["selftest"]["skipped"].as_array().unwrap().is_empty(), "{said}");
}

#[test]
fn without_a_kvm_device_everything_is_soft() {
    // A name space of its own, whose /dev is empty.
    let home = Home::new("auto");
    let hidden = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"]);
        command.arg(program()).args(args).env("SMOLVM_HOME", home.path("home")).stdin(Stdio::null());
        command.output().unwrap()
    };
    let probe = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: hiding /dev/kvm needs root");
        return;
    }
    let output = hidden(&["doctor"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(said.contains("engine   soft") && said.contains("there is no /dev/kvm"), "{said}");
    let output = hidden(&["doctor", "--selftest"]);
    assert!(text(&output.stdout).contains("not tried: every pair with kvm"), "{}", text(&output.stdout));
    let output = hidden(&["run", "--", "echo", "works"]);
    assert_eq!(text(&output.stdout), "works\n", "{}", text(&output.stderr));
    let output = hidden(&["run", "--engine", "kvm", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("/dev/kvm") && said.contains("--engine soft"), "{said}");
}
