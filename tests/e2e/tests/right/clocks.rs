//! Time after a freeze: the wall clock is the world's, the machine's own time did not run, what was due is done, and the
//! kernel noticed nothing.
//!
//! A freeze of 30 days is a guest whose wall clock was set back by as much before it was frozen: what it finds when it
//! goes on is the same. Another host's TSC is a machine that was booted with one (`--tsc-khz`).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use e2e::{Home, engines, rounds};

use crate::common::{assert_calm, kernel_log, number, python, sh};

const AGES: [u64; 6] = [1, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400];
/// The built-in machine's own, and those of hosts: below and above a tick a nanosecond, and an odd one.
const RATES_KHZ: [Option<&str>; 4] = [None, Some("800000"), Some("3417001"), Some("5000000")];

fn host_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The guest's wall clock and its time since boot, in seconds.
const TIMES: &str =
    "adjtimex | sed -n 's/.*time.tv_sec: *//p; s/.*time.tv_usec: *//p'; cut -d' ' -f1 /proc/uptime";

struct Times {
    wall: f64,
    up: f64,
}

fn times(said: &str) -> Times {
    let words: Vec<f64> = said.split_whitespace().map(number).collect();
    Times { wall: words[0] + words[1] / 1e6, up: words[2] }
}

/// One freeze of `age` seconds: how the clocks did over it.
fn freeze_for(home: &Home, age: u64, what: &str) {
    let back = format!("date -s @$(($(date +%s) - {age})) >/dev/null; {TIMES}");
    let before = times(&sh(home, "m", &back));
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    let asked = (host_now(), Instant::now());
    let said = sh(home, "m", TIMES);
    let answered = host_now();
    let after = times(&said);
    let error = (asked.0 - after.wall).max(after.wall - answered);
    assert!(error <= 0.010, "{what}: the wall clock is off by {error} s");
    assert!(after.up >= before.up, "{what}: {} s after {} s since boot", after.up, before.up);
    // Time goes at the world's rate: what passed in the guest between two answers lies between what passed on the
    // host from the first answer to the second question, and from the first question to the second answer.
    let returned = Instant::now();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let inner = returned.elapsed().as_secs_f64();
    let later = times(&sh(home, "m", TIMES));
    let outer = asked.1.elapsed().as_secs_f64();
    // /proc/uptime has hundredths.
    for passed in [later.up - after.up, later.wall - after.wall] {
        assert!(
            inner <= passed + 0.011 && passed <= outer + 0.011,
            "{what}: {inner} s, {passed} s, {outer} s"
        );
    }
}

#[test]
fn freezes_of_any_age_and_hosts_of_any_rate() {
    for engine in engines() {
        let all = rounds(32, 1000);
        let each = all.div_ceil(RATES_KHZ.len() as u64);
        // KVM can keep its host's rate only, or scales.
        for rate in RATES_KHZ.iter().filter(|rate| engine == "soft" || rate.is_none()) {
            let home = Home::new(engine);
            let rate_words: Vec<&str> = rate.iter().flat_map(|khz| ["--cold", "--tsc-khz", *khz]).collect();
            home.ok(&[&["run", "-d", "--name", "m"], &rate_words[..], &["--", "sleep", "100000"]].concat());
            let known = kernel_log(&home, "m").len();
            for round in 0..each {
                let age = AGES[round as usize % AGES.len()];
                freeze_for(&home, age, &format!("{engine}, {rate:?} kHz, frozen for {age} s, round {round}"));
            }
            assert_calm(&kernel_log(&home, "m"), known, &format!("{engine}, {rate:?} kHz"));
            // From its file, too, which says the rate.
            home.ok(&["snapshot", "-q", "m", "-o", "m.smolmachine"]);
            home.ok(&["rm", "-f", "m"]);
            home.ok(&["run", "-d", "--name", "m", "./m.smolmachine"]);
            freeze_for(&home, 3600, &format!("{engine}, {rate:?} kHz, from a file"));
            assert_calm(&kernel_log(&home, "m"), known, &format!("{engine}, {rate:?} kHz, from a file"));
        }
    }
}

