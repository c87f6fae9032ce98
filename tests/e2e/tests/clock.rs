//! A right resume: clocks, random numbers, generation, connections.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::{Home, engines};

fn host_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// How far the guest's wall clock is from the host's at least, in seconds: what is left outside of
/// the time between asking and answer.
fn clock_error(home: &Home, name: &str) -> f64 {
    let before = host_now();
    // busybox's date has no fractions: adjtimex shows the microseconds.
    let script = "adjtimex | sed -n 's/.*time.tv_sec: *//p; s/.*time.tv_usec: *//p'";
    let said = home.ok(&["exec", name, "sh", "-c", script]);
    let after = host_now();
    let parts: Vec<f64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let guest = parts[0] + parts[1] / 1e6;
    (before - guest).max(guest - after).max(0.0)
}

fn uptime(home: &Home, name: &str) -> f64 {
    let said = home.ok(&["exec", name, "cat", "/proc/uptime"]);
    said.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn after_a_freeze_the_wall_clock_is_the_hosts_and_frozen_time_did_not_pass() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "m"]);
        for frozen in ["3 seconds", "30 days"] {
            // Days of freezing, as the guest sees them: its clock says what it said days ago.
            if frozen == "30 days" {
                home.ok(&["exec", "m", "sh", "-c", "date -s @$(($(date +%s) - 30*86400))"]);
                assert!(clock_error(&home, "m") > 29.0 * 86400.0);
            }
            let (begun, at) = (Instant::now(), uptime(&home, "m"));
            home.ok(&["freeze", "m"]);
            let asleep = Instant::now();
            if frozen == "3 seconds" {
                std::thread::sleep(Duration::from_secs(3));
            }
            let slept = asleep.elapsed();
            home.ok(&["start", "m"]);
            let error = clock_error(&home, "m");
            assert!(error <= 0.010, "{engine}, {frozen}: off by {error} s");
            let passed = uptime(&home, "m") - at;
            let awake = (begun.elapsed() - slept).as_secs_f64();
            assert!(
                passed >= 0.0 && passed <= awake + 0.05,
                "{engine}, {frozen}: {passed} s, awake {awake} s"
            );
        }
        let log = home.ok(&["exec", "m", "dmesg"]);
        let bad = ["lockup", "stall", "unstable", "backwards"];
        assert!(!bad.iter().any(|word| log.contains(word)), "{log}");
    }
}

#[test]
fn a_timer_that_was_pending_comes_at_its_time() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let script = "(cut -d' ' -f1 /proc/uptime; sleep 2; cut -d' ' -f1 /proc/uptime) >/tmp/times 2>&1 &";
    home.ok(&["exec", "m", "sh", "-c", script]);
    home.ok(&["freeze", "m"]);
    // Longer than the timer, by the host's clock.
    std::thread::sleep(Duration::from_secs(3));
    home.ok(&["start", "m"]);
    let said = home.ok(&[
        "exec",
        "m",
        "sh",
        "-c",
        "while [ $(wc -l </tmp/times) -lt 2 ]; do sleep 0.02; done; cat /tmp/times",
    ]);
    let times: Vec<f64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    // In hundredths, as it says them: 2.00 may be a little less in binary.
    let passed = ((times[1] - times[0]) * 100.0).round() / 100.0;
    // Two seconds of the machine's own time: the frozen ones are not among them. (More only if the
    // host has no time for it.)
    assert!((2.0..2.9).contains(&passed), "{passed}");
}

#[test]
fn clones_draw_different_random_numbers_from_the_first_call_on() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "m"]);
        // A process that draws all the time: what it draws after the resume must differ between clones.
        let script =
            "i=0; while :; do i=$((i+1)); echo $i $(head -c 16 /dev/urandom | md5sum) >>/tmp/drawn; done";
        home.ok(&["exec", "m", "sh", "-c", &format!("({script}) >/dev/null 2>&1 &")]);
        home.ok(&["exec", "m", "sh", "-c", "while [ ! -s /tmp/drawn ]; do sleep 0.01; done"]);
        home.ok(&["snapshot", "m", "-o", "s.smolmachine"]);
        home.ok(&["rm", "-f", "m"]);
        let drawn = |name: &str| {
            home.ok(&["run", "-d", "--name", name, "./s.smolmachine"]);
            let script = "n=$(wc -l </tmp/drawn); while [ $(wc -l </tmp/drawn) -lt $((n+5)) ]; do sleep 0.01; done; \
                          cat /tmp/drawn";
            let said = home.ok(&["exec", name, "sh", "-c", script]);
            let generation = home.ok(&["exec", name, "cat", "/run/smolvm/generation"]);
            let log = home.ok(&["exec", name, "dmesg"]);
            assert!(log.contains("reseeded due to virtual machine fork"), "{log}");
            (said.lines().map(str::to_owned).collect::<Vec<_>>(), generation)
        };
        let ((one, generation_one), (two, generation_two)) = (drawn("a"), drawn("b"));
        assert_ne!(generation_one, generation_two);
        let same = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
        let differ = one.iter().zip(&two).skip(same).filter(|(a, b)| a == b).count();
        let common = one.len().min(two.len());
        assert!(same < common && differ == 0, "{same} of {common} lines are the same, then {differ} again");
        // What was drawn before the snapshot, and the one call that was under way, are the same.
        let frozen = home.ok(&["run", "./s.smolmachine", "--", "sh", "-c", "wc -l </tmp/drawn"]);
        let frozen: usize = frozen.trim().parse().unwrap();
        assert!(same <= frozen + 1, "{same} the same, {frozen} drawn before");
    }
}

#[test]
fn listeners_answer_and_connections_to_the_outside_end() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    // An address that is not the loopback's stands for the outside: its other end is not restored.
    let script = "ip link add dummy0 type dummy && ip addr add 10.9.9.1/24 dev dummy0 && \
                  ip link set dummy0 up && ip link set lo up && (nc -ll -p 7 -e cat >/dev/null 2>&1 &) && \
                  while ! cat /proc/net/tcp /proc/net/tcp6 | grep -q ':0007 .* 0A '; do sleep 0.02; done; \
                  (sleep 1000 | nc 127.0.0.1 7 >/dev/null 2>&1 &); (sleep 1000 | nc 10.9.9.1 7 >/dev/null 2>&1 &); \
                  while [ $(cat /proc/net/tcp /proc/net/tcp6 | grep -c ':0007 .* 01 ') -lt 2 ]; do sleep 0.02; done";
    home.ok(&["exec", "m", "sh", "-c", script]);
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    let counts = "cat /proc/net/tcp /proc/net/tcp6 | grep -c '0109090A:.* 01 '; cat /proc/net/tcp /proc/net/tcp6 | grep -c '0100007F:.* 01 '; true";
    let said = home.ok(&["exec", "m", "sh", "-c", counts]);
    let counts: Vec<u32> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let (outside, inside) = (counts[0], counts[1]);
    assert_eq!(outside, 0, "connections to the outside are reset: {said}");
    assert!(inside >= 2, "connections inside stay: {said}");
    assert_eq!(home.ok(&["exec", "m", "sh", "-c", "(echo hi; sleep 0.2) | nc 127.0.0.1 7"]), "hi\n");
}
