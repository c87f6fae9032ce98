//! Ratios, the printed table, and the one in docs/performance.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::contender::{Kind, Sample};
use crate::document::Part;
use crate::host;

/// The row that is not in the mean: it has a limit of its own.
pub const BOOT: &str = "boot";
/// Between these lines of docs/performance.md is what a run wrote.
const PART: Part = Part {
    begin: "<!-- engine: written by `cargo run --release -p engine` -->",
    end: "<!-- engine: end -->",
};

/// One workload and what came of it.
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    samples: BTreeMap<Kind, Vec<Sample>>,
    failures: BTreeMap<Kind, String>,
}

/// Median, smallest, largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|v| v.is_finite());
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let even = values.len().is_multiple_of(2);
        let median = if even { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] };
        Some(Self { median, low, high })
    }
}

impl Row {
    pub fn new(name: &'static str, what: &'static str) -> Self {
        Self { name, what, samples: BTreeMap::new(), failures: BTreeMap::new() }
    }

    pub fn add(&mut self, kind: Kind, sample: Sample) {
        self.samples.entry(kind).or_default().push(sample);
    }

    pub fn failed(&mut self, kind: Kind, why: String) {
        self.failures.entry(kind).or_insert(why);
    }

    fn of(&self, kind: Kind) -> &[Sample] {
        self.samples.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// Seconds by the worker's clock.
    fn seconds(&self, kind: Kind) -> Option<f64> {
        Some(Spread::of(self.of(kind).iter().map(|s| s.ns as f64 / 1e9).collect())?.median)
    }

    /// Of the runs that were made one after the other, by `value`.
    fn ratio(&self, kind: Kind, to: Kind, value: impl Fn(&Sample) -> u64) -> Option<Spread> {
        let pairs = self.of(kind).iter().zip(self.of(to));
        Spread::of(
            pairs.filter(|(_, b)| value(b) > 0).map(|(a, b)| value(a) as f64 / value(b) as f64).collect(),
        )
    }

    /// Time of soft over time of TCG.
    pub fn to_peer(&self) -> Option<Spread> {
        self.ratio(Kind::Soft, Kind::Tcg, |s| s.ns)
    }

    /// Millions of guest instructions, and how many of them a second.
    fn instructions(&self) -> Option<(f64, f64)> {
        let counted = self.of(Kind::Soft).iter().filter(|s| s.instructions > 0 && s.cpu_ns > 0);
        let pairs: Vec<_> = counted.map(|s| (s.instructions as f64 / 1e6, s.cpu_ns as f64 / 1e9)).collect();
        let millions = Spread::of(pairs.iter().map(|p| p.0).collect())?.median;
        let rate = Spread::of(pairs.iter().map(|p| p.0 / p.1).collect())?.median;
        Some((millions, rate))
    }

    /// What is wrong with the row.
    fn remarks(&self) -> Vec<String> {
        let mut out: Vec<String> = self.failures.values().map(|why| format!("FAILED: {why}")).collect();
        let checks: Vec<(Kind, u64)> =
            self.samples.iter().flat_map(|(kind, list)| list.iter().map(|s| (*kind, s.check))).collect();
        if let Some((first, rest)) = checks.split_first()
            && let Some(other) = rest.iter().find(|c| c.1 != first.1)
        {
            let (a, b) = (first, other);
            out.push(format!("WRONG: {} gave {:016x}, {} {:016x}", a.0.name(), a.1, b.0.name(), b.1));
        }
        for (kind, list) in &self.samples {
            // pgbench answers the time of a thousand transactions, boots have one clock only.
            let off = |s: &&Sample| {
                self.name != "pgbench" && s.wall_ns.abs_diff(s.ns) > s.wall_ns / 10 + 100_000_000
            };
            if let Some(s) = list.iter().find(off) {
                let (guest, host) = (s.ns as f64 / 1e9, s.wall_ns as f64 / 1e9);
                out.push(format!("CLOCK: {} says {guest:.2} s, the host {host:.2} s", kind.name()));
            }
        }
        out
    }
}

fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".into(),
        Some(s) if s < 0.1 => format!("{:.1} ms", s * 1e3),
        Some(s) => format!("{s:.2} s"),
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |r| if r < 10.0 { format!("{r:.2}") } else { format!("{r:.0}") })
}

fn spread(ratio: Option<Spread>) -> String {
    ratio.map_or_else(|| "-".into(), |r| format!("{:.2}-{:.2}", r.low, r.high))
}

/// A row as it is done.
pub fn print_row(row: &Row) {
    let to_native = |kind| times(row.ratio(kind, Kind::Native, |s| s.ns).map(|r| r.median));
    let peer = row.to_peer();
    let cpu = row.ratio(Kind::Soft, Kind::Tcg, |s| s.cpu_ns);
    let (millions, rate) = row
        .instructions()
        .map_or(("-".into(), "-".into()), |(count, rate)| (format!("{count:.0}"), format!("{rate:.0}")));
    println!(
        "{:<12} native {:>8}  tcg {:>8}  soft {:>8} | soft/tcg {:>5} ({:>9}) cpu {:>5} | x native: tcg {:>5} soft {:>5} | {millions:>6} M, {rate:>4} MIPS",
        row.name,
        time(row.seconds(Kind::Native)),
        time(row.seconds(Kind::Tcg)),
        time(row.seconds(Kind::Soft)),
        times(peer.map(|r| r.median)),
        spread(peer),
        times(cpu.map(|r| r.median)),
        to_native(Kind::Tcg),
        to_native(Kind::Soft),
    );
    row.remarks().iter().for_each(|remark| println!("    {remark}"));
}

/// A whole run.
pub struct Table {
    pub date: String,
    pub machine: String,
    pub qemu: String,
    pub divisor: u64,
    pub runs: usize,
    pub load_before: String,
    pub rows: Vec<Row>,
}

