//! Whose turn it is: each row, each run, each contender.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use engine_guest::protocol::{Request, Verb};
use engine_guest::table::{WORKLOADS, Workload};

use crate::contender::{Contender, Kind, Sample};
use crate::host;
use crate::options::{Bench, Options};
use crate::report::{self, Row, Table};
use crate::setup::{self, Setup};

/// The whole benchmark.
pub fn run(options: &Options) -> Result<()> {
    let bench = &options.bench;
    if bench.list {
        println!("{:<12} boot to the first process", report::BOOT);
        WORKLOADS.iter().for_each(|w| println!("{:<12} {}", w.name, w.what));
        return Ok(());
    }
    let unknown = |name: &&String| *name != report::BOOT && engine_guest::table::find(name).is_err();
    if let Some(name) = bench.only.iter().find(unknown) {
        anyhow::bail!("no row is called {name}; `--list` shows all");
    }
    let kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|kind| !bench.without.iter().any(|name| name == kind.name())).collect();
    let qemu = if kinds.contains(&Kind::Tcg) { setup::qemu()? } else { "no QEMU".to_owned() };
    let setup = setup::setup(&bench.place)?;
    let mut table = Table {
        date: host::today(),
        machine: host::machine(),
        qemu,
        divisor: bench.divisor(),
        runs: bench.runs(),
        load_before: host::load(),
        rows: Vec::new(),
    };
    if bench.wants(report::BOOT) {
        let row = boot_row(&setup, &kinds, bench.runs())?;
        report::print_row(&row);
        table.rows.push(row);
    }
    for cpus in [1, 2] {
        let rows = WORKLOADS.iter().filter(|w| w.cpus == cpus && bench.wants(w.name));
        measure_rows(&setup, bench, &kinds, cpus, &rows.collect::<Vec<_>>(), &mut table)?;
    }
    table.finish(&setup.work)?;
    if bench.write || (bench.only.is_empty() && bench.without.is_empty() && bench.divisor() == 1) {
        table.write_document(&host::checkout().join("docs/performance.md"))?;
    }
    Ok(())
}

/// Boots of fresh machines, in turns.
fn boot_row(setup: &Setup, kinds: &[Kind], runs: usize) -> Result<Row> {
    let mut row = Row::new(report::BOOT, "boot to the first process");
    // The first start of each brings programs and images into the page cache.
    for run in 0..=runs {
        for &kind in kinds.iter().filter(|kind| **kind != Kind::Native) {
            let contender = Contender::start_unready(kind, setup, 1)?;
            if run > 0 {
                let ns = contender.boot_ns;
                row.add(kind, Sample { ns, wall_ns: ns, ..Sample::default() });
            }
        }
    }
    Ok(row)
}

fn measure_rows(
    setup: &Setup,
    bench: &Bench,
    kinds: &[Kind],
    cpus: u32,
    rows: &[&Workload],
    table: &mut Table,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut contenders = BTreeMap::new();
    for workload in rows {
        // One that a row before this brought down is started again.
        for &kind in kinds {
            if let std::collections::btree_map::Entry::Vacant(place) = contenders.entry(kind) {
                place.insert(Contender::start(kind, setup, cpus)?);
            }
        }
        let row = measure_row(bench, workload, &mut contenders);
        report::print_row(&row);
        table.rows.push(row);
    }
    Ok(())
}

/// One row on everyone. Who fails is out of the row, and is started anew for the next.
fn measure_row(bench: &Bench, workload: &Workload, contenders: &mut BTreeMap<Kind, Contender>) -> Row {
    let mut row = Row::new(workload.name, workload.what);
    let mut ask = |row: &mut Row, kind: Kind, verb: Verb, divisor: u64| {
        let contender = contenders.get_mut(&kind)?;
        let request = Request { verb, name: workload.name.to_owned(), divisor };
        let answer =
            contender.ask(&request).with_context(|| format!("{} {}", kind.name(), request.line().trim()));
        match answer {
            Ok(sample) => Some(sample),
            Err(e) => {
                row.failed(kind, format!("{e:#}"));
                contenders.remove(&kind);
                None
            }
        }
    };
    // Preparing does a tenth of the work, or more: caches are warm then, translations made.
    let warm = bench.divisor() * 10;
    for kind in Kind::ALL {
        let verb_divisor =
            if matches!(workload.work, engine_guest::table::Work::Micro(_)) { warm } else { bench.divisor() };
        ask(&mut row, kind, Verb::Prepare, verb_divisor);
    }
    for _ in 0..bench.runs() {
        for kind in Kind::ALL {
            if let Some(sample) = ask(&mut row, kind, Verb::Run, bench.divisor()) {
                row.add(kind, sample);
            }
        }
    }
    for kind in Kind::ALL {
        ask(&mut row, kind, Verb::Finish, bench.divisor());
    }
    row
}
