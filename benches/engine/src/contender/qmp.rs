//! QEMU's control socket (QEMU Machine Protocol; docs/interop/qmp-spec of QEMU 7.2).

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Contender;

/// How long QEMU may take until its socket is there, and to answer.
const LIMIT: Duration = Duration::from_secs(20);

pub struct Qmp {
    to: UnixStream,
    from: Lines<BufReader<UnixStream>>,
    /// When the machine went on, where that was said in between.
    resumed: Option<SystemTime>,
}

impl Qmp {
    /// Waits for the socket of a process that was just started.
    pub fn connect(socket: &Path, qemu: &mut Contender) -> Result<Self> {
        let begun = Instant::now();
        let to = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < LIMIT && qemu.child.try_wait()?.is_none() => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => {
                    let said = std::fs::read_to_string(&qemu.log).unwrap_or_default();
                    return Err(e).with_context(|| format!("QEMU's control socket; it said: {said}"));
                }
            }
        };
        to.set_read_timeout(Some(LIMIT))?;
        let from = BufReader::new(to.try_clone()?).lines();
        let mut this = Self { to, from, resumed: None };
        let greeting = this.next()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greeted with {greeting}");
        }
        this.execute("qmp_capabilities", "")?;
        Ok(this)
    }

    fn next(&mut self) -> Result<Value> {
        let line = self.from.next().context("QEMU hung up")??;
        let said: Value = serde_json::from_str(&line)?;
        if said["event"] == "RESUME" {
            let part = |name: &str| said["timestamp"][name].as_u64().context("an event without its time");
            let since = Duration::from_secs(part("seconds")?) + Duration::from_micros(part("microseconds")?);
            self.resumed = Some(UNIX_EPOCH + since);
        }
        Ok(said)
    }

    /// Has a command done, with arguments as a JSON object; what it gives back, as text. (Between an order and its answer
    /// may come events. Hanging up before the answer would take a command back.)
    pub fn execute(&mut self, command: &str, arguments: &str) -> Result<String> {
        let arguments = if arguments.is_empty() { "{}" } else { arguments };
        writeln!(self.to, "{{\"execute\": \"{command}\", \"arguments\": {arguments}}}")?;
        loop {
            let said = self.next()?;
            if let Some(given) = said.get("return") {
                return Ok(given.to_string());
            }
            if let Some(why) = said.get("error") {
                bail!("QEMU: {command}: {why}");
            }
        }
    }

    /// When a machine that was resumed from a file began to run. (Before somebody listens nothing is said of it.)
    pub fn runs_since(&mut self) -> Result<SystemTime> {
        if self.execute("query-status", "")?.contains("\"running\":true") && self.resumed.is_none() {
            return Ok(SystemTime::now());
        }
        loop {
            if let Some(at) = self.resumed {
                return Ok(at);
            }
            self.next()?;
        }
    }
}
