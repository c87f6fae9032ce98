//! What came of each service, kept from run to run (they are many, and run one by one), as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::document::Part;
use crate::host;

const PART: Part = Part {
    begin: "<!-- services: written by `cargo run --release -p engine -- services --write` -->",
    end: "<!-- services: end -->",
};

/// Seconds of one load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub wall: f64,
    /// CPU time of all processes that took part: of the machine's one, or of those of the chroot.
    pub cpu: f64,
}

/// One service that works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When, and what else this host did: the load average of the minute before.
    pub date: String,
    pub load: String,
    /// The mean of some warm loads in a chroot.
    pub native: Option<Times>,
    /// The middle one of some warm loads.
    pub before: Times,
    /// The first load after the resume.
    pub after: Times,
    /// Loads in the first second of CPU time after the resume, as a share of what a warm machine does in that time.
    pub first_second: f64,
}

impl Row {
    /// As it is printed, and written into the document.
    fn line(&self, name: &str) -> String {
        let native = self.native.map_or("- | -".into(), |t| format!("{:.2} s | {:.2} s", t.wall, t.cpu));
        let ratio = self.native.map_or("-".into(), |t| format!("{:.1}", self.before.cpu / t.cpu));
        let (before, after) = (self.before, self.after);
        format!(
            "| {name} | {native} | {:.2} s | {:.2} s | {ratio} | {:.2} s | {:.2} s | {:.0}% | {} ({}) |",
            before.wall,
            before.cpu,
            after.wall,
            after.cpu,
            100.0 * self.first_second,
            self.date,
            self.load,
        )
    }
}

/// All that were ever measured with one work directory.
pub struct Table {
    path: PathBuf,
    rows: BTreeMap<String, Row>,
}

impl Table {
    /// Reads what earlier runs kept.
    ///
    /// # Errors
    /// What is kept there is not this program's.
    pub fn open(work: &Path) -> Result<Self> {
        let path = work.join("services.json");
        let rows = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not readable; remove it", path.display()))?,
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { path, rows })
    }

    /// Prints a service's row and keeps it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, name: &str, row: Row) -> Result<()> {
        println!("{}", row.line(name));
        self.rows.insert(name.to_owned(), row);
        self.keep()
    }

    /// A service that does not work any more has no figures.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn failed(&mut self, name: &str) -> Result<()> {
        println!("| {name} | **does not work** | | | | | | | | |");
        self.rows.remove(name);
        self.keep()
    }

    fn keep(&self) -> Result<()> {
        fs::write(&self.path, serde_json::to_vec_pretty(&self.rows)?)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// The head of the table.
    pub fn head() -> &'static str {
        "| service | native | CPU | soft | CPU | × native | first after resume | CPU | first second | date (load) |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    }

    /// Puts the table into docs/performance.md. `all` are the services there are.
    ///
    /// # Errors
    /// The document cannot be read or written.
    pub fn write(&self, path: &Path, all: &[String]) -> Result<()> {
        PART.write(path, &self.markdown(all))
    }

    fn markdown(&self, all: &[String]) -> String {
        let mut out = String::from("## Debian's services, frozen and resumed\n\n");
        let _ = writeln!(
            out,
            "{}, engine soft. Each of `examples/services` built, resumed, put under its load, frozen and resumed again; what \
             the load prints is the same everywhere. Native: the same root in a chroot, the mean of three warm \
             loads; soft: the middle one of three, with the command that asks for it. CPU: processor time of everything \
             that took part; × native and the rate of the first second after the resume (or of the first load, where one takes longer) are of \
             it, since other work on the host lengthens the rest. `cargo run --release -p engine -- services`\n\n{}",
            host::machine(),
            Self::head()
        );
        for (name, row) in &self.rows {
            let _ = writeln!(out, "{}", row.line(name));
        }
        let missing: Vec<&str> =
            all.iter().filter(|n| !self.rows.contains_key(*n)).map(String::as_str).collect();
        if !missing.is_empty() {
            let _ = writeln!(out, "\nNot measured, or not working: {}.", missing.join(", "));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cpu: f64) -> Row {
        let times = |cpu| Times { wall: 2.0 * cpu, cpu };
        Row {
            date: "2026-01-01".into(),
            load: "1.0".into(),
            native: Some(times(0.25)),
            before: times(cpu),
            after: times(cpu * 1.25),
            first_second: 0.9,
        }
    }

    #[test]
    fn rows_of_earlier_runs_are_kept_and_those_that_fail_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::open(dir.path()).unwrap();
        table.add("a", row(1.0)).unwrap();
        table.add("b", row(2.0)).unwrap();
        let mut table = Table::open(dir.path()).unwrap();
        table.failed("a").unwrap();
        let table = Table::open(dir.path()).unwrap();
        let text = table.markdown(&["a".into(), "b".into()]);
        assert!(
            text.contains("| b | 0.50 s | 0.25 s | 4.00 s | 2.00 s | 8.0 | 5.00 s | 2.50 s | 90% |"),
            "{text}"
        );
        assert!(text.contains("not working: a."), "{text}");
    }
}
