//! Copies of running machines.

use e2e::Home;
use serde_json::Value;

const COUNTER: &str = "exec 3>/root/log; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.02; done";

fn started(home: &Home, name: &str) {
    home.ok(&["run", "-d", "--name", name]);
    home.ok(&["exec", name, "sh", "-c", &format!("sh -c '{COUNTER}' >/dev/null 2>&1 & echo $! >/tmp/pid")]);
    home.ok(&["exec", name, "sh", "-c", "until [ $(wc -l </root/log) -ge 5 ]; do sleep 0.02; done"]);
}

/// The counter runs, under the same process id, and its file has no gap.
fn counts_on(home: &Home, name: &str) {
    let check = "p=$(cat /tmp/pid); n=$(wc -l </root/log); kill -0 $p && \
                 until [ $(wc -l </root/log) -ge $((n+3)) ]; do sleep 0.02; done; \
                 n=$(wc -l </root/log); head -n $n /root/log >/tmp/log; seq 1 $n | cmp - /tmp/log";
    home.ok(&["exec", name, "sh", "-c", check]);
}

fn forked(home: &Home, args: &[&str]) -> Value {
    let args = [&["fork", "--json"], args].concat();
    serde_json::from_str(&home.ok(&args)).unwrap()
}

#[test]
fn copies_go_on_by_themselves_and_the_source_too() {
    let home = Home::new("soft");
    started(&home, "m");
    home.ok(&["exec", "m", "sh", "-c", "echo source >/root/mine"]);
    assert_eq!(home.ok(&["fork", "-q", "m", "--count", "3"]), "m-1\nm-2\nm-3\n");
    for name in ["m-1", "m-2", "m-3"] {
        home.ok(&["exec", name, "sh", "-c", "cat /root/mine; hostname >/root/mine"]);
    }
    for name in ["m", "m-1", "m-2", "m-3"] {
        counts_on(&home, name);
        let mine = if name == "m" { "source" } else { name };
        assert_eq!(home.ok(&["exec", name, "cat", "/root/mine"]), format!("{mine}\n"));
    }
    let unique = |path: &str| {
        let mut seen: Vec<String> =
            ["m", "m-1", "m-2", "m-3"].iter().map(|name| home.ok(&["exec", name, "cat", path])).collect();
        seen.sort();
        seen.dedup();
        seen.len()
    };
    assert_eq!(unique("/proc/sys/kernel/random/uuid"), 4);
    assert_eq!(unique("/run/smolvm/generation"), 4);
    let clones = ["m-1", "m-2", "m-3"].map(|name| home.ok(&["exec", name, "cat", "/etc/machine-id"]));
    assert!(clones[0] != clones[1] && clones[1] != clones[2] && clones[0] != clones[2]);
    // Names go on where they are free.
    assert_eq!(home.ok(&["fork", "-q", "m"]), "m-4\n");
    let rows: Value = serde_json::from_str(&home.ok(&["ps", "--json"])).unwrap();
    let from = |row: &Value| row["forked_from"].as_str().unwrap_or("").to_owned();
    let of: Vec<String> = rows.as_array().unwrap().iter().map(from).collect();
    assert_eq!(of, ["", "m", "m", "m", "m"]);
}

#[test]
fn a_copy_of_a_copy_and_what_becomes_of_copies() {
    let home = Home::new("soft");
    started(&home, "m");
    home.ok(&["fork", "m", "--name", "a"]);
    home.ok(&[
        "exec",
        "a",
        "sh",
        "-c",
        "dd if=/dev/urandom of=/dev/shm/r bs=64k count=32 2>/dev/null; \
               md5sum </dev/shm/r >/root/sum; echo a >/root/name",
    ]);
    home.ok(&["fork", "a", "--name", "b"]);
    // The sources go; what was copied does not need them.
    home.ok(&["rm", "-f", "m"]);
    home.ok(&["rm", "-f", "a"]);
    home.ok(&["prune"]);
    counts_on(&home, "b");
    let whole = "md5sum </dev/shm/r | cmp - /root/sum && cat /root/name";
    assert_eq!(home.ok(&["exec", "b", "sh", "-c", whole]), "a\n");
    // Frozen and started it goes on; and so do copies and snapshots of that.
    home.ok(&["exec", "b", "sh", "-c", "echo b >/root/name"]);
    home.ok(&["freeze", "b"]);
    home.ok(&["start", "b"]);
    counts_on(&home, "b");
    home.ok(&["fork", "b", "--name", "c"]);
    counts_on(&home, "c");
    assert_eq!(home.ok(&["exec", "c", "sh", "-c", whole]), "b\n");
    home.ok(&["snapshot", "-q", "c", "-o", "c.smolmachine"]);
    assert_eq!(home.ok(&["run", "./c.smolmachine", "--", "sh", "-c", whole]), "b\n");
    // Killed, it starts from where it was copied.
    home.ok(&["exec", "c", "sh", "-c", "echo c >/root/name; sync"]);
    home.ok(&["kill", "c"]);
    home.ok(&["start", "c"]);
    counts_on(&home, "c");
    assert_eq!(home.ok(&["exec", "c", "sh", "-c", whole]), "b\n");
    // Stopped and started it boots on its disk, and is the same machine.
    let id = home.ok(&["exec", "c", "cat", "/etc/machine-id"]);
    assert_eq!(id.trim().len(), 32, "{id}");
    home.ok(&["stop", "-t", "1s", "c"]);
    home.ok(&["start", "c"]);
    assert_eq!(home.ok(&["exec", "c", "cat", "/etc/machine-id"]), id);
    assert_eq!(home.ok(&["exec", "c", "cat", "/root/name"]), "b\n");
}

