//! Bad input: a clear error with the way out, the right exit code, nothing left behind.

use std::fs;

use e2e::Home;

#[test]
fn definitions_are_refused_with_line_and_advice() {
    let home = Home::new("soft");
    let refused = |text: &str, needle: &str| {
        fs::write(home.path("Smolfile"), text).unwrap();
        for verb in ["check", "build"] {
            let said = home.fails(&[verb], 125);
            assert!(said.contains(needle), "{verb}: {said}");
        }
        assert!(!home.path("x.smolmachine").exists());
    };
    refused("name = \"x\"\nmemroy = \"1GiB\"\n", "line 2: unknown key `memroy`; did you mean `memory`?");
    refused("[root]\ndir = \"a\"\ntar = \"b\"\n", "2 sources (dir, tar)");
    refused("memory = \"0MiB\"\n", "line 1: memory");
    refused("name = \"x\"\n[root]\ndir = \"missing\"\n", "missing");
    refused("name = \"x\"\n[root]\nfiles = { \"missing\" = \"/x\" }\n", "missing");
}

#[test]
fn a_machine_larger_than_the_host_is_refused_before_anything_runs() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"900GiB\"\n").unwrap();
    let said = home.fails(&["build"], 125);
    assert!(said.contains("this host has"), "{said}");
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
    let said = home.fails(&["run", "ls"], 125);
    assert!(said.contains("did you mean: smolvm run -- ls?"), "{said}");
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
