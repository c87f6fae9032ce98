//! What machines use, what they give back, and who starts them again.

use e2e::{Home, engines, wait_until};
use serde_json::Value;

fn stats(home: &Home, name: &str) -> Value {
    let said = home.ok(&["stats", "--once", "--interval", "100ms", "--json", name]);
    let rows: Value = serde_json::from_str(&said).expect("JSON");
    rows[0].clone()
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("no {field} in {row}"))
}

#[test]
fn what_a_machine_uses_is_shown_and_what_its_guest_frees_comes_back() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "m", "--net"]);
        let before = stats(&home, "m");
        assert_eq!((number(&before, "vcpus"), number(&before["guest"], "processes")), (1, 0));
        // 128 MiB in a tmpfs, and 8 MiB on the disk.
        let fill = "mkdir -p /mnt/t; mount -t tmpfs -o size=256m t /mnt/t; \
                    dd if=/dev/urandom of=/mnt/t/f bs=1M count=128 2>/dev/null; \
                    dd if=/dev/urandom of=/root/f bs=1M count=8 2>/dev/null; sync";
        home.ok(&["exec", "m", "sh", "-c", fill]);
        let full = stats(&home, "m");
        let grown =
            |field: &str, from: &Value, to: &Value| number(to, field).saturating_sub(number(from, field));
        assert!(grown("own", &before, &full) > 100 << 20, "{before}\n{full}");
        assert!(grown("touched", &before, &full) > 100 << 20 && grown("disk", &before, &full) >= 8 << 20);
        assert!(grown("vcpu_ms", &before, &full) > 0 && number(&full["guest"], "memory_used") > 100 << 20);

        home.ok(&["exec", "m", "sh", "-c", "rm /mnt/t/f; sync; echo 1 >/proc/sys/vm/compact_memory"]);
        wait_until("freed memory comes back", || {
            let now = stats(&home, "m");
            grown("returned", &full, &now) > 100 << 20
                && number(&now, "own") + (100 << 20) < number(&full, "own")
        });
        // What came back is as good as new, also over a snapshot and a freeze.
        home.ok(&[
            "exec",
            "m",
            "sh",
            "-c",
            "head -c 1000000 /dev/zero >/mnt/t/z; sha256sum /root/f >/root/sum",
        ]);
        home.ok(&["snapshot", "m", "-o", "m.smolmachine"]);
        assert!(std::fs::metadata(home.path("m.smolmachine")).unwrap().len() < 120 << 20);
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        home.ok(&[
            "exec",
            "m",
            "sh",
            "-c",
            "cd /; sha256sum -c /root/sum && cmp -n 1000000 /mnt/t/z /dev/zero",
        ]);
        // A resumed machine gives back what lies in a file, too.
        home.ok(&["exec", "m", "sh", "-c", fill]);
        let resumed = stats(&home, "m");
        home.ok(&["exec", "m", "rm", "/mnt/t/f"]);
        wait_until("a resumed machine gives back", || {
            grown("returned", &resumed, &stats(&home, "m")) > 100 << 20
        });
        assert!(home.ok(&["stats", "--once", "--interval", "10ms"]).contains("m "));
        home.fails(&["stats", "--once", "nobody"], 125);
    }
}

