//! `cargo run --release -p oracle -- [--cases N] [--seed N] [--only MNEMONIC] [--keep N] [--fpu] [--jit] [--sequences N]`

use oracle::run::{Options, TRANSLATE_ALL, run};
use x86cpu::Engine;

fn main() -> std::process::ExitCode {
    let mut options = Options {
        cases: 1_000_000,
        seed: 1,
        only: None,
        fpu_only: false,
        sequences: 4,
        engine: Engine::Interpreter,
        keep: 20,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--fpu" {
            options.fpu_only = true;
            options.sequences = 0;
            continue;
        }
        if arg == "--jit" {
            options.engine = TRANSLATE_ALL;
            continue;
        }
        let value = args.next().unwrap_or_default();
        let number = value.parse();
        match (arg.as_str(), number) {
            ("--cases", Ok(n)) => options.cases = n,
            ("--seed", Ok(n)) => options.seed = n,
            ("--sequences", Ok(n)) => options.sequences = n,
            ("--keep", Ok(n)) => options.keep = n as usize,
            ("--only", _) if !value.is_empty() => options.only = Some(value.to_lowercase()),
            _ => {
                eprintln!(
                    "usage: oracle [--cases N] [--seed N] [--only MNEMONIC] [--keep N] [--fpu] [--jit] [--sequences N]"
                );
                return 2.into();
            }
        }
    }
    match run(&options) {
        Ok(report) => print(&report),
        Err(why) => {
            println!("skipped: {why}");
            0.into()
        }
    }
}

fn print(report: &oracle::run::Report) -> std::process::ExitCode {
    for text in &report.differing {
        println!("{text}");
    }
    for (name, c) in &report.counts {
        println!(
            "{name:16} cases {:8} faults {:7} differ {:7} unknown {:7}",
            c.cases, c.faults, c.differ, c.unknown
        );
    }
    for feature in &report.lacking {
        println!("skipped: the host lacks {feature}");
    }
    let (cases, differ, unknown) =
        (report.total(|c| c.cases), report.total(|c| c.differ), report.total(|c| c.unknown));
    println!("{cases} cases, {differ} differ, {unknown} unknown to x86cpu");
    if differ == 0 { 0.into() } else { 1.into() }
}
