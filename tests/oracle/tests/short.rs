//! The differential run of the test command: a fixed seed, every form about 150 times.

use oracle::run::{Options, run};

#[test]
fn soft_cpu_agrees_with_the_host() {
    let options =
        Options { cases: 300_000, seed: 0x5eed, only: None, fpu_only: false, sequences: 4, keep: 10 };
    let report = match run(&options) {
        Ok(report) => report,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    for feature in &report.lacking {
        eprintln!("SKIPPED: forms of {feature}, which the host lacks");
    }
    let differ = report.total(|c| c.differ);
    assert_eq!(differ, 0, "{differ} cases differ from the host; the first:\n{}", report.differing.join("\n"));
}
