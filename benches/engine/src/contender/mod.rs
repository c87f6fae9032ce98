//! The three that do the work, each a child process that answers lines.
//!
//! `soft.rs` and `peer.rs` are machines, `native.rs` a chroot; `peer_image.rs` is what QEMU finds in memory, `qmp.rs` how
//! it is told what to do. Invariant: a child asked for nothing uses no CPU, so that they can wait beside each other.

pub mod native;
pub mod peer;
mod peer_image;
mod qmp;
pub mod soft;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use engine_guest::protocol::{Answer, CALL, READY, Request, UP};

use crate::host;
use crate::setup::Setup;

/// How long a machine may take to boot.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long one answer may take: an interpreter at half of a percent of native gets through.
const ANSWER_LIMIT: Duration = Duration::from_secs(900);

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Native,
    Tcg,
    Soft,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Native, Self::Tcg, Self::Soft];

    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tcg => "tcg",
            Self::Soft => "soft",
        }
    }
}

/// One piece of work done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// By the worker's own clock.
    pub ns: u64,
    /// By the host's clock, from the request to the answer.
    pub wall_ns: u64,
    /// CPU time of the contender's processes meanwhile.
    pub cpu_ns: u64,
    /// Guest instructions, where they are counted.
    pub instructions: u64,
    pub check: u64,
}

/// A contender that is up.
pub struct Contender {
    pub kind: Kind,
    child: Child,
    to: ChildStdin,
    from: Receiver<(Instant, String)>,
    /// From the first guest instruction to the first process's first line.
    pub boot_ns: u64,
    log: std::path::PathBuf,
}

impl Contender {
    /// Starts one and waits until it serves.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(kind: Kind, setup: &Setup, cpus: u32) -> Result<Self> {
        let this = Self::start_unready(kind, setup, cpus)?;
        this.wait_for(|line| line == READY, BOOT_LIMIT).context("waiting until it serves")?;
        Ok(this)
    }

    /// Starts one and waits for its first process only.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_unready(kind: Kind, setup: &Setup, cpus: u32) -> Result<Self> {
        match kind {
            Kind::Native => native::start(setup),
            Kind::Tcg => peer::start(setup, cpus),
            Kind::Soft => soft::start(setup, cpus),
        }
        .with_context(|| format!("starting {}", kind.name()))
    }

    fn spawn(kind: Kind, setup: &Setup, command: &mut Command) -> Result<Self> {
        let log = setup.work.join(format!("{}.log", kind.name()));
        let errors = fs::File::create(&log)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        Ok(Self { kind, child, to, from: lines(from), boot_ns: 0, log })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line that fits, and when it came.
    fn wait_for(&self, fits: impl Fn(&str) -> bool, limit: Duration) -> Result<(Instant, String)> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        loop {
            match self.from.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((at, line)) if fits(line.trim()) => return Ok((at, line.trim().to_owned())),
                Ok((_, line)) => seen.push(line.trim().to_owned()),
                Err(e) => {
                    let why = if e == RecvTimeoutError::Timeout { "did not answer" } else { "ended" };
                    let log = fs::read_to_string(&self.log).unwrap_or_default();
                    let from = seen.len().saturating_sub(20);
                    bail!("{} {why}; it said: {}\n{}", self.kind.name(), seen[from..].join("\n"), log.trim());
                }
            }
        }
    }

    fn say(&mut self, line: &str) -> Result<Instant> {
        let begun = Instant::now();
        self.to.write_all(line.as_bytes()).with_context(|| format!("telling {}", self.kind.name()))?;
        Ok(begun)
    }

    /// Has something done.
    ///
    /// # Errors
    /// It failed, or there was no answer.
    pub fn ask(&mut self, request: &Request) -> Result<Sample> {
        self.ask_line(&request.line())
    }

    /// Has a function of `engine_guest::devices` done.
    ///
    /// # Errors
    /// It failed, or there was no answer.
    pub fn call(&mut self, words: &str) -> Result<Sample> {
        self.ask_line(&format!("{CALL} {words}\n")).with_context(|| format!("{}: {words}", self.kind.name()))
    }

    fn ask_line(&mut self, line: &str) -> Result<Sample> {
        let (cpu, count) = (host::cpu_ns(self.child.id()), self.count()?);
        let begun = self.say(line)?;
        let (at, line) = self.wait_for(is_answer, ANSWER_LIMIT)?;
        let wall_ns = at.duration_since(begun).as_nanos() as u64;
        let cpu_ns = host::cpu_ns(self.child.id()).saturating_sub(cpu);
        let instructions = self.count()?.saturating_sub(count);
        match Answer::parse(&line).map_err(anyhow::Error::msg)? {
            Answer::Done { ns, check } => Ok(Sample { ns, wall_ns, cpu_ns, instructions, check }),
            Answer::Failed(why) => bail!("{why}"),
        }
    }

    /// Guest instructions so far; 0 where nobody counts.
    fn count(&mut self) -> Result<u64> {
        if self.kind != Kind::Soft {
            return Ok(0);
        }
        self.say("!count\n")?;
        let (_, line) = self.wait_for(|line| line.starts_with("count "), ANSWER_LIMIT)?;
        Ok(line["count ".len()..].parse()?)
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of a stream with the times at which they came, read by a thread that ends with the stream.
fn lines(from: impl Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if send.send((Instant::now(), text)).is_err() {
                break;
            }
            line.clear();
        }
    });
    receive
}

/// Whether a console line says what came of a request.
fn is_answer(line: &str) -> bool {
    line.starts_with("done ") || line.starts_with("failed ")
}

/// Whether a console line is the first process's.
fn is_up(line: &str) -> bool {
    line == UP
}