#[test]
fn a_guest_gives_memory_up_when_it_is_asked_to_and_takes_it_back() {
    for engine in engines() {
        let home = Home::new(engine);
        std::fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"256MiB\"\n").unwrap();
        home.ok(&["build", "-q"]);
        home.ok(&["run", "-d", "--name", "m", "./x.smolmachine", "--", "sleep", "100000"]);
        // Memory that the guest has touched and freed, but for a file that stays.
        let fill = "mkdir -p /mnt/t; mount -t tmpfs -o size=200m t /mnt/t; head -c 30000000 /dev/urandom >/mnt/t/kept; \
                    sha256sum /mnt/t/kept >/root/sum; cp /mnt/t/kept /root/cached; sync";
        home.ok(&["exec", "m", "sh", "-c", fill]);
        let before = stats(&home, "m");
        assert_eq!(number(&before, "ballooned"), 0);
        let report: Value = serde_json::from_str(&home.ok(&["balloon", "--json", "m", "128MiB"])).unwrap();
        assert_eq!((report["kept"].as_u64(), report["memory"].as_u64()), (Some(128 << 20), Some(256 << 20)));
        let less = stats(&home, "m");
        assert_eq!(number(&less, "ballooned"), 128 << 20);
        assert!(number(&less, "returned") >= number(&before, "returned"));
        assert!(
            number(&less["guest"], "memory_used") < 100 << 20,
            "what it gave up is not what it uses: {less}"
        );
        assert!(home.ok(&["stats", "--once", "--interval", "10ms"]).contains("128.0 MiB of 256.0 MiB"));
        // More than it can give: it says so, gives what it can, and lives.
        let said = home.run(&["balloon", "m", "32MiB"]);
        assert!(
            e2e::text(&said.stderr).contains("the guest needs that much now"),
            "{}",
            e2e::text(&said.stderr)
        );
        // Its copy of the file was page cache.
        let least = stats(&home, "m");
        assert!(number(&least, "own") + (10 << 20) < number(&before, "own"), "{before}\n{least}");
        home.ok(&["exec", "m", "sh", "-c", "cd /; sha256sum -c /root/sum"]);
        home.ok(&["balloon", "-q", "m", "128MiB"]);
        // It goes with the machine, and back.
        home.ok(&["snapshot", "-q", "m", "-o", "s.smolmachine"]);
        home.ok(&["rm", "-f", "m"]);
        home.ok(&["run", "-d", "--name", "m", "./s.smolmachine"]);
        assert_eq!(number(&stats(&home, "m"), "ballooned"), 128 << 20);
        let report: Value = serde_json::from_str(&home.ok(&["balloon", "--json", "m", "all"])).unwrap();
        assert_eq!(report["kept"].as_u64(), Some(256 << 20));
        let all = "head -c 120000000 /dev/urandom >/mnt/t/more && cd / && sha256sum -c /root/sum";
        home.ok(&["exec", "m", "sh", "-c", all]);
        for wrong in ["1GiB", "1MiB", "128", "some"] {
            let said = home.fails(&["balloon", "m", wrong], 125);
            assert!(said.contains("MiB"), "{said}");
        }
        home.fails(&["balloon", "nobody", "64MiB"], 125);
    }
}

#[test]
fn what_an_engine_does_is_shown() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "m"]);
        let look = || -> Value {
            let said = home.ok(&["stats", "--engine", "--once", "--interval", "100ms", "--json", "m"]);
            serde_json::from_str::<Value>(&said).expect("JSON")[0].clone()
        };
        let before = look();
        assert_eq!((before["engine"].as_str(), before["name"].as_str()), (Some(engine), Some("m")));
        let work = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done";
        home.ok(&["exec", "m", "sh", "-c", work]);
        let after = look();
        let grown = |name: &str| number(&after["vcpus"][0], name) - number(&before["vcpus"][0], name);
        assert!(grown("exits") > 0, "{before}\n{after}");
        if engine == "soft" {
            let all = grown("instructions");
            assert!(all > 1_000_000 && grown("translated_instructions") > all / 2, "{before}\n{after}");
            assert_eq!(all, grown("translated_instructions") + grown("interpreted_instructions"));
            assert!(grown("translations") > 0 && grown("page_walks") > 0 && grown("cr3_loads") > 0);
        }
        let table = home.ok(&["stats", "--engine", "--once", "--interval", "10ms"]);
        assert!(table.starts_with(&format!("m: engine {engine}, 1 vCPU")), "{table}");
        assert!(table.contains("A SECOND") && table.contains("\nexits "), "{table}");
        home.ok(&["rm", "-f", "m"]);
    }
}