#[test]
fn a_booted_machine_is_copied_too() {
    let home = Home::new("soft");
    let definition = "name = \"x\"\nmemory = \"128MiB\"\ncpus = 2\n";
    std::fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["run", "-d", "--name", "m", "--cold", "./x.smolmachine", "--", "sleep", "1000"]);
    home.ok(&["exec", "m", "sh", "-c", "echo there >/root/file"]);
    home.ok(&["fork", "m"]);
    assert_eq!(home.ok(&["exec", "m-1", "cat", "/root/file"]), "there\n");
    home.ok(&["exec", "m-1", "sh", "-c", "pidof sleep"]);
    assert_eq!(home.ok(&["exec", "m-1", "nproc"]), "2\n");
}

#[test]
fn many_copies_all_answer() {
    let home = Home::new("soft");
    started(&home, "m");
    let count = e2e::rounds(32, 100) as usize;
    let told = forked(&home, &["m", "--count", &count.to_string()]);
    let copies = told["copies"].as_array().unwrap();
    assert_eq!(copies.len(), count);
    // Each is alive, and has a record of its own by now.
    let rows: Value = serde_json::from_str(&home.ok(&["ps", "--json"])).unwrap();
    let of_m = rows.as_array().unwrap().iter().filter(|row| row["forked_from"] == "m");
    let mut pids: Vec<u64> = of_m.map(|row| row["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert!(pids.len() == count && pids[0] > 0, "{pids:?}");
    for copy in copies {
        let name = copy["name"].as_str().unwrap();
        assert_eq!(home.ok(&["exec", name, "hostname"]).trim(), name);
    }
    counts_on(&home, "m");
}

#[test]
fn what_does_not_run_is_not_copied() {
    let home = Home::new("soft");
    home.fails(&["fork", "nobody"], 125);
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&["freeze", "m"]);
    let said = home.fails(&["fork", "m"], 125);
    assert!(said.contains("smolvm start m"), "{said}");
    home.ok(&["start", "m"]);
    let taken = home.fails(&["fork", "m", "--name", "m"], 125);
    assert!(taken.contains("is taken"), "{taken}");
    home.fails(&["fork", "m", "--name", "Not_Good!"], 125);
    home.fails(&["fork", "m", "--count", "0"], 125);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "m\n");
}

#[test]
fn killed_at_any_instant_a_fork_harms_nobody() {
    let home = Home::new("soft");
    started(&home, "m");
    let mut seed = 777u64;
    for _ in 0..8 {
        let mut child = home.command(&["fork", "-q", "m", "--count", "4"]).spawn().unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Where the instant falls is the point of it; nothing is waited for.
        std::thread::sleep(std::time::Duration::from_micros(seed >> 33 & 0xffff));
        child.kill().unwrap();
        child.wait().unwrap();
        counts_on(&home, "m");
        // Whatever is there of the copies is listed, and can be removed.
        for name in home.ok(&["ps", "-a", "-q"]).lines().filter(|name| *name != "m") {
            home.ok(&["rm", "-f", name]);
        }
    }
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "m\n");
    home.ok(&["fork", "-q", "m"]);
    counts_on(&home, "m-1");
}

#[test]
fn what_was_left_before_it_was_a_machine_takes_no_name() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let left = home.path("home/state/instances/m-1");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("lock"), b"").unwrap();
    std::fs::write(left.join("record.json.new"), b"{").unwrap();
    let output = home.run(&["ps", "-a", "-q"]);
    assert_eq!((e2e::text(&output.stdout).as_str(), e2e::text(&output.stderr).as_str()), ("m\n", ""));
    assert_eq!(home.ok(&["fork", "-q", "m"]), "m-1\n");
    assert_eq!(home.ok(&["exec", "m-1", "echo", "up"]), "up\n");
    // What saved something is a machine, whatever became of its record.
    std::fs::create_dir(home.path("home/state/instances/m-2")).unwrap();
    std::fs::write(home.path("home/state/instances/m-2/saved"), b"something").unwrap();
    assert_eq!(home.ok(&["fork", "-q", "m"]), "m-3\n");
}
