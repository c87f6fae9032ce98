//! Keeps a detached machine's service going: restart policies and health checks.
//!
//! Problem: without a daemon nobody is left to start again what ended. Strategy: the machine's own process does it.
//! A service or command that ends is started again in the guest, which keeps its memory and disk; a machine that
//! fails is started again as it was first, by this program over itself. Invariants: what was stopped, frozen or
//! killed by name stays so; the time between two starts doubles up to [`LONGEST`] unless the last one lived for
//! [`SETTLED`]. Next: `cmd/vmm.rs`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::{Client, ErrorKind, ExecSpec, Probe, ReadySpec, Request, SignalSpec};
use anyhow::{Result, bail};
use instance::{Health, Instance, Vmm};
use serde::{Deserialize, Serialize};

use crate::args;

/// The first wait before a start, the longest, and the life after which the first is used again (as docker has it).
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
const SETTLED: Duration = Duration::from_secs(10);
/// The longest that one look at a machine's health may take.
const LOOK: Duration = Duration::from_secs(30);
const KILL: u8 = 9;

/// What to do when the service ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    #[default]
    No,
    /// When it fails, so many times at most.
    OnFailure {
        most: Option<u32>,
    },
    Always,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let form = || format!("`--restart {word}`: write no, on-failure, on-failure:N or always");
        match word.split_once(':') {
            None => match word {
                "no" => Ok(Policy::No),
                "on-failure" => Ok(Policy::OnFailure { most: None }),
                "always" | "unless-stopped" => Ok(Policy::Always),
                _ => Err(form()),
            },
            Some(("on-failure", n)) => Ok(Policy::OnFailure { most: Some(n.parse().map_err(|_| form())?) }),
            Some(_) => Err(form()),
        }
    }
}

impl Policy {
    /// Whether what ended with `code` is started again, after `restarts` times before.
    pub fn wants(self, code: u8, restarts: u32) -> bool {
        match self {
            Policy::No => false,
            Policy::Always => true,
            Policy::OnFailure { most } => code != 0 && most.is_none_or(|most| restarts < most),
        }
    }
}

/// How long to wait before the next start.
pub struct Backoff {
    next: Duration,
    started: Instant,
}

impl Backoff {
    pub fn new() -> Self {
        Self { next: SHORTEST, started: Instant::now() }
    }

    /// It ended.
    pub fn wait(&mut self) -> Duration {
        if self.started.elapsed() >= SETTLED {
            self.next = SHORTEST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }

    /// It was started again.
    pub fn started(&mut self) {
        self.started = Instant::now();
    }
}

/// A command in the guest that says how its service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// For `sh -c`.
    pub command: String,
    pub interval_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Kill an unhealthy service: its restart policy decides what comes next.
    pub kills: bool,
}

/// What the flags mean.
///
/// # Errors
/// Words that are none, flags without the one that they belong to.
pub fn resolve(keep: &args::Keep, detach: bool) -> Result<(Policy, Option<HealthCheck>)> {
    let policy: Policy = match &keep.restart {
        Some(word) => word.parse().map_err(anyhow::Error::msg)?,
        None => Policy::No,
    };
    let Some(command) = &keep.health_cmd else {
        if policy != Policy::No && !detach {
            bail!("--restart needs -d: in the foreground nobody is left to start it again");
        }
        return Ok((policy, None));
    };
    if !detach {
        bail!(
            "--health-cmd and --restart need -d: in the foreground nobody is left to look after the machine"
        );
    }
    let interval: spec::Duration = keep.health_interval.parse().map_err(anyhow::Error::msg)?;
    let check = HealthCheck {
        command: command.clone(),
        interval_ms: u64::try_from(interval.0.as_millis()).unwrap_or(u64::MAX).max(1),
        retries: keep.health_retries.max(1),
        kills: keep.health_on_failure == args::OnFailure::Kill,
    };
    Ok((policy, Some(check)))
}

/// Looks after a machine's health until it ends.
pub fn look_after(vmm: Arc<Vmm>, instance: Arc<Instance>, check: HealthCheck) -> std::io::Result<()> {
    let body = move || {
        let mut failures = 0u32;
        let mut said = None;
        while vmm.machine().wait(Some(Duration::from_millis(check.interval_ms))).is_none() {
            failures = match is_well(&vmm, &check) {
                Some(true) => 0,
                Some(false) => failures.saturating_add(1),
                None => continue,
            };
            let health = match failures {
                0 => Health::Healthy,
                n if n >= check.retries => Health::Unhealthy,
                _ => continue,
            };
            if said.replace(health) != Some(health) {
                let _ = instance.update(|record| record.health = Some(health));
            }
            if health == Health::Unhealthy && check.kills {
                kill_service(&vmm);
                failures = 0;
            }
        }
    };
    std::thread::Builder::new().name("health".into()).spawn(body).map(drop)
}

/// Asks once; `None` when the machine stands still for a snapshot, or goes down.
fn is_well(vmm: &Vmm, check: &HealthCheck) -> Option<bool> {
    vmm.wait_while_standing();
    let limit = Duration::from_millis(check.interval_ms).clamp(Duration::from_secs(1), LOOK);
    let stream = vmm.connect().ok()?;
    // The guest counts the time; one that does not answer at all is not well.
    stream.set_read_timeout(Some(limit * 2)).ok()?;
    let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), check.command.clone()];
    let timeout_ms = limit.as_millis() as u64;
    let spec = ReadySpec {
        probe: Probe::Exec(ExecSpec { argv, ..ExecSpec::default() }),
        timeout_ms,
        // One try: the next comes with the next look.
        interval_ms: u32::try_from(timeout_ms).unwrap_or(u32::MAX),
        needs_service: false,
    };
    match Client::new(stream).call(&Request::Ready(spec)) {
        Ok(_) => Some(true),
        Err(e) if e.kind() == ErrorKind::Busy => None,
        Err(_) => Some(false),
    }
}

fn kill_service(vmm: &Vmm) {
    let signal = SignalSpec { signal: KILL, group: true };
    // A service that ended meanwhile is what was wanted.
    if let Ok(stream) = vmm.connect() {
        let _ = Client::new(stream).call(&Request::Kill { session: vmm.main().session, signal });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_and_decide() {
        let policy = |word: &str| word.parse::<Policy>().unwrap();
        assert!(!policy("no").wants(1, 0));
        assert!(policy("always").wants(0, 1000) && policy("unless-stopped").wants(0, 0));
        assert!(policy("on-failure").wants(1, 1000) && !policy("on-failure").wants(0, 0));
        assert!(policy("on-failure:2").wants(9, 1) && !policy("on-failure:2").wants(9, 2));
        for word in ["", "never", "on-failure:", "on-failure:x", "always:3"] {
            assert!(word.parse::<Policy>().is_err(), "{word}");
        }
    }

    #[test]
    fn waits_grow_to_a_limit() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..12).map(|_| backoff.wait().as_millis()).collect();
        assert_eq!((waits[0], waits[1], waits[5], waits[11]), (100, 200, 3200, 60_000));
    }
}