/// Timers of each kind around a freeze of a month (`guest/timers.py`).
#[test]
fn what_was_due_meanwhile_is_done_at_once_and_what_counts_own_time_waits() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        home.ok(&["run", "-d", "--name", "m", file.to_str().unwrap()]);
        let age = 30 * 86_400;
        sh(&home, "m", &format!("date -s @$(($(date +%s) - {age}))"));
        crate::common::begin(&home, "m", "exec python3.11 /srv/timers.py");
        sh(&home, "m", "until [ -e /tmp/timers.ready ]; do sleep 0.05; done");
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        let said = sh(&home, "m", "until [ -e /tmp/timers.done ]; do sleep 0.05; done; cat /tmp/timers.done");
        let value = |name: &str| {
            let line = said
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_else(|| panic!("{name}: {said}"));
            line.trim().to_owned()
        };
        // Due by the wall clock in an hour, a day, a month less an hour: all of it passed.
        for name in ["hour", "day", "almost-a-month"] {
            assert_eq!(value(name), "fired", "{engine}: {said}");
        }
        assert_eq!(value("in-two-months"), "pending", "{engine}: {said}");
        // Who waits by the wall clock and asked to hear of a change heard of it (timerfd_create(2)).
        assert_eq!(value("told-of-change"), "ECANCELED", "{engine}: {said}");
        // Three seconds of the machine's own time, however long it was frozen.
        let own = number(&value("own-three-seconds"));
        assert!((3.0..86_400.0).contains(&own), "{engine}: {said}");
        // A periodic timer of the machine's own time: none of its ticks was lost, none came twice.
        assert_eq!(value("ticks"), "all", "{engine}: {said}");
    }
}

#[test]
fn certificates_are_judged_by_the_time_of_the_world() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        home.ok(&["run", "-d", "--name", "m", file.to_str().unwrap()]);
        let make = |name: &str| {
            let line = format!(
                "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 2 \
                 -keyout {name}.key -out {name}.pem 2>&1"
            );
            sh(&home, "m", &line);
        };
        // The pipe's status does not matter: what it says does.
        let verify = |name: &str| {
            sh(&home, "m", &format!("openssl verify -CAfile /tmp/{name}.pem /tmp/{name}.pem 2>&1; true"))
        };
        make("new");
        sh(&home, "m", "date -s @$(($(date +%s) - 30*86400))");
        make("old");
        assert!(verify("new").contains("not yet valid"), "{}", verify("new"));
        assert!(verify("old").contains("OK"), "{}", verify("old"));
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        assert!(verify("new").contains("OK"), "{engine}: {}", verify("new"));
        assert!(verify("old").contains("expired"), "{engine}: {}", verify("old"));
    }
}

/// busybox's crond: after it was frozen for a month it goes on by the minutes of the world. Takes two of them.
#[test]
fn crond_goes_on_by_the_worlds_minutes() {
    if rounds(0, 1) == 0 {
        eprintln!("skipped: minutes; the long setting (cargo xtask ci --long) runs it");
        return;
    }
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "m"]);
        let job = "mkdir /tmp/tabs; echo '* * * * * date +%s >>/tmp/jobs' >/tmp/tabs/root; \
                   date -s @$(($(date +%s) - 30*86400)); crond -c /tmp/tabs -L /tmp/crond.log";
        sh(&home, "m", job);
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        let jobs = sh(
            &home,
            "m",
            "until [ $(wc -l </tmp/jobs 2>/dev/null || echo 0) -ge 2 ]; do sleep 1; done; cat /tmp/jobs",
        );
        let at: Vec<f64> = jobs.lines().map(number).collect();
        assert!(at.iter().all(|at| (at - host_now()).abs() < 600.0), "{engine}: {jobs}");
        assert!((at[1] - at[0] - 60.0).abs() <= 2.0, "{engine}: {jobs}");
    }
}
