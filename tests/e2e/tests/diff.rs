//! What a machine changed.

use e2e::Home;
use serde_json::Value;

const CHANGES: &str = "echo new >/etc/new; rm /etc/passwd; chmod 700 /etc/group; echo more >>/etc/hostname; \
                       touch /etc/profile; mkdir /srv/d; (sleep 1000 >/dev/null 2>&1 &); \
                       (nc -l -p 7777 >/dev/null 2>&1 &); until grep -q :1E61 /proc/net/tcp*; do sleep 0.02; done";

fn report(home: &Home, args: &[&str], code: i32) -> Value {
    let output = home.run(&[&["diff", "--json"], args].concat());
    let err = e2e::text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {err}\n{}", e2e::text(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `change path` of each file.
fn files(report: &Value) -> Vec<String> {
    let files = report["files"].as_array().unwrap().iter();
    files.map(|f| format!("{} {}", f["change"].as_str().unwrap(), f["path"].as_str().unwrap())).collect()
}

fn changed(report: &Value) {
    let want = [
        "changed /etc/group",
        "changed /etc/hostname",
        "added /etc/new",
        "removed /etc/passwd",
        "added /srv/d",
    ];
    assert_eq!(files(report), want);
    let ends = |list: &str, end: &str| {
        let list = report[list].as_array().unwrap();
        assert!(
            list.iter().any(|i| i["change"] == "added" && i["what"].as_str().unwrap().ends_with(end)),
            "{list:?}"
        );
    };
    ends("processes", " sleep");
    ends("ports", " 7777");
    assert!(report["memory"]["changed_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_machine_is_compared_with_what_it_came_from() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "zero"]);
    home.ok(&["exec", "zero", "sh", "-c", "echo host >/etc/hostname"]);
    home.ok(&["snapshot", "-q", "zero", "-o", "old.smolmachine"]);
    home.ok(&["run", "-d", "--name", "m", "./old.smolmachine"]);
    assert!(files(&report(&home, &["m"], 0)).is_empty());
    home.ok(&["exec", "m", "sh", "-c", CHANGES]);
    changed(&report(&home, &["m"], 1));
    home.ok(&["snapshot", "-q", "m", "-o", "new.smolmachine"]);
    home.ok(&["snapshot", "-q", "m", "--incremental", "-o", "changes.smolmachine"]);
    for new in ["new.smolmachine", "changes.smolmachine"] {
        changed(&report(&home, &["old.smolmachine", new], 1));
        assert!(files(&report(&home, &[new, new], 0)).is_empty());
    }
    // A machine against another file; frozen, it is compared without going on.
    assert!(files(&report(&home, &["m", "new.smolmachine"], 0)).is_empty());
    home.ok(&["freeze", "m"]);
    changed(&report(&home, &["m"], 1));
    assert!(home.ok(&["ps", "-a"]).contains("frozen"));
    let back: Vec<String> = files(&report(&home, &["new.smolmachine", "old.smolmachine"], 1));
    assert!(back.contains(&"removed /etc/new".to_owned()) && back.contains(&"added /etc/passwd".to_owned()));
    // For a person, too, and safely.
    let said = e2e::text(&home.run(&["diff", "old.smolmachine", "new.smolmachine"]).stdout);
    assert!(said.contains("file - /etc/passwd") && said.contains("process + "), "{said}");
}

#[test]
fn a_copy_is_compared_with_its_source_and_a_stopped_machine_by_its_disk() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&["exec", "m", "sh", "-c", "echo before >/etc/before"]);
    home.ok(&["fork", "m"]);
    assert!(files(&report(&home, &["m-1"], 0)).is_empty());
    home.ok(&["exec", "m-1", "sh", "-c", "echo after >/etc/after"]);
    assert_eq!(files(&report(&home, &["m-1"], 1)), ["added /etc/after"]);
    home.ok(&["stop", "-t", "1s", "m-1"]);
    assert_eq!(files(&report(&home, &["m-1"], 1)), ["added /etc/after"]);
    // What the disk says is what the machine said.
    let all = "rm /etc/passwd /etc/group /etc/hostname; rm -r /srv; mkdir -m 700 /srv; mv /opt /moved; \
               ln /etc/before /etc/linked; ln -s before /etc/link; mknod /etc/device c 5 300; \
               printf %05000d 0 >/etc/long; chown 7:9 /etc/before; ls /moved";
    home.ok(&["exec", "m", "sh", "-c", all]);
    let running = report(&home, &["m"], 1);
    home.ok(&["stop", "-t", "1s", "m"]);
    let stopped = report(&home, &["m"], 1);
    assert_eq!(stopped["files"], running["files"]);
    assert!(files(&stopped).contains(&"removed /etc/hostname".to_owned()), "{stopped}");
    assert!(stopped["processes"].is_null());
}

/// The superblock is at byte 1024 of the disk: the second byte of its incompatible features at 0x61, the inodes' size at
/// 0x58 (kernel documentation, filesystems/ext4/super.rst).
#[test]
fn a_disk_that_its_guest_wrote_to_is_left_to_a_kernel_or_refused() {
    let home = Home::new("soft");
    let stopped = |name: &str, byte: &str, at: u32| {
        home.ok(&["run", "-d", "--name", name]);
        let write = format!("printf '{byte}' | dd of=/dev/vdb bs=1 seek={at} conv=notrunc");
        home.ok(&["exec", name, "sh", "-c", &format!("echo new >/etc/new; {write}")]);
        home.ok(&["stop", "-t", "1s", name]);
    };
    // Large directories: a kernel knows them, we don't.
    stopped("large", r"\102", 1024 + 0x61);
    assert_eq!(files(&report(&home, &["large"], 1)), ["added /etc/new"]);
    stopped("damaged", r"\7", 1024 + 0x58);
    let said = home.fails(&["diff", "damaged"], 125);
    assert!(said.contains("inodes have an impossible size") && said.contains("/damaged/saved"), "{said}");
}

#[test]
fn definitions_differ() {
    let home = Home::new("soft");
    for (name, memory) in [("a", "128MiB"), ("b", "160MiB")] {
        std::fs::write(home.path("Smolfile"), format!("name = \"x\"\nmemory = \"{memory}\"\n")).unwrap();
        home.ok(&["build", "-q", "-o", &format!("{name}.smolmachine")]);
    }
    let report = report(&home, &["a.smolmachine", "b.smolmachine"], 1);
    let keys: Vec<&str> =
        report["definition"].as_array().unwrap().iter().map(|k| k["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["memory"]);
    home.fails(&["diff", "a.smolmachine"], 125);
    home.fails(&["diff", "nobody"], 125);
}
