//! The differential run of the test command: a fixed seed, every form about 150 times.

use oracle::run::{Options, TRANSLATE_ALL, run};
use x86cpu::Engine;

#[test]
fn soft_cpu_agrees_with_the_host() {
    agrees(Engine::Interpreter, 200_000, 4);
}

#[test]
fn translated_code_agrees_with_the_host() {
    agrees(TRANSLATE_ALL, 200_000, 2);
}

fn agrees(engine: Engine, cases: u64, sequences: u64) {
    let options = Options { cases, seed: 0x5eed, only: None, fpu_only: false, sequences, engine, keep: 10 };
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
