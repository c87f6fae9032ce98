//! `ps`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use instance::{Health, Phase, Record};
use serde::Serialize;

use crate::args::{Global, Ps};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{say, tell};

#[derive(Serialize)]
struct Row {
    state: Phase,
    #[serde(flatten)]
    record: Record,
}

pub fn ps(ps: &Ps, global: &Global, home: &Home) -> Result<u8> {
    let mut rows = Vec::new();
    for instance in instance::list(&home.dirs)? {
        let state = instance.phase();
        if state != Phase::Running && !ps.all {
            continue;
        }
        match instance.record() {
            // Of a new version that was not started yet nothing is dead.
            Ok(record) if record.fresh && state == Phase::Dead => {
                rows.push(Row { state: Phase::Stopped, record });
            }
            Ok(record) => rows.push(Row { state, record }),
            Err(e) if ps.all => tell!("smolvm: {e}"),
            Err(_) => {}
        }
    }
    if global.json {
        ui::json(&rows)?;
        return Ok(0);
    }
    if global.quiet {
        rows.iter().for_each(|r| say!("{}", r.record.name));
        return Ok(0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let cells: Vec<Vec<String>> = rows.iter().map(|r| cells(r, now)).collect();
    ui::table(&["NAME", "STATE", "MACHINE", "COMMAND", "CREATED", "PORTS"], &cells);
    Ok(0)
}

fn cells(row: &Row, now_ms: u64) -> Vec<String> {
    let record = &row.record;
    let tcp = record.ports.iter().map(|(host, guest)| format!("{host}->{guest}"));
    let udp = record.udp_ports.iter().map(|(host, guest)| format!("{host}->{guest}/udp"));
    let ports: Vec<String> = tcp.chain(udp).collect();
    let state = match (row.state, record.exit_code) {
        (Phase::Running, _) if record.health.is_some() => {
            format!("{} ({})", row.state.word(), record.health.map_or("", Health::word))
        }
        (Phase::Running | Phase::Frozen, _) | (_, None) => row.state.word().to_owned(),
        (state, Some(code)) => format!("{} ({code})", state.word()),
    };
    let command = record.command.join(" ");
    vec![
        record.name.clone(),
        state,
        record.source.rsplit('/').next().unwrap_or_default().to_owned(),
        if command.is_empty() { "-".into() } else { command.chars().take(30).collect() },
        format!("{} ago", ui::span(now_ms.saturating_sub(record.created_ms) / 1000)),
        ports.join(", "),
    ]
}
