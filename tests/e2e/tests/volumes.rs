//! Volumes: data outside the machine file that outlives instances, kills and freezes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Home, debian, engines, instant, rounds, text};

#[test]
fn what_is_written_to_a_volume_is_there_for_the_next_machine() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["volume", "create", "data", "--size", "256MiB"]);
        home.ok(&["run", "-v", "data:/data", "--", "sh", "-c", "echo kept >/data/file"]);
        assert_eq!(home.ok(&["run", "-v", "data:/data:ro", "--", "cat", "/data/file"]), "kept\n");
        let refused = home.run(&["run", "-v", "data:/data:ro", "--", "sh", "-c", "echo x >/data/file"]);
        assert!(text(&refused.stderr).contains("Read-only"), "{}", text(&refused.stderr));
        // One that boots has it, too, and a larger one is seen as such.
        home.ok(&["volume", "grow", "data", "1GiB"]);
        let shown =
            home.ok(&["run", "--cold", "-v", "data:/data", "--", "sh", "-c", "cat /data/file; df -m /data"]);
        let total: u64 = shown.lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(shown.starts_with("kept\n") && (900..1024).contains(&total), "{shown}");
        let copy = home.ok(&["volume", "snapshot", "data", "monday"]);
        assert_eq!(copy, "monday\n");
        home.ok(&["run", "-v", "data:/data", "--", "rm", "/data/file"]);
        assert_eq!(home.ok(&["run", "-v", "monday:/data", "--", "cat", "/data/file"]), "kept\n");
        let quiet = home.run(&["run", "-q", "-v", "new:/new", "--", "true"]);
        assert_eq!((quiet.status.code(), e2e::text(&quiet.stderr).as_str()), (Some(0), ""));
        let rows: serde_json::Value = serde_json::from_str(&home.ok(&["volume", "ls", "--json"])).unwrap();
        assert_eq!(rows[0]["bytes"], 1u64 << 30);
        assert!(rows[0]["used_bytes"].as_u64().unwrap() < 64 << 20, "{rows}");
        home.ok(&["volume", "rm", "data", "monday"]);
        assert!(home.fails(&["volume", "inspect", "data"], 125).contains("no volume `data`"));
    }
}

/// Of a volume for reading the host writes nothing, whatever a guest that is root does to its own mount and device.
#[test]
fn a_guest_cannot_write_to_a_volume_that_it_was_given_for_reading() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["volume", "create", "data", "--size", "256MiB"]);
        home.ok(&["run", "-v", "data:/data", "--", "sh", "-c", "echo kept >/data/file"]);
        let info: serde_json::Value = serde_json::from_str(&home.ok(&["volume", "inspect", "data"])).unwrap();
        let image = || fs::read(info["path"].as_str().unwrap()).unwrap();
        let before = image();
        let force = "d=$(grep ' /data ' /proc/mounts | cut -d ' ' -f 1); mount -o remount,rw /data && echo x >/data/file; \
                     umount /data; dd if=/dev/urandom of=$d bs=1M count=8 conv=fsync; mount $d /mnt && rm /mnt/file; \
                     sync; cat /proc/partitions";
        let said = home.run(&["run", "-v", "data:/data:ro", "--", "sh", "-c", force]);
        let partitions = text(&said.stdout);
        assert!(
            partitions.contains("262144 vdc"),
            "the volume was not there: {partitions}\n{}",
            text(&said.stderr)
        );
        assert!(image() == before, "the volume was written: {}", text(&said.stderr));
        assert_eq!(home.ok(&["run", "-v", "data:/data:ro", "--", "cat", "/data/file"]), "kept\n");
    }
}

