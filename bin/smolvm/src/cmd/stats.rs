//! `stats`: what machines use, from their processes on this host and from the agents inside.

mod engine;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::{AGENT_PORT, Reply};
use anyhow::{Context, Result};
use instance::control::{Client, Request};
use instance::{Instance, Phase};
use machine::Usage;
use serde::Serialize;

use crate::args::{Global, Stats};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{self, say};

/// How long a guest may take to say how it is; one that does not is shown without that.
const PATIENCE: Duration = Duration::from_secs(2);
/// ANSI: home, and erase to the end (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What the guest says of itself.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Guest {
    /// Bytes of its memory that nothing could give up at once.
    pub memory_used: u64,
    pub memory_total: u64,
    /// CPU time in milliseconds that its CPUs were busy since it booted.
    pub busy_ms: u64,
    /// Bytes of its root that are taken.
    pub disk_used: u64,
    pub processes: usize,
}

/// One look at one machine.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: Instant,
    pub usage: Usage,
    pub guest: Option<Guest>,
}

impl Sample {
    /// What the vCPUs used since `earlier`, in hundredths of one host CPU.
    fn cpu_percent(&self, earlier: &Sample) -> f64 {
        let span = self.at.duration_since(earlier.at).as_secs_f64() * 1000.0;
        self.usage.vcpu_ms.saturating_sub(earlier.usage.vcpu_ms) as f64 / span.max(1.0) * 100.0
    }
}

/// Looks at a machine that runs.
pub fn sample(instance: &Instance) -> Result<Sample> {
    let client = Client::new(instance)?;
    let usage = serde_json::from_value(client.call(&Request::Usage)?);
    let usage = usage.context("reading the machine's answer; is its process of another version?")?;
    Ok(Sample { at: Instant::now(), usage, guest: ask_guest(&client) })
}

fn ask_guest(client: &Client<'_>) -> Option<Guest> {
    let stream = client.connect(AGENT_PORT).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    match agent_protocol::Client::new(stream).call(&agent_protocol::Request::Stats).ok()? {
        Reply::Stats(stats) => Some(Guest {
            memory_used: stats.memory.total.saturating_sub(stats.memory.available).saturating_mul(1024),
            memory_total: stats.memory.total.saturating_mul(1024),
            busy_ms: stats.busy_ms,
            disk_used: stats.disk.0.saturating_sub(stats.disk.1).saturating_mul(1024),
            processes: stats.processes.len(),
        }),
        _ => None,
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    cpu_percent: f64,
    #[serde(flatten)]
    usage: Usage,
    guest: Option<Guest>,
}

pub fn stats(stats: &Stats, global: &Global, home: &Home) -> Result<u8> {
    let interval: spec::Duration = stats.interval.parse().map_err(anyhow::Error::msg)?;
    // A machine that is named must be there at first; later it may end.
    for name in &stats.names {
        Instance::open(&home.dirs, name)?.require_running()?;
    }
    if stats.engine {
        return engine::stats(stats, interval.0, global, home);
    }
    let mut earlier = look(stats, home)?;
    loop {
        thread::sleep(interval.0);
        let now = look(stats, home)?;
        let rows: Vec<Row> = now.iter().map(|(name, sample)| row(name, sample, earlier.get(name))).collect();
        let heard = print(rows, stats.once, global)?;
        if !heard || stats.once || (now.is_empty() && !stats.names.is_empty()) {
            return Ok(0);
        }
        earlier = now;
    }
}

/// All machines that are wanted and run.
fn look(stats: &Stats, home: &Home) -> Result<HashMap<String, Sample>> {
    let all = instance::list(&home.dirs)?;
    let named =
        |instance: &Instance| stats.names.is_empty() || stats.names.iter().any(|n| n == instance.name());
    let wanted = all.iter().filter(|i| named(i) && i.phase() == Phase::Running);
    let mut samples = HashMap::new();
    for instance in wanted {
        match sample(instance) {
            Ok(sample) => drop(samples.insert(instance.name().to_owned(), sample)),
            // It ended between two looks, or is on its way up.
            Err(e) if instance.phase() == Phase::Running && !stats.names.is_empty() => return Err(e),
            Err(_) => {}
        }
    }
    Ok(samples)
}

fn row(name: &str, sample: &Sample, earlier: Option<&Sample>) -> Row {
    let cpu_percent = earlier.map_or(0.0, |earlier| sample.cpu_percent(earlier));
    // What the guest gave up counts as used there.
    let used = |guest: Guest| guest.memory_used.saturating_sub(sample.usage.ballooned);
    let guest = sample.guest.map(|guest| Guest { memory_used: used(guest), ..guest });
    Row { name: name.to_owned(), cpu_percent, usage: sample.usage, guest }
}

/// Whether somebody still reads.
fn print(mut rows: Vec<Row>, once: bool, global: &Global) -> Result<bool> {
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    match (global.json, once) {
        (true, true) => ui::json(&rows)?,
        (true, false) => say!("{}", serde_json::to_string(&rows)?),
        (false, _) => {
            if !once && std::io::stdout().is_terminal() {
                say::bytes(CLEAR.as_bytes());
            }
            let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
            let head =
                ["NAME", "CPU", "USED / MEMORY", "TOUCHED", "OWN", "SHARED", "DISK", "NET OUT / IN", "PROCS"];
            ui::table(&head, &cells);
        }
    }
    Ok(say::bytes(&[]))
}

fn cells(row: &Row) -> Vec<String> {
    let usage = &row.usage;
    let limits = usage.limits;
    let told = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let of_limit = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used} / {limit}"),
        None => used,
    };
    let percent = |milli: u32| format!("{}%", f64::from(milli) / 10.0);
    let memory = match usage.ballooned {
        0 => ui::bytes(usage.memory),
        given_up => format!("{} of {}", ui::bytes(usage.memory - given_up), ui::bytes(usage.memory)),
    };
    vec![
        row.name.clone(),
        of_limit(format!("{:.1}%", row.cpu_percent), limits.and_then(|l| l.cpu_milli).map(percent)),
        format!("{} / {}", told(row.guest.map(|g| ui::bytes(g.memory_used))), memory),
        ui::bytes(usage.touched),
        of_limit(ui::bytes(usage.own), limits.and_then(|l| l.memory).map(ui::bytes)),
        ui::bytes(usage.shared),
        ui::bytes(usage.disk),
        told(usage.net.map(|(out, into)| format!("{} / {}", ui::bytes(out), ui::bytes(into)))),
        told(row.guest.map(|g| g.processes.to_string())),
    ]
}
