//! `stats --engine`: what the engine of a machine counted, in all and since the last look.

use std::io::IsTerminal;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use instance::control::{Client, Request};
use instance::{Instance, Phase};
use machine::EngineFigures;
use serde_json::{Value, json};

use super::CLEAR;
use crate::args::{Global, Stats};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{self, say};

/// One look at one machine.
struct Look {
    name: String,
    at: Instant,
    figures: EngineFigures,
}

fn look(stats: &Stats, home: &Home) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    for instance in instance::list(&home.dirs)? {
        let wanted = stats.names.is_empty() || stats.names.iter().any(|n| n == instance.name());
        if !wanted || instance.phase() != Phase::Running {
            continue;
        }
        match ask(&instance) {
            Ok(figures) => {
                looks.push(Look { name: instance.name().to_owned(), at: Instant::now(), figures });
            }
            // It ended between two looks, or is on its way up.
            Err(e) if instance.phase() == Phase::Running && !stats.names.is_empty() => return Err(e),
            Err(_) => {}
        }
    }
    looks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(looks)
}

fn ask(instance: &Instance) -> Result<EngineFigures> {
    let answer = Client::new(instance)?.call(&Request::Engine)?;
    serde_json::from_value(answer).context("reading the machine's answer; is its process of another version?")
}

/// Sums over the vCPUs of everything that is counted, in the engine's order.
fn totals(figures: &EngineFigures) -> Vec<(String, u64)> {
    let mut sums: Vec<(String, u64)> = Vec::new();
    for vcpu in &figures.vcpus {
        let instructions = vcpu.instructions.map(|n| ("instructions".to_owned(), n));
        let own = [instructions, Some(("exits".to_owned(), vcpu.exits))];
        for (name, value) in own.into_iter().flatten().chain(vcpu.details.iter().cloned()) {
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
    }
    sums
}

fn value(sums: &[(String, u64)], name: &str) -> Option<u64> {
    sums.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// What is worked out of two looks.
struct Rates {
    /// Million guest instructions a second of the vCPUs' CPU time, where they are counted and there was any.
    mips: Option<f64>,
    /// Hundredths of the instructions that ran as translated code.
    translated_percent: Option<f64>,
    /// Seconds of CPU time, and of the clock.
    busy: f64,
    span: f64,
}

fn rates(before: &Look, now: &Look) -> Rates {
    let (old, new) = (totals(&before.figures), totals(&now.figures));
    let grown = |name: &str| Some(value(&new, name)?.saturating_sub(value(&old, name).unwrap_or(0)) as f64);
    let busy = now.figures.vcpu_ms.saturating_sub(before.figures.vcpu_ms) as f64 / 1000.0;
    let instructions = grown("instructions");
    let translated = grown("translated_instructions");
    Rates {
        mips: instructions.filter(|_| busy > 0.0).map(|n| n / busy / 1e6),
        translated_percent: instructions.filter(|n| *n > 0.0).and_then(|n| Some(translated? / n * 100.0)),
        busy,
        span: now.at.duration_since(before.at).as_secs_f64(),
    }
}

fn as_json(before: &Look, now: &Look) -> Value {
    let rates = rates(before, now);
    let vcpus = now.figures.vcpus.iter().map(|vcpu| {
        let details: serde_json::Map<_, _> =
            vcpu.details.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let mut all = json!({ "instructions": vcpu.instructions, "exits": vcpu.exits });
        all.as_object_mut().into_iter().for_each(|all| all.extend(details.clone()));
        all
    });
    json!({
        "name": now.name,
        "engine": now.figures.engine,
        "mips": rates.mips,
        "translated_percent": rates.translated_percent,
        "vcpu_ms": now.figures.vcpu_ms,
        "vcpus": vcpus.collect::<Vec<_>>(),
    })
}

fn print_table(before: &Look, now: &Look) {
    let rates = rates(before, now);
    let told = |value: Option<f64>, unit: &str| value.map_or("-".into(), |v| format!("{v:.1}{unit}"));
    say!(
        "{}: engine {}, {} vCPU{}, {:.1}% of a core, {} MIPS, {} translated",
        now.name,
        now.figures.engine,
        now.figures.vcpus.len(),
        if now.figures.vcpus.len() == 1 { "" } else { "s" },
        rates.busy / rates.span.max(1e-3) * 100.0,
        told(rates.mips, ""),
        told(rates.translated_percent, "%"),
    );
    let old = totals(&before.figures);
    let rows: Vec<Vec<String>> = totals(&now.figures)
        .iter()
        .map(|(name, total)| {
            let grown = total.saturating_sub(value(&old, name).unwrap_or(0));
            let each_second = grown as f64 / rates.span.max(1e-3);
            vec![name.replace('_', " "), total.to_string(), format!("{each_second:.0}")]
        })
        .collect();
    ui::table(&["COUNTED", "IN ALL", "A SECOND"], &rows);
}

/// Shows it once, or again and again until nobody reads or the machines have ended.
pub fn stats(stats: &Stats, interval: std::time::Duration, global: &Global, home: &Home) -> Result<u8> {
    let mut before = look(stats, home)?;
    loop {
        thread::sleep(interval);
        let now = look(stats, home)?;
        let pairs: Vec<(&Look, &Look)> =
            now.iter().filter_map(|n| Some((before.iter().find(|b| b.name == n.name)?, n))).collect();
        if global.json {
            let all: Vec<Value> = pairs.iter().map(|(b, n)| as_json(b, n)).collect();
            match stats.once {
                true => ui::json(&all)?,
                false => say!("{}", serde_json::to_string(&all)?),
            }
        } else {
            if !stats.once && std::io::stdout().is_terminal() {
                say::bytes(CLEAR.as_bytes());
            }
            pairs.iter().for_each(|(b, n)| print_table(b, n));
        }
        let heard = say::bytes(&[]);
        if !heard || stats.once || (now.is_empty() && !stats.names.is_empty()) {
            return Ok(0);
        }
        before = now;
    }
}