#[test]
fn a_new_volume_takes_over_what_it_covers() {
    let home = Home::new("soft");
    fs::create_dir(home.path("tree")).unwrap();
    fs::write(home.path("tree/one"), "1").unwrap();
    std::os::unix::fs::symlink("one", home.path("tree/link")).unwrap();
    fs::write(
        home.path("Smolfile"),
        "name = \"x\"\nmemory = \"64MiB\"\n[root]\nfiles = { \"tree\" = \"/srv/tree\" }\n\
         [build]\nsteps = [\"chown 5:6 /srv/tree && chmod 2750 /srv/tree\"]\n",
    )
    .unwrap();
    home.ok(&["build", "-q"]);
    let look = "cat /srv/tree/link; stat -c ' %u:%g %a' /srv/tree; ls /srv/tree; rm /srv/tree/one";
    let shown = home.ok(&["run", "-v", "tree:/srv/tree", "./x.smolmachine", "sh", "-c", look]);
    assert_eq!(shown, "1 5:6 2750\nlink\none\n");
    // Not again, and not into the machine's own.
    let shown = home.ok(&["run", "-v", "tree:/srv/tree", "./x.smolmachine", "ls", "/srv/tree"]);
    assert_eq!(shown, "link\n");
    assert_eq!(home.ok(&["run", "./x.smolmachine", "ls", "/srv/tree"]), "link\none\n");
}

#[test]
fn one_machine_writes_and_keeps_its_volume_over_a_freeze() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "a", "-v", "data:/data"]);
    let said = home.fails(&["run", "-v", "data:/data", "--", "true"], 125);
    assert!(said.contains("in use by `a`"), "{said}");
    home.ok(&["exec", "a", "sh", "-c", "echo 1 >/data/file"]);
    let said = home.fails(&["snapshot", "a", "-o", "x.smolmachine"], 125);
    assert!(said.contains("volume `data` is mounted at /data"), "{said}");
    home.ok(&["freeze", "a"]);
    let said = home.fails(&["volume", "rm", "data"], 125);
    assert!(said.contains("belongs to `a`, which is frozen"), "{said}");
    home.ok(&["start", "a"]);
    assert_eq!(home.ok(&["exec", "a", "cat", "/data/file"]), "1\n");
    home.ok(&["stop", "a"]);
    home.ok(&["start", "a"]);
    assert_eq!(home.ok(&["exec", "a", "cat", "/data/file"]), "1\n");
    // Written by another meanwhile: the frozen file system would not fit it.
    home.ok(&["freeze", "a"]);
    home.ok(&["run", "-v", "data:/data", "--", "sh", "-c", "echo 2 >/data/file"]);
    let said = home.fails(&["start", "a"], 125);
    assert!(said.contains("written since this machine was frozen"), "{said}");
    home.ok(&["rm", "a"]);
    assert_eq!(home.ok(&["run", "-v", "data:/data", "--", "cat", "/data/file"]), "2\n");
    // Ended at once, as with docker: processes end, what they wrote stays.
    home.ok(&["run", "-d", "--name", "b", "-v", "data:/data"]);
    home.ok(&["exec", "b", "sh", "-c", "echo 3 >/data/file"]);
    home.ok(&["rm", "-f", "b"]);
    assert_eq!(home.ok(&["run", "-v", "data:/data", "--", "cat", "/data/file"]), "3\n");
}

/// Appends numbers to a file of the volume all the time; each is on the disk before the next.
const APPEND: &str = "i=0; while :; do i=$((i+1)); echo $i >>/data/log; sync; done";

/// The numbers in the volume's file go on without a gap.
fn goes_on(home: &Home, name: &str) {
    let check = "n=$(wc -l </data/log); until [ $(wc -l </data/log) -gt $((n+2)) ]; do sleep 0.02; done; \
                 n=$(wc -l </data/log); head -n $n /data/log >/tmp/log; seq 1 $n | cmp - /tmp/log";
    home.ok(&["exec", name, "sh", "-c", check]);
}

