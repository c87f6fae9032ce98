//! Copies of one machine draw different random numbers.
//!
//! The guest's part is `guest/draw.py`, and `guest/draw.js` for Node; docs/scenarios/randomness.md says what a service has to do.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use e2e::{Home, engines, rounds, text};

use crate::common::{begin, node, python, sh};

/// Copies that run at once.
const AT_ONCE: u64 = 30;

/// Who draws.
const PYTHON: &str = "python3.11 /srv/draw.py";
const NODE: &str = "node /srv/draw.js";

/// A machine `m` of a file in which `draw` draws in each of these modes.
fn drawing(home: &Home, file: &Path, draw: &str, modes: &[&str], hooks: &[&str]) {
    let file = file.to_str().unwrap();
    let hooks = hooks.iter().flat_map(|hook| ["--hooks", hook]);
    let args: Vec<&str> = ["run", "-d", "--name", "m"].into_iter().chain(hooks).chain([file]).collect();
    home.ok(&args);
    sh(home, "m", ": >/etc/machine-id");
    for mode in modes {
        begin(home, "m", &format!("exec {draw} {mode}"));
        sh(home, "m", &format!("until [ -e /tmp/{mode}.ready ]; do sleep 0.05; done"));
    }
}

/// What a copy drew, by source.
fn drawn(home: &Home, name: &str, modes: &[&str]) -> Vec<(String, String)> {
    let wait =
        |mode: &&str| format!("until [ -e /tmp/{mode}.drawn ]; do sleep 0.05; done; cat /tmp/{mode}.drawn");
    let script: Vec<String> = modes.iter().map(wait).collect();
    let said = sh(home, name, &script.join("; "));
    let lines = said.lines().map(|line| line.split_once(' ').expect("SOURCE VALUE"));
    lines.map(|(source, value)| (source.to_owned(), value.to_owned())).collect()
}

/// Values of each source, and how often each came.
#[derive(Default)]
struct Tally(BTreeMap<String, HashMap<String, u64>>);

impl Tally {
    fn add(&mut self, (source, value): (String, String)) {
        *self.0.entry(source).or_default().entry(value).or_default() += 1;
    }

    /// Pairs of equal values.
    fn equal(&self, source: &str) -> u64 {
        let counts = self.0.get(source).unwrap_or_else(|| panic!("nothing was drawn from {source}")).values();
        counts.map(|n| n * (n - 1) / 2).sum()
    }

    fn values(&self, source: &str) -> u64 {
        self.0[source].values().sum()
    }
}

#[test]
fn what_copies_draw_from_the_kernel_is_never_equal() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        drawing(&home, file, PYTHON, &["kernel"], &[]);
        let (all, mut tally) = (rounds(AT_ONCE, 1000), Tally::default());
        for first in (0..all).step_by(AT_ONCE as usize) {
            let count = AT_ONCE.min(all - first);
            home.ok(&["fork", "-q", "m", "--count", &count.to_string(), "--name", "c"]);
            for number in 1..=count {
                // Of one copy the name is without a number.
                let name = if count == 1 { "c".to_owned() } else { format!("c-{number}") };
                drawn(&home, &name, &["kernel"]).into_iter().for_each(|pair| tally.add(pair));
                let own =
                    "cat /etc/machine-id /sys/class/net/eth0/address; hostname; cat /run/smolvm/generation";
                let said = sh(&home, &name, own);
                let names = ["machine-id", "hardware-address", "host-name", "generation"];
                assert_eq!(said.lines().count(), names.len(), "{said}");
                for (source, value) in names.into_iter().zip(said.lines()) {
                    // The next copies have these host names again.
                    let value =
                        if source == "host-name" { format!("{first} {value}") } else { value.to_owned() };
                    tally.add((source.to_owned(), value));
                }
                home.ok(&["rm", "-f", &name]);
            }
        }
        let exact = [
            "getrandom",
            "urandom",
            "uuid4",
            "secrets",
            "kernel-uuid",
            "vdso",
            "tcp-sequence",
            "machine-id",
            "hardware-address",
            "host-name",
            "generation",
        ];
        for source in exact {
            assert_eq!(tally.equal(source), 0, "{engine}: {source}");
            assert!(tally.values(source) >= all, "{engine}: {source}");
        }
        // There are 28,232 ports, and connect(2) tries the half of one parity first: chance makes n(n-1)/2 / 14,116
        // pairs equal, seldom twice as many.
        let chance = all * (all - 1) / 2 / 14_116;
        assert!(tally.equal("tcp-port") <= 2 * chance + 3, "{engine}: {} ports", tally.equal("tcp-port"));
    }
}

