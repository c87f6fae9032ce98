//! The table.

use std::fmt::Write as _;

use anyhow::Result;
use engine::document::Part;
use engine::host;

use crate::measure::{Contender, Row, Stream};
use crate::options::Relays;

const PART: Part = Part {
    begin: "<!-- net: written by `cargo run --release -p net -- --write` -->",
    end: "<!-- net: end -->",
};

/// Prints the table, and writes it where that is wanted.
///
/// # Errors
/// The document cannot be written.
pub fn tell(
    options: &Relays,
    versions: &str,
    load: &str,
    all: &[Contender],
    loopback: &mut [f64],
) -> Result<()> {
    let mut text = String::new();
    writeln!(text, "## The user-mode network against libslirp and passt\n")?;
    writeln!(
        text,
        "{}, {}, {versions}; load average {load} before, {} after. {} interleaved runs, medians, least to most in \
         brackets; ratios are of runs of the same turn. One generator of frames plays the guest's card for all, over a \
         Unix socket, against the same programs of the host; no guest's processor is in any figure. Under load only \
         processor time compares. `cargo run --release -p net`\n",
        host::today(),
        host::machine(),
        host::load(),
        options.runs,
    )?;
    streams(&mut text, all)?;
    trips(&mut text, all, loopback)?;
    crowds(&mut text, all)?;
    print!("{text}");
    if options.write {
        PART.write(&host::checkout().join("docs/performance.md"), &text)?;
    }
    Ok(())
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The middle one with the least and the most.
pub fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2}-{most:.2})", median(values.iter().copied()))
}

fn streams(text: &mut String, all: &[Contender]) -> Result<()> {
    let head = "| one TCP stream | relay | CPU of the relay, s/GB: median (least-most) | its CPU / ours | MB/s | its time / \
                ours | frames/s | sent again |";
    writeln!(text, "{head}\n|---|---|---|---|---|---|---|---|")?;
    for row in Row::ALL {
        let of = |contender: &Contender| -> Vec<Stream> {
            contender.streams.iter().filter(|(r, _)| *r == row).map(|(_, s)| *s).collect()
        };
        let ours = all.first().map(of).unwrap_or_default();
        for contender in all {
            let runs = of(contender);
            let cpu: Vec<f64> = runs.iter().map(|s| s.cpu_seconds / s.bytes as f64 * 1e9).collect();
            let per_turn = |what: fn(&Stream) -> f64| -> Vec<f64> {
                ours.iter().zip(&runs).map(|(ours, it)| what(it) / what(ours)).collect()
            };
            let rate = median(runs.iter().map(|s| s.bytes as f64 / s.seconds / 1e6));
            let frames = median(runs.iter().map(|s| s.frames as f64 / s.seconds));
            let losses: u64 = runs.iter().map(|s| s.losses).sum();
            writeln!(
                text,
                "| {} | {} | {} | **{:.2}** | {rate:.0} | **{}** | {frames:.0} | {losses} |",
                row.name(),
                contender.kind.name(),
                spread(&cpu),
                median(per_turn(|s| s.cpu_seconds)),
                spread(&per_turn(|s| s.seconds)),
            )?;
        }
    }
    Ok(())
}

fn trips(text: &mut String, all: &[Contender], loopback: &mut [f64]) -> Result<()> {
    let base = median(loopback.iter().copied());
    writeln!(text, "\n| round trip of one byte | median | p99 | added to the loopback's, median |")?;
    writeln!(text, "|---|---|---|---|")?;
    loopback.sort_by(f64::total_cmp);
    writeln!(text, "| loopback alone | {:.0} µs | {:.0} µs | |", base * 1e6, p99(loopback) * 1e6)?;
    for contender in all {
        let mut trips = contender.trips.clone();
        trips.sort_by(f64::total_cmp);
        let middle = median(trips.iter().copied());
        writeln!(
            text,
            "| {} | {:.0} µs | {:.0} µs | {:.0} µs |",
            contender.kind.name(),
            middle * 1e6,
            p99(&trips) * 1e6,
            (middle - base) * 1e6
        )?;
    }
    Ok(())
}

/// Of values that are sorted.
fn p99(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

fn crowds(text: &mut String, all: &[Contender]) -> Result<()> {
    writeln!(
        text,
        "\n| connections at once | relay | until all answered | CPU | descriptors before, then, after |"
    )?;
    writeln!(text, "|---|---|---|---|---|")?;
    for contender in all {
        let name = contender.kind.name();
        match contender.crowd {
            Some(c) => {
                let [before, height, after] = c.descriptors;
                writeln!(
                    text,
                    "| {} | {name} | {:.2} s | {:.2} s | {before}, {height}, {after} |",
                    c.connections, c.seconds, c.cpu_seconds
                )?;
            }
            None => writeln!(text, "| | {name} | not all | | |")?,
        }
    }
    writeln!(text)?;
    Ok(())
}
