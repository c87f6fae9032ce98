//! Folders of the host in a machine: both sides at work, and what a freeze, a copy or another place does to them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use e2e::{Home, engines, text, wait_until};

/// A folder of the host with a file in it.
fn shared(home: &Home, name: &str) -> (PathBuf, String) {
    let dir = home.path(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("there"), "from the host\n").unwrap();
    let mount = format!("./{name}:/srv");
    (dir, mount)
}

/// Runs a shell line in machine `m`.
fn sh(home: &Home, line: &str) -> String {
    home.ok(&["exec", "m", "sh", "-c", line])
}

#[test]
fn a_frozen_machine_is_given_a_folder_when_it_is_run() {
    for engine in engines() {
        let home = Home::new(engine);
        let (dir, mount) = shared(&home, "a");
        assert_eq!(home.ok(&["run", "-v", &mount, "--", "cat", "/srv/there"]), "from the host\n");
        assert_eq!(home.ok(&["run", "--cold", "-v", &mount, "--", "cat", "/srv/there"]), "from the host\n");
        home.ok(&["run", "-v", &mount, "--", "sh", "-c", "echo back >/srv/made; chmod 640 /srv/made"]);
        assert_eq!(fs::read(dir.join("made")).unwrap(), b"back\n");
        assert_eq!(fs::metadata(dir.join("made")).unwrap().permissions().mode() & 0o777, 0o640);
        let file = format!("{}:/etc/conf/one:ro", dir.join("there").display());
        let line = "cat /etc/conf/one; ls /etc/conf; echo x >/etc/conf/one";
        let output = home.run(&["run", "-v", &file, "--", "sh", "-c", line]);
        assert_eq!(text(&output.stdout), "from the host\none\n");
        assert!(text(&output.stderr).contains("Read-only"), "{}", text(&output.stderr));
        assert_eq!(home.ok(&["run", "--", "ls", "/srv"]), "", "and none when none is named");
    }
}

#[test]
fn both_sides_work_on_one_folder() {
    let home = Home::new("soft");
    let (dir, mount) = shared(&home, "a");
    home.ok(&["run", "-d", "--name", "m", "-v", &mount]);
    // As much as one request can move, for whoever reads in order.
    assert_eq!(
        sh(
            &home,
            "cat /sys/class/bdi/$(awk '$5 == \"/srv\" { print $3 }' /proc/self/mountinfo)/read_ahead_kb"
        ),
        "1008\n"
    );
    for i in 0..20 {
        fs::write(dir.join("there"), format!("{i}\n")).unwrap();
        assert_eq!(sh(&home, "cat /srv/there"), format!("{i}\n"), "an edit is seen at once");
    }
    fs::write(dir.join("new"), "replaced\n").unwrap();
    fs::rename(dir.join("new"), dir.join("there")).unwrap();
    assert_eq!(sh(&home, "cat /srv/there; ls /srv"), "replaced\nthere\n");
    sh(
        &home,
        "mkdir -p /srv/d/e && echo 1 >/srv/d/e/f && mv /srv/d/e /srv/e && rm -r /srv/d && ln /srv/e/f /srv/g",
    );
    assert_eq!(fs::read(dir.join("e/f")).unwrap(), b"1\n");
    assert_eq!(fs::metadata(dir.join("g")).unwrap().nlink(), 2);
    assert!(!dir.join("d").exists());
    assert_eq!(sh(&home, "cp /bin/busybox /srv/busybox && /srv/busybox echo runs"), "runs\n");
    assert_eq!(sh(&home, "dd if=/dev/urandom of=/srv/big bs=1M count=5 2>/dev/null; md5sum </srv/big"), {
        let sum =
            std::process::Command::new("md5sum").stdin(fs::File::open(dir.join("big")).unwrap()).output();
        text(&sum.unwrap().stdout)
    });
    sh(&home, "cmp /srv/busybox /bin/busybox && truncate -s 3 /srv/big && touch -d @1000000 /srv/big");
    let big = fs::metadata(dir.join("big")).unwrap();
    assert_eq!((big.len(), big.mtime()), (3, 1_000_000));
    // Many names, listed, counted, removed.
    sh(&home, "mkdir /srv/many && cd /srv/many && for i in $(seq 1 1500); do : >file-$i; done");
    assert_eq!(sh(&home, "ls /srv/many | wc -l; ls -l /srv/many | grep -c file"), "1500\n1500\n");
    assert_eq!(fs::read_dir(dir.join("many")).unwrap().count(), 1500);
    sh(&home, "rm -r /srv/many");
    assert!(!dir.join("many").exists());
}

