//! Four processors that execute at once: what they compute is right, also over a freeze.

use std::fs;

use e2e::Home;

/// Four workers, each with pipes between processes, checks the same sums again and again; a wrong one is noted.
const WORKERS: &str = "for w in 1 2 3 4; do ( n=0; while [ ! -e /tmp/stop ]; do \
    s=$(seq 4000 | sort -r | sort -n | sha256sum | cut -c1-16); [ \"$s\" = \"$1\" ] || echo $w $s >>/tmp/wrong; \
    a=$(awk 'BEGIN { for (i = 0; i < 20000; i++) s = (s * 31 + i) % 1000003; print s }'); \
    [ \"$a\" = \"$2\" ] || echo $w $a >>/tmp/wrong; n=$((n+1)); echo $n >/tmp/n$w; done; echo $w >>/tmp/ended ) & done";

fn progress(home: &Home, rounds: u32) {
    let wait = format!(
        "for w in 1 2 3 4; do f=$(cat /tmp/n$w 2>/dev/null || echo 0); \
         until [ \"$(cat /tmp/n$w 2>/dev/null || echo 0)\" -ge $((f+{rounds})) ] || [ -e /tmp/wrong ]; \
         do sleep 0.05; done; done; [ ! -e /tmp/wrong ] || {{ cat /tmp/wrong; exit 1; }}"
    );
    home.ok(&["exec", "m", "sh", "-c", &wait]);
}

#[test]
fn four_processors_compute_what_one_does_also_over_a_freeze() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"192MiB\"\ncpus = 4\n").unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    assert_eq!(home.ok(&["exec", "m", "nproc"]), "4\n");
    let alone = |command: &str| home.ok(&["exec", "m", "sh", "-c", command]).trim().to_owned();
    let sum = alone("seq 4000 | sha256sum | cut -c1-16");
    let number = alone("awk 'BEGIN { for (i = 0; i < 20000; i++) s = (s * 31 + i) % 1000003; print s }'");
    fs::write(home.path("workers"), WORKERS).unwrap();
    home.ok(&["cp", "workers", "m:/root/workers"]);
    let start = format!("sh /root/workers {sum} {number} >/dev/null 2>&1 &");
    home.ok(&["exec", "m", "sh", "-c", &start]);
    for _ in 0..3 {
        progress(&home, 2);
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
    }
    progress(&home, 2);
    let end =
        "touch /tmp/stop; until [ \"$(wc -l </tmp/ended)\" = 4 ]; do sleep 0.05; done; [ ! -e /tmp/wrong ]";
    home.ok(&["exec", "m", "sh", "-c", end]);
}