fn volumes(home: &Home) -> Vec<String> {
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["volume", "ls", "--json"])).unwrap();
    rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn each_copy_has_a_volume_of_its_own() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-v", "shared:/shared", "--", "sh", "-c", "echo read >/shared/file"]);
        let run = ["run", "-d", "--name", "m", "-v", "data:/data", "-v", "shared:/shared:ro"];
        home.ok(&run);
        let bulk =
            "dd if=/dev/urandom of=/data/bulk bs=1M count=24 2>/dev/null; md5sum /data/bulk >/data/sum";
        home.ok(&["exec", "m", "sh", "-c", bulk]);
        home.ok(&["exec", "m", "sh", "-c", &format!("({APPEND}) >/dev/null 2>&1 &")]);
        goes_on(&home, "m");
        home.ok(&["fork", "m", "--count", "2"]);
        assert_eq!(volumes(&home), ["data", "data-m-1", "data-m-2", "shared"]);
        for name in ["m", "m-1", "m-2"] {
            goes_on(&home, name);
            let own =
                format!("md5sum -c /data/sum >/dev/null && cat /shared/file && echo {name} >/data/mine");
            assert_eq!(home.ok(&["exec", name, "sh", "-c", &own]), "read\n", "{engine}");
        }
        // A copy of a copy, and what a freeze, a stop and a kill leave.
        home.ok(&["fork", "m-1"]);
        goes_on(&home, "m-1-1");
        assert_eq!(home.ok(&["exec", "m-1-1", "cat", "/data/mine"]), "m-1\n");
        assert!(volumes(&home).contains(&"data-m-1-1".to_owned()), "{:?}", volumes(&home));
        // Compared with where it came from, running and frozen.
        home.ok(&["exec", "m-1", "sh", "-c", "echo new >/etc/new"]);
        let new = |home: &Home| {
            let output = home.run(&["diff", "m-1"]);
            let said = text(&output.stdout);
            assert!(output.status.code() == Some(1) && said.contains("file + /etc/new"), "{output:?}");
        };
        new(&home);
        home.ok(&["freeze", "m-1"]);
        new(&home);
        home.ok(&["start", "m-1"]);
        goes_on(&home, "m-1");
        home.ok(&["stop", "-t", "1s", "m-1"]);
        home.ok(&["start", "m-1"]);
        for name in ["m", "m-1", "m-2"] {
            assert_eq!(home.ok(&["exec", name, "cat", "/data/mine"]), format!("{name}\n"), "{engine}");
        }
        home.ok(&["kill", "m-2"]);
        let said = home.fails(&["start", "m-2"], 125);
        assert!(said.contains("data-m-2") && said.contains("smolvm rm"), "{said}");
        // They go with their machines, and nothing else does.
        home.ok(&["rm", "-f", "m-1", "m-2", "m-1-1"]);
        assert_eq!(volumes(&home), ["data", "shared"]);
        goes_on(&home, "m");
        // What cannot be is told before anything is made.
        home.ok(&["volume", "create", "data-m-1"]);
        let said = home.fails(&["fork", "m"], 125);
        assert!(said.contains("a volume `data-m-1` already"), "{said}");
        let long = "x".repeat(60);
        let said = home.fails(&["fork", "m", "--name", &long], 125);
        assert!(said.contains("--name"), "{said}");
        assert_eq!((home.ok(&["ps", "-a", "-q"]).as_str(), volumes(&home).len()), ("m\n", 3));
    }
}

#[test]
fn a_volume_never_hides_what_a_frozen_process_writes() {
    let home = Home::new("soft");
    fs::write(
        home.path("Smolfile"),
        "name = \"x\"\nmemory = \"64MiB\"\n[run]\ncommand = \"mkdir -p /data; exec >/data/log; echo up; exec sleep 99999\"\n\
         [ready]\nexec = \"grep up /data/log\"\n",
    )
    .unwrap();
    home.ok(&["build", "-q"]);
    let said = home.fails(&["run", "-v", "data:/data", "./x.smolmachine", "true"], 125);
    assert!(said.contains("/data/log open") && said.contains("--cold"), "{said}");
    // Nor does a machine that never ran keep the name that was meant for it.
    home.fails(&["run", "-d", "--name", "db", "-v", "data:/data", "./x.smolmachine"], 125);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    // A boot has it in place before the service starts.
    let look = "while ! grep up /data/log 2>/dev/null; do :; done";
    home.ok(&["run", "--cold", "-v", "data:/data", "./x.smolmachine", "--", "sh", "-c", look]);
    let shown = home.ok(&["run", "-v", "data:/elsewhere", "./x.smolmachine", "--", "cat", "/elsewhere/log"]);
    assert_eq!(shown, "up\n");
}

