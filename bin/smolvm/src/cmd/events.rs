//! `events`: what happens to machines, from now on.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use host::LocalTime;
use instance::{Change, Event, Watch};
use serde::Serialize;

use crate::args::{Events, Global};
use crate::launch::Home;
use crate::ui::say::{self, tell};

/// As JSON.
#[derive(Serialize)]
struct Row<'a> {
    /// RFC 3339 with the host's offset from UTC.
    time: String,
    name: &'a str,
    #[serde(flatten)]
    change: &'a Change,
}

pub fn events(words: &Events, global: &Global, home: &Home) -> Result<u8> {
    let mut watch = Watch::begin(&home.dirs, &words.names)?;
    if !global.quiet {
        // Whoever reads `--json`, too, needs to know from when on everything is told.
        tell!("smolvm: watching; Ctrl-C ends it");
    }
    loop {
        let event = watch.next_event()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = host::local_time(now.as_secs() as i64).context("asking for the local time")?;
        let line = match global.json {
            true => json(&event, time, now.subsec_millis())?,
            false => line(&event, time, now.subsec_millis()),
        };
        if !say::bytes(format!("{line}\n").as_bytes()) {
            // Nobody reads any more, or nothing more can be written.
            return Ok(0);
        }
    }
}

fn json(event: &Event, t: LocalTime, ms: u32) -> Result<String> {
    let sign = if t.offset < 0 { '-' } else { '+' };
    let (hours, minutes) = (t.offset.abs() / 3600, t.offset.abs() / 60 % 60);
    let time = format!("{}T{}{sign}{hours:02}:{minutes:02}", date(t), clock(t, ms));
    Ok(serde_json::to_string(&Row { time, name: &event.name, change: &event.change })?)
}

fn line(event: &Event, t: LocalTime, ms: u32) -> String {
    let head = format!("{} {}  {:<9}  {}", date(t), clock(t, ms), event.change.word(), event.name);
    let code = |code: &Option<u8>| code.map(|code| format!("exit code {code}"));
    let detail = match &event.change {
        Change::Created { forked_from: Some(from), .. } => Some(format!("a copy of {from}")),
        Change::Created { source, .. } | Change::Updated { source, .. } => Some(source.clone()),
        Change::Stopped { exit_code } | Change::Died { exit_code } => code(exit_code),
        Change::Restarted { restarts, exit_code } => {
            let after = code(exit_code).map(|code| format!(" after {code}")).unwrap_or_default();
            Some(format!("restart {restarts}{after}"))
        }
        Change::Health { health } => Some(health.word().to_owned()),
        Change::Started { .. } | Change::Resumed { .. } | Change::Frozen | Change::Removed => None,
    };
    detail.map_or(head.clone(), |detail| format!("{head}  {detail}"))
}

fn date(t: LocalTime) -> String {
    format!("{:04}-{:02}-{:02}", t.year, t.month, t.day)
}

fn clock(t: LocalTime, ms: u32) -> String {
    format!("{:02}:{:02}:{:02}.{ms:03}", t.hour, t.minute, t.second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: LocalTime =
        LocalTime { year: 2026, month: 3, day: 9, hour: 7, minute: 5, second: 1, offset: -12_600 };

    #[test]
    fn lines_and_objects() {
        let change = Change::Restarted { restarts: 2, exit_code: Some(9) };
        let event = Event { name: "web".into(), change };
        let said = line(&event, TIME, 4);
        assert_eq!(said, "2026-03-09 07:05:01.004  restarted  web  restart 2 after exit code 9");
        let said = json(&event, TIME, 4).unwrap();
        let object = r#"{"time":"2026-03-09T07:05:01.004-03:30","name":"web","event":"restarted","restarts":2,"exit_code":9}"#;
        assert_eq!(said, object);
        let event = Event { name: "web".into(), change: Change::Removed };
        assert_eq!(line(&event, TIME, 0), "2026-03-09 07:05:01.000  removed    web");
    }
}
