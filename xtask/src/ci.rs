//! `cargo xtask ci`: everything that a change must pass, in one command, with a closing summary.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths::Paths;
use crate::run;
use crate::tidy;
use crate::{dist, guest};

/// What `cargo xtask ci` can be told.
#[derive(Args)]
pub struct Options {
    /// The long setting: SMOLVM_LONG=1, ignored tests too, and ten million cases of the oracle (hours)
    #[arg(long)]
    long: bool,
    /// Go on to the later steps after one that failed
    #[arg(long)]
    keep_going: bool,
}

/// How a step ended.
struct Outcome {
    name: &'static str,
    took: Duration,
    result: Result<String>,
}

/// A step: its name and what it does; it returns a remark for the summary.
type Step<'a> = (&'static str, Box<dyn Fn() -> Result<String> + 'a>);

/// Runs the steps in order and prints what came of each; fails if one did.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    // Cheap ones first; the guest before whatever compiles crates/assets, which embeds it.
    let mut steps: Vec<Step> = vec![
        ("format", Box::new(|| cargo(paths, &["fmt", "--all", "--check"]))),
        ("tidy", Box::new(|| tidy::check(paths).map(|()| String::new()))),
        ("guest", Box::new(|| guest::build(paths, &guest::Options::default()).map(|()| String::new()))),
        (
            "clippy",
            Box::new(|| cargo(paths, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ),
        ("tests", Box::new(|| tests(paths, options.long))),
    ];
    if options.long {
        let cases = ["--cases", "10000000"].map(str::to_string);
        steps.push(("dist", Box::new(|| dist(paths))));
        steps.push(("oracle", Box::new(move || oracle(paths, &cases).map(|()| cases[1].clone() + " cases"))));
    }
    let mut outcomes = Vec::new();
    for (name, step) in &steps {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        let failed = result.is_err();
        outcomes.push(Outcome { name, took: start.elapsed(), result });
        if failed && !options.keep_going {
            break;
        }
    }
    summary(&outcomes, steps.len())
}

/// The release archive, used on a clean Debian where this user can make one.
fn dist(paths: &Paths) -> Result<String> {
    let able = rustix::process::geteuid().is_root() && run::find_program("debootstrap").is_some();
    dist::build(paths, &dist::Options { binary: None, check: able })?;
    Ok(if able {
        "works on a clean Debian"
    } else {
        "not tried on a clean Debian: needs root and debootstrap"
    }
    .into())
}

fn summary(outcomes: &[Outcome], steps: usize) -> Result<()> {
    eprintln!("== summary");
    for Outcome { name, took, result } in outcomes {
        let (word, remark) = match result {
            Ok(remark) => ("ok", remark.clone()),
            Err(error) => ("FAILED", format!("{error}").lines().next().unwrap_or_default().to_string()),
        };
        eprintln!("{name:8} {word:6} {:7.1} s  {remark}", took.as_secs_f64());
    }
    if outcomes.len() < steps {
        eprintln!("{} later steps were not run (--keep-going runs them)", steps - outcomes.len());
    }
    let failed: Vec<_> =
        outcomes.iter().filter(|outcome| outcome.result.is_err()).map(|outcome| outcome.name).collect();
    if !failed.is_empty() {
        bail!("ci failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(paths: &Paths, arguments: &[&str]) -> Result<String> {
    run::status(run::cargo(paths).args(arguments))?;
    Ok(String::new())
}

/// The differential harness, as a release build (tests/oracle says what it takes).
pub fn oracle(paths: &Paths, arguments: &[String]) -> Result<()> {
    run::status(run::cargo(paths).args(["run", "--release", "--package", "oracle", "--"]).args(arguments))
}

/// Runs every test and counts them as they are reported.
fn tests(paths: &Paths, long: bool) -> Result<String> {
    let mut command = run::cargo(paths);
    command.args(["test", "--workspace", "--no-fail-fast"]).stdout(Stdio::piped());
    if long {
        command.env("SMOLVM_LONG", "1").args(["--", "--include-ignored"]);
    }
    let mut child = command.spawn().context("cannot start `cargo test`")?;
    let output = child.stdout.take().context("`cargo test` has no output")?;
    let mut count = Count::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read the output of `cargo test`")?;
        count.see(&line);
        println!("{line}");
    }
    let status = child.wait().context("cannot wait for `cargo test`")?;
    let remark = format!("{} passed, {} failed, {} not run", count.passed, count.failed, count.ignored);
    if !status.success() {
        bail!("{remark}");
    }
    Ok(remark)
}

#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Count {
    /// Adds up lines such as `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    fn see(&mut self, line: &str) {
        let Some(counts) = line.trim().strip_prefix("test result: ") else { return };
        let words: Vec<_> = counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
        ] {
            count.see(line);
        }
        assert_eq!((count.passed, count.failed, count.ignored), (5, 1, 1));
    }
}
