//! Machines that were made on soft under this host's KVM, and back. What works on a poor KVM, which interprets the guest's
//! kernel, works on a good one; it takes its time here.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use e2e::{Home, NO_AVX, has_kvm, rounds, text, wait_until};
use serde_json::Value;

/// Fills memory with the number of the pass, and checks at each pass that all of it holds the number of the pass
/// before: a page of another instant would be seen. Natively nearly all of its time.
const EVERYWHERE: &str = r#"awk 'BEGIN { for (i = 0; i < 20000; i++) a[i] = 0;
    for (n = 1; ; n++) { for (i = 0; i < 20000; i++) { if (a[i] != n - 1) { print n, i, a[i] >"/tmp/torn"; exit }
    a[i] = n } print n >"/tmp/pass"; close("/tmp/pass") } }'"#;
/// The writer went on, and found nothing torn.
const WENT_ON: &str = "p=$(cat /tmp/pass); until [ \"$(cat /tmp/pass)\" -ge $((p+2)) ] || [ -e /tmp/torn ]; do \
                       sleep 0.2; done; ! [ -e /tmp/torn ]";

/// A machine with a network device and this definition, built on soft.
fn built(cpus: u32, memory: &str) -> Home {
    let home = Home::new("soft");
    let definition = format!("name = \"x\"\nmemory = \"{memory}\"\ncpus = {cpus}\nnet = true\n");
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    home
}

fn sh(home: &Home, line: &str) -> String {
    home.ok(&["exec", "-e", NO_AVX, "m", "sh", "-c", line])
}

fn engine(home: &Home) -> String {
    let said = home.ok(&["stats", "--engine", "--once", "--interval", "10ms", "--json", "m"]);
    let rows: Value = serde_json::from_str(&said).unwrap();
    rows[0]["engine"].as_str().unwrap().to_owned()
}

fn snapshot(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&home.ok(&[&["snapshot", "m", "--json"], args].concat())).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_machine_goes_from_soft_to_kvm_and_back_with_one_to_four_processors() {
    if !has_kvm() {
        return;
    }
    let sum = (1..=2000u64).fold(0, |sum, i| (sum * 31 + i) % 1_000_003);
    // A KVM that interprets the guest's kernel takes minutes for many.
    let (processors, way): (&[u32], &[&str]) = match rounds(0, 1) {
        0 => (&[1], &["kvm", "soft"]),
        _ => (&[1, 2, 3, 4], &["kvm", "soft", "kvm", "kvm", "soft"]),
    };
    for &cpus in processors {
        let home = built(cpus, "128MiB");
        home.on("soft", &["run", "-d", "--name", "m", "./x.smolmachine", "--", "sleep", "100000"]);
        // One for each processor, and one that appends to a file and brings each line to the disk.
        sh(&home, &format!("{EVERYWHERE} >/dev/null 2>&1 &"));
        for other in 1..cpus {
            let work = format!(
                ": >/tmp/n{other}; (while :; do i=0; s=0; while [ $i -lt 2000 ]; do i=$((i+1)); s=$(((s*31+i)%1000003)); done; \
                 [ $s = {sum} ] || echo $s >/tmp/torn; echo >>/tmp/n{other}; done) >/dev/null 2>&1 &"
            );
            sh(&home, &work);
        }
        sh(&home, "(i=0; while :; do i=$((i+1)); echo $i >>/root/log; sync; done) >/dev/null 2>&1 &");
        sh(&home, "until [ -s /tmp/pass ] && [ -s /root/log ]; do sleep 0.02; done");
        let mut was = "soft";
        for &place in way {
            let report = snapshot(&home, &["-o", "moved.smolmachine"]);
            // Under KVM memory was copied ahead.
            assert_eq!(report["ahead"].is_object(), was == "kvm", "{report}");
            home.ok(&["verify", "moved.smolmachine"]);
            home.ok(&["rm", "-f", "m"]);
            home.on(place, &["run", "-d", "--name", "m", "./moved.smolmachine"]);
            assert_eq!(engine(&home), place);
            was = place;
            sh(&home, WENT_ON);
            for other in 1..cpus {
                let count = format!("/tmp/n{other}");
                let more = format!(
                    "n=$(wc -l <{count}); until [ $(wc -l <{count}) -gt $n ]; do sleep 0.2; done; ! [ -e /tmp/torn ]"
                );
                sh(&home, &more);
            }
            let lines = "n=$(wc -l </root/log); until [ $(wc -l </root/log) -gt $n ]; do sleep 0.2; done; \
                         head -n $n /root/log >/tmp/log; seq 1 $n | cmp - /tmp/log && nproc";
            assert_eq!(sh(&home, lines).trim(), cpus.to_string());
            let log = home.ok(&["logs", "--kernel", "m"]);
            let bad = ["BUG", "soft lockup", "detected stall", "Call Trace", "general protection"];
            assert!(!bad.iter().any(|word| log.contains(word)), "{log}");
        }
        home.ok(&["rm", "-f", "m"]);
    }
}

