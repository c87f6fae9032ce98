//! How smolvm speaks: on stderr, in bars on a terminal and lines elsewhere; tables on stdout.

pub mod say;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::ui::say::{say, tell};
use build::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use instance::Error;

/// Prints an error and gives the exit code: 126 and 127 for a command that could not start, else
/// 125.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    tell!("smolvm: {}", told(error));
    let agent = error.chain().find_map(|e| match e.downcast_ref::<Error>() {
        Some(Error::Agent(client)) => Some(client.kind().exit_code()),
        _ => e.downcast_ref::<agent_protocol::ClientError>().map(|c| c.kind().exit_code()),
    });
    ExitCode::from(agent.unwrap_or(125))
}

/// An error and its causes, each said once: many of ours are whole in themselves.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{colon}{cause}");
        }
    }
    text
}

/// Progress of a build: a spinner with the present step on a terminal, lines elsewhere.
pub struct Steps {
    quiet: bool,
    verbose: bool,
    state: Mutex<State>,
}

struct State {
    bar: Option<ProgressBar>,
    begun: Instant,
    current: String,
}

impl Steps {
    pub fn new(quiet: bool, verbose: bool) -> Self {
        Self {
            quiet,
            verbose,
            state: Mutex::new(State { bar: None, begun: Instant::now(), current: String::new() }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends the present step.
    pub fn finish(&self) {
        self.end(&mut self.lock());
    }

    fn end(&self, state: &mut State) {
        if state.current.is_empty() || self.quiet {
            return;
        }
        let line = format!("{:>7.1} s  {}", state.begun.elapsed().as_secs_f64(), state.current);
        match state.bar.take() {
            Some(bar) => {
                bar.finish_and_clear();
                tell!("{line}");
            }
            None => tell!("{line}"),
        }
        state.current.clear();
    }
}

impl Progress for Steps {
    fn step(&self, what: &str) {
        let mut state = self.lock();
        self.end(&mut state);
        state.current = what.to_owned();
        state.begun = Instant::now();
        if !self.quiet && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{elapsed:>9}  {msg} {spinner}") {
                bar.set_style(style);
            }
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            state.bar = Some(bar);
        }
    }

    fn detail(&self, line: &str) {
        let state = self.lock();
        if let Some(bar) = &state.bar {
            bar.set_message(format!("{}: {line}", state.current));
        } else if self.verbose {
            tell!("           {line}");
        }
    }

    fn warn(&self, line: &str) {
        let state = self.lock();
        match &state.bar {
            Some(bar) => bar.suspend(|| tell!("smolvm: {line}")),
            None => tell!("smolvm: {line}"),
        }
    }

    fn output(&self, bytes: &[u8]) {
        if !self.verbose {
            return;
        }
        let state = self.lock();
        let write = || {
            let _ = std::io::stderr().write_all(bytes);
        };
        match &state.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// A table on stdout: columns as wide as their widest cell, two spaces between.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([head.get(i).map_or(0, |h| h.len())]).max().unwrap_or(0)
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.enumerate().map(|(i, c)| format!("{c:<w$}", w = width(i))).collect();
        padded.join("  ").trim_end().to_owned()
    };
    say!("{}", line(&mut head.iter().copied()));
    for row in rows {
        say!("{}", line(&mut row.iter().map(String::as_str)));
    }
}

/// A value as pretty JSON on stdout.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Bytes as people read them.
pub fn bytes(n: u64) -> String {
    artifact::space::words(n)
}

/// A time span as people read it.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}