#[test]
fn mounts_that_cannot_be_are_refused_before_anything_runs() {
    let home = Home::new("soft");
    for (mount, why) in [
        ("data", "write SRC:DST"),
        ("data:/proc/x", "the guest's system lives there"),
        ("nosuch:/data:ro", "no volume `nosuch`"),
    ] {
        let said = home.fails(&["run", "-v", mount, "--", "true"], 125);
        assert!(said.contains(why), "{mount}: {said}");
    }
    let many: Vec<String> = (0..5).flat_map(|n| ["-v".to_owned(), format!("v{n}:/v{n}")]).collect();
    let args: Vec<&str> =
        ["run"].into_iter().chain(many.iter().map(String::as_str)).chain(["--", "true"]).collect();
    assert!(home.fails(&args, 125).contains("5 volumes; a machine can have 4"));
}

/// sqlite and a shell.
fn sqlite_root() -> Option<PathBuf> {
    const PACKAGES: [&str; 7] =
        ["dash", "libc6", "libreadline8", "libsqlite3-0", "libtinfo6", "sqlite3", "zlib1g"];
    debian::root(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("volumes"), &PACKAGES)
}

/// Says what is there, then adds rows for ever and says each when it is committed (interactive sqlite flushes what it
/// says before each line that it reads). `extra`: without it a commit in this journal mode is the removal of a file that
/// nobody brings to the disk (sqlite's documentation, pragma synchronous).
const DATABASE: &str = r#"
cd /data
sqlite3 db 'create table if not exists t (id integer primary key, v text);'
sqlite3 db "pragma integrity_check; select 'rows ' || count(*) || ' ' || ifnull(max(id), 0) from t;"
n=$(sqlite3 db 'select ifnull(max(id), 0) from t')
(
  echo '.prompt "" ""'
  echo 'pragma synchronous = extra;'
  while :; do
    n=$((n + 1))
    echo "insert into t values ($n, hex(randomblob(300)));"
    echo ".print row $n"
  done
) | sqlite3 -interactive db
"#;

#[test]
fn no_committed_row_is_lost_when_the_machine_is_killed() {
    let Some(root) = sqlite_root() else { return };
    let home = Home::new("soft");
    let definition = format!("name = \"db\"\nmemory = \"128MiB\"\n[root]\ndir = \"{}\"\n", root.display());
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["volume", "create", "data", "--size", "256MiB"]);
    let (mut committed, kills) = (0, rounds(20, 500));
    for round in 1..=kills {
        let mut vmm = home
            .command(&["run", "-v", "data:/data", "./db.smolmachine", "--", "sh", "-c", DATABASE])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(vmm.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut next = |what: &str| lines.find(|line| line.starts_with(what)).unwrap_or_default();
        assert_eq!(next("ok"), "ok", "round {round}: integrity_check");
        let rows = next("rows ");
        let numbers: Vec<u64> = rows.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
        assert!(
            numbers[0] == numbers[1] && numbers[1] >= committed,
            "round {round}: {rows}, said: {committed}"
        );
        let row = |line: &str| line.strip_prefix("row ").and_then(|n| n.parse::<u64>().ok());
        for _ in 0..=round % 7 {
            committed = row(&next("row ")).expect("a committed row");
        }
        std::thread::sleep(instant(round, Duration::from_millis(40)));
        vmm.kill().unwrap();
        vmm.wait().unwrap();
        // What it said before it was killed.
        committed = lines.filter_map(|line| row(&line)).last().unwrap_or(committed);
    }
    let shown = home.ok(&[
        "run",
        "-v",
        "data:/data",
        "./db.smolmachine",
        "--",
        "sqlite3",
        "/data/db",
        "select count(*) from t",
    ]);
    assert!(shown.trim().parse::<u64>().unwrap() >= committed);
    // Shut down well: whole for others, too.
    let info: serde_json::Value = serde_json::from_str(&home.ok(&["volume", "inspect", "data"])).unwrap();
    if let Ok(check) = Command::new("e2fsck").args(["-fn", info["path"].as_str().unwrap()]).output() {
        assert!(check.status.success(), "{}", text(&check.stdout));
    }
    println!("{kills} kills, {committed} rows committed, none lost");
}