#[test]
fn a_snapshot_under_kvm_is_one_instant_and_so_are_copies_and_changes() {
    if !has_kvm() {
        return;
    }
    let home = built(1, "128MiB");
    home.on("soft", &["run", "-d", "--name", "m", "./x.smolmachine", "--", "sleep", "100000"]);
    // Some 14 MiB: more than what is left for the instant.
    sh(&home, &format!("{} >/dev/null 2>&1 &", EVERYWHERE.replace("20000", "200000")));
    sh(&home, "until [ -s /tmp/pass ]; do sleep 0.02; done; head -c 20000000 /dev/urandom >/dev/shm/still");
    snapshot(&home, &["-o", "first.smolmachine"]);
    let digest = sh(&home, "sha256sum /dev/shm/still");
    home.ok(&["rm", "-f", "m"]);
    home.on("kvm", &["run", "-d", "--name", "m", "./first.smolmachine"]);
    let mut whole = 0;
    for round in 0..rounds(2, 10) {
        // Every second one holds only what changed since the first.
        let extra: &[&str] = if round % 2 == 0 { &[] } else { &["--incremental"] };
        let report = snapshot(&home, &[extra, &["-o", "s.smolmachine"]].concat());
        let ahead = &report["ahead"];
        assert!(
            ahead["copied_pages"].as_u64().unwrap() > 2048 && ahead["rounds"].as_u64().unwrap() > 0,
            "{report}"
        );
        assert!(ahead["last_pages"].as_u64().unwrap() <= 4096 && ahead["gave_up"] == false, "{report}");
        assert!(report["pause_us"].as_u64() >= ahead["longest_stop_us"].as_u64(), "{report}");
        let pages = report["nonzero_pages"].as_u64().unwrap();
        if round % 2 == 0 {
            whole = pages;
        } else {
            assert!(pages + 4000 < whole, "what nobody wrote is in the parent: {report}");
        }
        home.on("soft", &["run", "-d", "--name", "back", "./s.smolmachine"]);
        home.ok(&["exec", "back", "sh", "-c", WENT_ON]);
        assert_eq!(home.ok(&["exec", "back", "sha256sum", "/dev/shm/still"]), digest);
        home.ok(&["rm", "-f", "back"]);
        sh(&home, WENT_ON);
    }
    home.ok(&["fork", "m", "--count", "2"]);
    for copy in ["m", "m-1", "m-2"] {
        home.ok(&["exec", "-e", NO_AVX, copy, "sh", "-c", WENT_ON]);
    }
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    sh(&home, WENT_ON);
}

#[test]
fn network_folders_volumes_and_balloon_work_under_kvm() {
    if !has_kvm() {
        return;
    }
    let home = built(1, "128MiB");
    fs::create_dir(home.path("share")).unwrap();
    fs::write(home.path("share/from-host"), "host\n").unwrap();
    home.ok(&["volume", "create", "data", "--size", "128MiB"]);
    // A new volume's file system is made by the guest: on soft.
    home.on(
        "soft",
        &["run", "-v", "data:/data", "./x.smolmachine", "--", "sh", "-c", "echo soft >/data/file"],
    );
    let port = free_port();
    let publish = format!("{port}:8080");
    let mounts = ["-p", &publish, "-v", "./share:/mnt/share", "-v", "data:/data"];
    let run = ["run", "-d", "--name", "m"];
    home.on("kvm", &[&run[..], &mounts, &["./x.smolmachine", "--", "sleep", "100000"]].concat());
    assert_eq!(engine(&home), "kvm");

    let folder = "cat /mnt/share/from-host; echo guest >/mnt/share/from-guest; ls /mnt/share";
    assert_eq!(sh(&home, folder), "host\nfrom-guest\nfrom-host\n");
    assert_eq!(fs::read_to_string(home.path("share/from-guest")).unwrap(), "guest\n");

    sh(
        &home,
        "cat /data/file; head -c 300000 /dev/urandom >/data/random; sha256sum /data/random >/data/sum; sync",
    );

    sh(&home, "mkdir /w; head -c 200000 /dev/zero >/w/zeros; busybox httpd -p 8080 -h /w");
    let mut answer = Vec::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /zeros HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1") && answer.ends_with(&[0; 200_000]), "{}", answer.len());
    let resolved = sh(&home, "ip route; cat /proc/net/dev");
    assert!(resolved.contains("default") && resolved.contains("eth0"), "{resolved}");

    let stats = || -> Value {
        let rows = home.ok(&["stats", "--once", "--interval", "10ms", "--json", "m"]);
        serde_json::from_str::<Value>(&rows).unwrap()[0].clone()
    };
    home.ok(&["balloon", "m", "96MiB"]);
    wait_until("the guest gives 32 MiB up", || stats()["ballooned"] == 32 << 20);

    // Frozen with all of it, it goes on with all of it; what it wrote to the volume is there for another engine.
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    assert_eq!(sh(&home, folder), "host\nfrom-guest\nfrom-host\n");
    assert_eq!(stats()["ballooned"], 32 << 20);
    home.ok(&["balloon", "m", "all"]);
    wait_until("the guest takes it back", || stats()["ballooned"] == 0);
    sh(&home, "sync");
    home.ok(&["rm", "-f", "m"]);
    let check = "cat /data/file; sha256sum -c /data/sum";
    let said = home.on("soft", &["run", "-v", "data:/data", "./x.smolmachine", "--", "sh", "-c", check]);
    assert_eq!(said, "soft\n/data/random: OK\n");
}

