//! `logs`: what the service said.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_protocol::{Client, FrameKind, LogRecord, LogStream, LogsSpec, Request};
use anyhow::{Context, Result, bail};
use instance::logs::SAVED;
use instance::{Instance, Phase};

use crate::args::Logs;
use crate::cmd::exec::agent;
use crate::launch::Home;
use crate::ui::say;

pub fn logs(logs: &Logs, home: &Home) -> Result<u8> {
    if logs.kernel {
        return kernel(logs, home);
    }
    let since_ns = match &logs.since {
        Some(word) => Some(ago(word)?),
        None => None,
    };
    let spec = LogsSpec { follow: logs.follow, tail: logs.tail, since_ns };
    let instance = Instance::open(&home.dirs, &logs.name)?;
    if instance.phase() != Phase::Running {
        let path = instance.path(SAVED);
        match instance::logs::read_saved(&path, spec, |record| print(&record, logs.timestamps).is_ok()) {
            // Nothing was kept: the answer below says what to do.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => return other.map(|()| 0).with_context(|| format!("reading {}", path.display())),
        }
    }
    instance::logs::read(agent(&logs.name, home)?, spec, |record| print(&record, logs.timestamps).is_ok())?;
    Ok(0)
}

/// The moment so long ago, in nanoseconds since the epoch.
fn ago(word: &str) -> Result<u64> {
    let span: spec::Duration = word.parse().map_err(anyhow::Error::msg)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now.saturating_sub(span.0).as_nanos() as u64)
}

fn print(record: &LogRecord, timestamps: bool) -> std::io::Result<()> {
    let mut line = Vec::new();
    if timestamps {
        line.extend_from_slice(stamp(record.time_ns).as_bytes());
    }
    line.extend_from_slice(&record.bytes);
    match record.stream {
        LogStream::Stdout => std::io::stdout().write_all(&line).and_then(|()| std::io::stdout().flush()),
        LogStream::Stderr => std::io::stderr().write_all(&line),
    }
}

/// RFC 3339 in UTC with milliseconds and a blank.
fn stamp(ns: u64) -> String {
    let (secs, ms) = (ns / 1_000_000_000, ns / 1_000_000 % 1000);
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let (y, m, d) = civil(days as i64);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{ms:03}Z ", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Date of a day number since 1970-01-01, by counting eras of 400 years from 0000-03-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * month + 2) / 5 + 1;
    let calendar_month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(calendar_month <= 2), calendar_month, date)
}

fn kernel(logs: &Logs, home: &Home) -> Result<u8> {
    let instance = Instance::open(&home.dirs, &logs.name)?;
    if instance.phase() != Phase::Running {
        // What its serial console said; there is no file before it said anything.
        let path = instance.path("kernel.log");
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.with_context(|| format!("reading {}", path.display()))?,
        };
        say::bytes(&text);
        return Ok(0);
    }
    let mut client = Client::new(agent(&logs.name, home)?);
    client.start(&Request::KernelLog { follow: logs.follow })?;
    loop {
        let frame = client.next_frame()?;
        match frame.kind {
            FrameKind::Data if say::bytes(&frame.payload) => {}
            // Nobody reads any more.
            FrameKind::Data => return Ok(0),
            FrameKind::DataEnd => return Ok(0),
            other => bail!("the guest's agent sent a {other:?} frame out of turn"),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn stamps() {
        assert_eq!(super::stamp(0), "1970-01-01T00:00:00.000Z ");
        assert_eq!(super::stamp(951_782_400_123_000_000), "2000-02-29T00:00:00.123Z ");
        assert_eq!(super::stamp(1_795_392_000_000_000_000), "2026-11-23T00:00:00.000Z ");
    }
}
