//! The serial console's keeper: the last of what the guest said, and the agent's first line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bus::lock;

/// Bytes kept in memory.
const TAIL: usize = 16 * 1024;
/// Bytes kept in the log file: a guest that talks forever fills no disk.
const LOG_MAX: u64 = 4 << 20;
/// What the agent's first line ends with (docs/formats/agent-protocol.md).
const READY: &[u8] = b" ready";
const READY_START: &[u8] = b"smolvm-agent ";

/// Collects console output.
pub struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    tail: VecDeque<u8>,
    line: Vec<u8>,
    ready: bool,
    log: Log,
    logged: u64,
}

/// The file that keeps the output, made with its first bytes: most machines that are resumed say nothing.
enum Log {
    No,
    At(PathBuf),
    Made(File),
}

impl Log {
    /// A log that cannot be written is not worth a machine.
    fn write(&mut self, bytes: &[u8]) {
        if let Self::At(path) = self {
            *self = File::options().create(true).append(true).open(path).map_or(Self::No, Self::Made);
        }
        if let Self::Made(file) = self {
            let _ = file.write_all(bytes);
        }
    }
}

impl Console {
    /// `log`: a file that also gets the output, up to a limit.
    pub fn new(log: Option<&Path>) -> Self {
        let log = log.map_or(Log::No, |path| Log::At(path.to_owned()));
        let state = State { tail: VecDeque::new(), line: Vec::new(), ready: false, log, logged: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The output to come is also kept in the file `log`.
    pub fn keep_in(&self, log: &Path) {
        lock(&self.state).log = Log::At(log.to_owned());
    }

    /// What a machine writes to.
    pub fn sink(self: &Arc<Self>) -> machine::Sink {
        let this = self.clone();
        Box::new(move |bytes| this.write(bytes))
    }

    fn write(&self, bytes: &[u8]) {
        let mut state = lock(&self.state);
        if state.logged < LOG_MAX {
            state.logged += bytes.len() as u64;
            state.log.write(bytes);
        }
        for byte in bytes {
            if state.tail.len() == TAIL {
                state.tail.pop_front();
            }
            state.tail.push_back(*byte);
            if *byte == b'\n' {
                state.line.clear();
            } else if state.line.len() < 256 {
                state.line.push(*byte);
                if state.line.ends_with(READY) && contains(&state.line, READY_START) {
                    state.ready = true;
                    self.changed.notify_all();
                }
            }
        }
    }

    /// Waits for the agent's first line, at most `limit`.
    pub fn wait_ready(&self, limit: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.state), limit, |s| !s.ready);
        waited.unwrap_or_else(PoisonError::into_inner).0.ready
    }

    /// The last output, as text.
    pub fn tail(&self) -> String {
        let state = lock(&self.state);
        let bytes: Vec<u8> = state.tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|w| w == part)
}
