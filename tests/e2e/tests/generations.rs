//! Incremental snapshots of machines that were resumed from incremental snapshots, many times.

use e2e::{Home, rounds};
use serde_json::Value;

/// Changes the same things each time: a counter on the disk, a random file in memory.
const CHANGE: &str = "n=$(cat /n 2>/dev/null || echo 0); echo $((n + 1)) >/n; \
                      head -c 65536 /dev/urandom >/dev/shm/x; sha256sum </dev/shm/x >/dev/shm/sum";

#[test]
fn the_last_of_many_generations_is_as_light_as_an_early_one() {
    let home = Home::new("soft");
    std::fs::write(home.path("Smolfile"), "name = \"m\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    let count = rounds(12, 2000);
    let (mut before, mut early) = ("m.smolmachine".to_owned(), 0);
    let mut last = 0;
    for generation in 1..=count {
        let file = format!("g{}.smolmachine", generation % 2);
        home.ok(&["run", "-d", "-q", "--name", "m", &before]);
        home.ok(&["exec", "m", "sh", "-c", CHANGE]);
        let report = home.ok(&["snapshot", "m", "--incremental", "-o", &file, "--json"]);
        let report: Value = serde_json::from_str(&report).unwrap();
        let bytes = report["file_bytes"].as_u64().unwrap();
        // What each resume changes anew is all there by then.
        if generation == 5 {
            early = bytes;
        }
        if generation % 50 == 0 {
            home.ok(&["prune", "-q"]);
        }
        home.ok(&["rm", "-f", "m"]);
        (before, last) = (file, bytes);
    }
    let said =
        home.ok(&["run", &before, "--", "sh", "-c", "cat /n; sha256sum </dev/shm/x | cmp - /dev/shm/sum"]);
    assert_eq!(said.trim(), count.to_string());
    assert!(last <= 2 * early, "generation {count} has {last} bytes, the fifth had {early}");
    // It needs the file that the first one was made of, and no other.
    let parent: Value = serde_json::from_str(&home.ok(&["inspect", "--json", "m.smolmachine"])).unwrap();
    let this: Value = serde_json::from_str(&home.ok(&["inspect", "--json", &before])).unwrap();
    assert_eq!(this["parent"], parent["id"]);
    assert!(this["parent"].is_string());
}