/// A stream that is half sent when the machine moves: flows do not travel, and neither side hangs.
#[test]
fn a_half_sent_stream_ends_on_both_sides_of_a_move() {
    if !has_kvm() {
        return;
    }
    let home = built(1, "128MiB");
    let port = free_port();
    let publish = format!("{port}:8080");
    home.on(
        "soft",
        &["run", "-d", "--name", "m", "-p", &publish, "./x.smolmachine", "--", "sleep", "100000"],
    );
    let receiver = "(busybox nc -l -p 8080 >/tmp/got 2>/tmp/said; echo ended >/tmp/ended) >/dev/null 2>&1 &";
    sh(&home, receiver);
    sh(&home, "until grep -q :1F90 /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&[b'a'; 5000]).unwrap();
    sh(&home, "until [ $(wc -c </tmp/got) = 5000 ]; do sleep 0.02; done");
    snapshot(&home, &["-o", "s.smolmachine"]);
    home.ok(&["rm", "-f", "m"]);
    // The host's side ends with its machine.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    home.on("kvm", &["run", "-d", "--name", "m", "-p", &publish, "./s.smolmachine"]);
    sh(&home, "until [ -e /tmp/ended ]; do sleep 0.2; done");
    assert_eq!(sh(&home, "wc -c </tmp/got").trim(), "5000");
    // Another one is answered.
    sh(&home, &format!("rm /tmp/ended; {receiver}"));
    sh(&home, "until grep -q :1F90 /proc/net/tcp /proc/net/tcp6; do sleep 0.2; done");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&[b'b'; 3000]).unwrap();
    drop(stream);
    assert_eq!(sh(&home, "until [ -e /tmp/ended ]; do sleep 0.2; done; wc -c </tmp/got").trim(), "3000");
}

#[test]
fn gdb_stops_a_machine_under_kvm() {
    if !has_kvm() {
        return;
    }
    let home = built(1, "64MiB");
    let count = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.05; done";
    home.on("soft", &["run", "-d", "--name", "m", "./x.smolmachine", "--", "sh", "-c", count]);
    let symbols = sh(&home, "cat /proc/kallsyms");
    let symbol =
        symbols.lines().find(|line| line.ends_with(" do_sys_openat2")).expect("a symbol of the kernel");
    let address = u64::from_str_radix(symbol.split(' ').next().unwrap(), 16).unwrap();
    snapshot(&home, &["-o", "s.smolmachine"]);
    home.ok(&["rm", "-f", "m"]);
    let port = free_port().to_string();
    home.on("kvm", &["run", "-d", "--name", "m", "--gdb", &port, "./s.smolmachine"]);
    let target = format!("target remote 127.0.0.1:{port}");
    let breakpoint = format!("break *{address:#x}");
    let commands = [
        "set pagination off",
        "set architecture i386:x86-64",
        &target,
        &breakpoint,
        "continue",
        "print/x $rip",
        "x/2gx $rsp",
        "stepi",
        "continue",
        "print/x $rip",
        "delete",
        "detach",
    ];
    let args = commands.iter().flat_map(|command| ["-ex", command]);
    let output = Command::new("gdb").args(["-nx", "-q", "-batch"]).args(args).stdin(Stdio::null()).output();
    let output = output.expect("gdb, from Debian's package of that name");
    let said = text(&output.stdout);
    for value in ["$1", "$2"] {
        assert!(said.contains(&format!("{value} = {address:#x}")), "{said}\n{}", text(&output.stderr));
    }
    sh(&home, "a=$(cat /tmp/count); while [ $(cat /tmp/count) = $a ]; do sleep 0.2; done");
}