#[test]
fn nothing_leads_out_of_a_folder() {
    let home = Home::new("soft");
    let (dir, mount) = shared(&home, "a");
    fs::write(home.path("secret"), "the host's").unwrap();
    symlink(home.path("secret"), dir.join("absolute")).unwrap();
    symlink("../secret", dir.join("relative")).unwrap();
    home.ok(&["run", "-d", "--name", "m", "-v", &mount, "-v", "./a:/ro:ro"]);
    sh(&home, "echo guest >/secret; ! cat /srv/absolute 2>/dev/null; cat /srv/relative | grep guest");
    assert_eq!(sh(&home, "mkfifo /srv/pipe; (echo through >/srv/pipe &) ; cat /srv/pipe"), "through\n");
    assert!(fs::metadata(dir.join("pipe")).unwrap().file_type().is_fifo());
    let refused =
        sh(&home, "mknod /srv/null c 1 3 2>&1; cp /bin/busybox /srv/tool; chmod 4755 /srv/tool; true");
    assert!(refused.contains("not permitted"), "{refused}");
    assert!(!dir.join("null").exists());
    assert_eq!(fs::metadata(dir.join("tool")).unwrap().mode() & 0o7777, 0o755);
    let refused = sh(
        &home,
        "for c in 'touch /ro/x' 'rm /ro/there' 'chmod 600 /ro/there' 'mv /ro/there /ro/y'; do \
                             $c 2>&1; done; mount -o remount,rw /ro; touch /ro/x 2>&1; true",
    );
    assert_eq!(refused.matches("Read-only").count(), 5, "{refused}");
    assert!(dir.join("there").exists() && !dir.join("x").exists());
}

#[test]
fn an_open_file_goes_on_over_a_freeze_or_is_stale_when_it_was_replaced() {
    let home = Home::new("soft");
    let (dir, mount) = shared(&home, "a");
    home.ok(&["run", "-d", "--name", "m", "-v", &mount, "--", "sh", "-c", "cd /srv; sleep 100000"]);
    sh(
        &home,
        "cd /srv; (i=0; while echo $((i=i+1)); do sleep 0.02; done >>log 2>/tmp/why; echo over >/tmp/end) &",
    );
    let lines = || fs::read_to_string(dir.join("log")).unwrap_or_default().lines().count();
    wait_until("the guest writes", || lines() > 3);
    home.ok(&["freeze", "m"]);
    let frozen = lines();
    fs::write(dir.join("there"), "changed meanwhile\n").unwrap();
    home.ok(&["start", "m"]);
    wait_until("the guest goes on", || lines() > frozen + 3);
    assert_eq!(sh(&home, "cat /srv/there"), "changed meanwhile\n");
    let log = fs::read_to_string(dir.join("log")).unwrap();
    assert!(
        log.lines().enumerate().all(|(i, line)| line == (i + 1).to_string()),
        "no line lost or doubled: {log}"
    );
    home.ok(&["freeze", "m"]);
    fs::write(dir.join("log2"), "another file\n").unwrap();
    fs::rename(dir.join("log2"), dir.join("log")).unwrap();
    home.ok(&["start", "m"]);
    sh(&home, "until [ -e /tmp/end ]; do sleep 0.02; done; grep -qi stale /tmp/why");
    assert_eq!(fs::read(dir.join("log")).unwrap(), b"another file\n");
    assert_eq!(sh(&home, "cat /srv/log"), "another file\n");
}

#[test]
fn a_snapshot_with_a_folder_runs_elsewhere_with_another_or_without() {
    let home = Home::new("soft");
    let (_, mount) = shared(&home, "a");
    home.ok(&["run", "-d", "--name", "m", "-v", &mount]);
    sh(&home, "cat /srv/there; (exec 3</srv/there; sleep 1000) >/dev/null 2>&1 &");
    home.ok(&["snapshot", "m", "-o", "s.smolmachine"]);
    assert_eq!(sh(&home, "cat /srv/there"), "from the host\n", "it goes on");
    let without = home.run(&["run", "./s.smolmachine", "--", "cat", "/srv/there"]);
    let told = text(&without.stderr);
    assert!(told.contains("Stale file handle") && told.contains("shared folders at /srv"), "{told}");
    assert_eq!(without.status.code(), Some(1));
    fs::create_dir(home.path("b")).unwrap();
    fs::write(home.path("b/there"), "another place\n").unwrap();
    let args = ["run", "-v", "./b:/srv", "-v", "./a:/more", "./s.smolmachine", "--"];
    let seen = home.ok(&[&args[..], &["cat", "/srv/there", "/more/there"]].concat());
    assert_eq!(seen, "another place\nfrom the host\n");
    // Copies work on the folder of the original.
    home.ok(&["fork", "m", "--name", "copy"]);
    home.ok(&["exec", "copy", "sh", "-c", "cat /srv/there && echo copy >/srv/by-copy"]);
    assert_eq!(sh(&home, "cat /srv/by-copy"), "copy\n");
}

#[test]
fn what_cannot_be_shared_is_named() {
    let home = Home::new("soft");
    let said = home.fails(&["run", "-v", "./nowhere:/srv", "--", "true"], 125);
    assert!(said.contains("nowhere") && said.contains("make it first"), "{said}");
    let _socket = std::os::unix::net::UnixListener::bind(home.path("socket")).unwrap();
    let said = home.fails(&["run", "-v", "./socket:/srv", "--", "true"], 125);
    assert!(said.contains("neither a folder nor a file"), "{said}");
    let (_, mount) = shared(&home, "a");
    let said = home.fails(&["run", "-v", &mount.replace("/srv", "/etc/passwd"), "--", "true"], 125);
    assert!(said.contains("/etc/passwd"), "{said}");
    let idle = home.ok(&["run", "--", "cat", "/proc/mounts"]);
    assert!(!idle.contains("virtiofs"), "{idle}");
}