#[test]
fn a_run_is_measured_and_its_size_proposed() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&["snapshot", "m", "-o", "m.smolmachine"]);
    home.ok(&["rm", "-f", "m"]);
    let line = "mkdir -p /mnt/t; mount -t tmpfs t /mnt/t; dd if=/dev/zero of=/mnt/t/f bs=1M count=64 2>/dev/null; i=0; \
                while [ $i -lt 60000 ]; do i=$((i+1)); done; echo done; exit 3";
    let output = home.run(&["rightsize", "--json", "./m.smolmachine", "--", "sh", "-c", line]);
    assert_eq!(output.status.code(), Some(3), "{}", e2e::text(&output.stderr));
    assert_eq!(e2e::text(&output.stderr), "done\n");
    let report: Value = serde_json::from_str(&e2e::text(&output.stdout)).expect("JSON");
    assert_eq!(report["proposal"]["cpus"], 1);
    assert!(number(&report["measured"], "memory_peak") > 64 << 20, "{report}");
    let proposed = number(&report["proposal"], "memory");
    assert!((128 << 20..512 << 20).contains(&proposed), "{report}");
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn a_command_that_fails_is_started_again() {
    let home = Home::new("soft");
    let count = "echo x >>/root/starts; test $(wc -l </root/starts) -ge 3 || exit 5; sleep 1000";
    home.ok(&["run", "-d", "--name", "m", "--restart", "on-failure:5", "--", "sh", "-c", count]);
    wait_until("the third start", || home.run(&["exec", "m", "cat", "/root/starts"]).stdout == b"x\nx\nx\n");
    wait_until("the record says so", || home.ok(&["inspect", "m", "--json"]).contains("\"restarts\": 2"));
    // Ended by name, it stays so.
    home.ok(&["stop", "-t", "1s", "m"]);
    assert!(home.ok(&["ps", "-a"]).contains("stopped"));

    home.ok(&["run", "-d", "--name", "n", "--restart", "on-failure:1", "--", "sh", "-c", "exit 5"]);
    assert_eq!(home.run(&["wait", "n"]).stdout, b"5\n");
    assert!(home.ok(&["inspect", "n", "--json"]).contains("\"restarts\": 1"));
    home.fails(&["run", "--restart", "always", "--", "true"], 125);
    home.fails(&["run", "-d", "--restart", "sometimes", "--", "true"], 125);
}

#[test]
fn a_machine_that_dies_is_started_again() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m", "--restart", "always", "--", "sleep", "1000"]);
    home.ok(&["exec", "m", "touch", "/root/here"]);
    // A guest that resets, as one that panics does, takes its machine with it.
    home.run(&["exec", "m", "reboot", "-f"]);
    wait_until("it is there again", || {
        home.run(&["exec", "m", "test", "!", "-e", "/root/here"]).status.success()
    });
    assert!(home.ok(&["inspect", "m", "--json"]).contains("\"restarts\": 1"));
    home.ok(&["rm", "-f", "m"]);
}

#[test]
fn a_program_that_was_replaced_meanwhile_starts_its_machine_again() {
    let home = Home::new("soft");
    home.ok(&["run", "--", "true"]);
    let own = home.path("smolvm-of-yesterday");
    std::fs::copy(e2e::program(), &own).unwrap();
    let asked = home.command(&["run", "-d", "--name", "m", "--restart", "always", "--", "sleep", "1000"]);
    let mut command = std::process::Command::new(&own);
    command.args(asked.get_args()).envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(command.output().unwrap().status.success());
    home.ok(&["exec", "m", "touch", "/root/here"]);
    std::fs::remove_file(&own).unwrap();
    home.run(&["exec", "m", "reboot", "-f"]);
    wait_until("it is there again", || {
        home.run(&["exec", "m", "test", "!", "-e", "/root/here"]).status.success()
    });
    home.ok(&["rm", "-f", "m"]);
}

#[test]
fn health_is_looked_after() {
    let home = Home::new("soft");
    let flags = ["--health-cmd", "test -e /root/well", "--health-interval", "200ms", "--health-retries", "2"];
    home.ok(&[&["run", "-d", "--name", "m"], &flags[..], &["--", "sleep", "1000"]].concat());
    wait_until("unhealthy", || home.ok(&["ps"]).contains("running (unhealthy)"));
    home.ok(&["exec", "m", "touch", "/root/well"]);
    wait_until("healthy", || home.ok(&["ps"]).contains("running (healthy)"));
    // One that is not well is killed, and its policy starts it again.
    let kills = [&["--restart", "always", "--health-on-failure", "kill"], &flags[..]].concat();
    let work = "touch /root/well; exec sleep 1000";
    home.ok(&[&["run", "-d", "--name", "n"], &kills[..], &["--", "sh", "-c", work]].concat());
    wait_until("healthy", || home.ok(&["ps"]).matches("running (healthy)").count() == 2);
    home.ok(&["exec", "n", "rm", "/root/well"]);
    wait_until("it was started again", || home.ok(&["inspect", "n", "--json"]).contains("\"restarts\": 1"));
    wait_until("healthy", || home.ok(&["ps"]).matches("running (healthy)").count() == 2);
    home.fails(&["run", "--health-cmd", "true", "--", "true"], 125);
}