#[test]
fn machines_of_one_file_draw_different_numbers_from_the_kernel() {
    for engine in engines() {
        let home = Home::new(engine);
        let Some(file) = python() else { return };
        drawing(&home, file, PYTHON, &["kernel"], &[]);
        home.ok(&["snapshot", "-q", "m", "-o", "s.smolmachine"]);
        home.ok(&["rm", "-f", "m"]);
        let (all, mut tally) = (rounds(4, 100), Tally::default());
        for number in 0..all {
            let name = format!("c{number}");
            home.ok(&["run", "-d", "--name", &name, "--hostname", &name, "./s.smolmachine"]);
            drawn(&home, &name, &["kernel"]).into_iter().for_each(|pair| tally.add(pair));
            let said = sh(&home, &name, "cat /etc/machine-id /sys/class/net/eth0/address; hostname");
            said.lines().for_each(|value| tally.add(("names".to_owned(), value.to_owned())));
            home.ok(&["rm", "-f", &name]);
        }
        for source in
            ["getrandom", "urandom", "uuid4", "secrets", "kernel-uuid", "vdso", "tcp-sequence", "names"]
        {
            assert_eq!(tally.equal(source), 0, "{engine}: {source}");
        }
        let chance = all * (all - 1) / 2 / 14_116;
        assert!(tally.equal("tcp-port") <= 2 * chance + 3, "{engine}: {} ports", tally.equal("tcp-port"));
    }
}

/// Copies of a machine with generators that were seeded before: nobody has the same numbers who uses the hook or the
/// generation file, and without them all have.
fn seeded(engine: &'static str, file: &Path, draw: &str, hook: &str, sources: &[&str], all: u64) {
    let home = Home::new(engine);
    let modes = ["none", "file", "hook"];
    drawing(&home, file, draw, &modes, &[&format!("after_restore={hook}")]);
    let mut tallies: Vec<Tally> = modes.iter().map(|_| Tally::default()).collect();
    for first in (0..all).step_by(AT_ONCE as usize) {
        let count = AT_ONCE.min(all - first).max(2);
        let forked = home.run(&["fork", "m", "--count", &count.to_string(), "--name", "c"]);
        // A hook that fails is told, and the copy goes on.
        let said = text(&forked.stderr);
        assert!(forked.status.success() && !said.contains("hook"), "{said}");
        for number in 1..=count {
            let name = format!("c-{number}");
            for (mode, tally) in modes.iter().zip(&mut tallies) {
                drawn(&home, &name, &[mode]).into_iter().for_each(|pair| tally.add(pair));
            }
            home.ok(&["rm", "-f", &name]);
        }
    }
    for source in sources {
        assert!(
            tallies[0].equal(source) > 0,
            "{engine}: {source} differs by itself: this test tests nothing"
        );
        assert_eq!(tallies[1].equal(source), 0, "{engine}: {source} with the generation file");
        assert_eq!(tallies[2].equal(source), 0, "{engine}: {source} with the hook");
        assert!(tallies.iter().all(|tally| tally.values(source) >= all), "{engine}: {source}");
    }
}

#[test]
fn generators_in_a_process_differ_where_the_hook_or_the_generation_file_is_used_and_only_there() {
    for engine in engines() {
        let Some(file) = python() else { return };
        let hook = "kill -USR1 $(cat /tmp/hook.ready)";
        seeded(engine, file, PYTHON, hook, &["python-random", "openssl"], rounds(AT_ONCE, 1000));
    }
}

#[test]
fn a_node_worker_that_is_started_anew_draws_other_numbers() {
    if rounds(0, 1) == 0 {
        eprintln!("skipped: downloads, minutes; the long setting (cargo xtask ci --long) runs it");
        return;
    }
    for engine in engines() {
        // It is dead before anything goes on; the process that started it starts another one.
        let hook = "kill -KILL $(cat /tmp/hook.ready)";
        seeded(engine, node(), NODE, hook, &["node-bytes", "node-uuid", "node-values"], 1000);
    }
}