impl Table {
    /// Geometric mean of the ratios to TCG, without the boot; and of how many rows.
    fn mean(&self) -> Option<(f64, usize)> {
        let rows = self.rows.iter().filter(|row| row.name != BOOT);
        let logs: Vec<f64> = rows.filter_map(|row| Some(row.to_peer()?.median.ln())).collect();
        let count = logs.len();
        (count > 0).then(|| ((logs.iter().sum::<f64>() / count as f64).exp(), count))
    }

    /// Prints what the rows come to, and keeps every sample in the work directory.
    pub fn finish(&self, work: &Path) -> Result<()> {
        let Some((mean, count)) = self.mean() else { return self.keep(work) };
        let worst = self.rows.iter().filter_map(|row| Some((row.to_peer()?.median, row.name)));
        let worst = worst.max_by(|a, b| a.0.total_cmp(&b.0));
        println!("geometric mean of soft/tcg over {count} rows without boot: {mean:.3}");
        if let Some((ratio, name)) = worst {
            println!("highest: {name} {ratio:.2}");
        }
        let wrong = self.rows.iter().filter(|row| !row.remarks().is_empty()).count();
        println!(
            "rows with remarks: {wrong}; load average {} before, {} after",
            self.load_before,
            host::load()
        );
        self.keep(work)
    }

    fn keep(&self, work: &Path) -> Result<()> {
        let sample = |s: &Sample| {
            serde_json::json!({ "ns": s.ns, "wall_ns": s.wall_ns, "cpu_ns": s.cpu_ns,
                "instructions": s.instructions, "check": format!("{:016x}", s.check) })
        };
        let row = |row: &Row| {
            let samples: BTreeMap<&str, Vec<_>> = row
                .samples
                .iter()
                .map(|(kind, list)| (kind.name(), list.iter().map(sample).collect()))
                .collect();
            serde_json::json!({ "name": row.name, "samples": samples, "remarks": row.remarks() })
        };
        let all = serde_json::json!({ "date": self.date, "machine": self.machine, "qemu": self.qemu,
            "divisor": self.divisor, "rows": self.rows.iter().map(row).collect::<Vec<_>>() });
        let path = work.join("last.json");
        fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
        println!("every sample: {}", path.display());
        Ok(())
    }

    /// Puts the table into the document.
    pub fn write_document(&self, path: &Path) -> Result<()> {
        PART.write(path, &self.markdown())
    }

    fn markdown(&self) -> String {
        let mut out = String::from("## The soft engine against QEMU TCG\n\n");
        let quick =
            if self.divisor == 1 { String::new() } else { format!(" (work divided by {})", self.divisor) };
        let _ = writeln!(
            out,
            "{}, {}, {}; load average {} before. {} interleaved runs of each row{quick}, medians; \
             ratios of times, least to most in brackets. The peer's boot is without its firmware and without the \
             0.1 s of APIC timer calibration that it cannot be spared. `cargo run --release -p engine`\n",
            self.date, self.machine, self.qemu, self.load_before, self.runs
        );
        out.push_str(
            "| row | native | TCG | soft | soft / TCG | TCG / native | soft / native | M instr. |\n",
        );
        out.push_str("|---|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let to_native = |kind| times(row.ratio(kind, Kind::Native, |s| s.ns).map(|r| r.median));
            let peer = row.to_peer();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | **{}** ({}) | {} | {} | {} |",
                row.what,
                time(row.seconds(Kind::Native)),
                time(row.seconds(Kind::Tcg)),
                time(row.seconds(Kind::Soft)),
                times(peer.map(|r| r.median)),
                spread(peer),
                to_native(Kind::Tcg),
                to_native(Kind::Soft),
                row.instructions().map_or_else(|| "-".into(), |(count, _)| format!("{count:.0}")),
            );
        }
        if let Some((mean, count)) = self.mean() {
            let _ =
                writeln!(out, "\nGeometric mean of soft / TCG, boot apart: **{mean:.3}** ({count} rows).\n");
        }
        for row in &self.rows {
            for remark in row.remarks() {
                let _ = writeln!(out, "- {}: {remark}", row.name);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, soft: &[u64], tcg: &[u64]) -> Row {
        let mut row = Row::new(name, name);
        let sample = |ns: &u64| Sample { ns: *ns, wall_ns: *ns, ..Sample::default() };
        soft.iter().for_each(|ns| row.add(Kind::Soft, sample(ns)));
        tcg.iter().for_each(|ns| row.add(Kind::Tcg, sample(ns)));
        row
    }

    fn table(rows: Vec<Row>) -> Table {
        let text = String::new;
        Table { date: text(), machine: text(), qemu: text(), divisor: 1, runs: 3, load_before: text(), rows }
    }

    #[test]
    fn ratios_are_of_runs_beside_each_other() {
        let ratio = row("a", &[10, 30, 20], &[20, 30, 80]).to_peer().unwrap();
        assert_eq!(ratio, Spread { median: 0.5, low: 0.25, high: 1.0 });
    }

    #[test]
    fn the_mean_is_geometric_and_without_the_boot() {
        let rows = vec![row(BOOT, &[9], &[1]), row("a", &[1], &[2]), row("b", &[1], &[8])];
        let (mean, count) = table(rows).mean().unwrap();
        assert!((mean - 0.25).abs() < 1e-9 && count == 2, "{mean} {count}");
    }

    #[test]
    fn different_answers_are_told() {
        let mut row = row("a", &[1], &[1]);
        row.add(Kind::Soft, Sample { ns: 1, wall_ns: 1, check: 5, ..Sample::default() });
        assert!(row.remarks()[0].starts_with("WRONG"), "{:?}", row.remarks());
    }
}
