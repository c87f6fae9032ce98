//! Running, paused, ended: what the vCPU threads agree on.
//!
//! ```text
//!             resume                 end (power off, reset, fault, kill)
//!   paused <----------> running ----------------------------------------> ended
//!      |       pause                                                        ^
//!      +------------------------------ end -------------------------------->+
//! ```
//! A vCPU is parked when its thread waits in [`Control::may_run`]; `pause` returns when all are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bus::lock;
use hv::Kick;
use serde::{Deserialize, Serialize};

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset (a panic with `panic=-1` does).
    Reset,
    /// The guest's CPU shut down: its kernel is broken.
    TripleFault,
    /// Somebody outside ended it.
    Stopped,
    /// The engine or the host could not go on.
    Failed(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("powered off"),
            Outcome::Reset => f.write_str("asked for a reset"),
            Outcome::TripleFault => f.write_str("its CPU shut down after a triple fault"),
            Outcome::Stopped => f.write_str("was stopped"),
            Outcome::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

const PAUSED: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// The switch.
pub(crate) struct Control {
    /// Mirrors `Inner::phase` for the loop's fast check.
    phase: AtomicU8,
    inner: Mutex<Inner>,
    changed: Condvar,
    kickers: Mutex<Vec<Arc<dyn Kick>>>,
}

#[derive(Default)]
struct Inner {
    /// vCPU threads that wait in `may_run`.
    parked: usize,
    /// vCPU threads that there are.
    threads: usize,
    outcome: Option<Outcome>,
    /// vCPUs that stopped for a debugger and were not told of yet.
    stopped: VecDeque<usize>,
    /// The only vCPU that runs, for a debugger that steps it.
    only: Option<usize>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            phase: AtomicU8::new(PAUSED),
            inner: Mutex::default(),
            changed: Condvar::new(),
            kickers: Mutex::default(),
        }
    }

    /// Registers a vCPU before its thread starts.
    pub(crate) fn add_vcpu(&self, kicker: Arc<dyn Kick>) {
        lock(&self.kickers).push(kicker);
        lock(&self.inner).threads += 1;
    }

    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.phase.load(Ordering::Acquire) == RUNNING
    }

    fn has_ended(&self) -> bool {
        self.phase.load(Ordering::Acquire) == ENDED
    }

    /// Parks the calling vCPU thread until the machine runs; `false` when it has ended.
    pub(crate) fn may_run(&self, vcpu: usize) -> bool {
        let mut inner = lock(&self.inner);
        inner.parked += 1;
        self.changed.notify_all();
        let waits = |inner: &Inner| !self.is_running() || inner.only.is_some_and(|only| only != vcpu);
        while waits(&inner) && !self.has_ended() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.parked -= 1;
        !self.has_ended()
    }

    /// Lets the vCPUs run; nothing when the machine has ended.
    pub(crate) fn resume(&self) {
        let _inner = lock(&self.inner);
        let _ = self.phase.compare_exchange(PAUSED, RUNNING, Ordering::AcqRel, Ordering::Acquire);
        self.changed.notify_all();
    }

    /// Stops the vCPUs; returns when all are parked. `false` when the machine has ended.
    pub(crate) fn pause(&self) -> bool {
        let _ = self.phase.compare_exchange(RUNNING, PAUSED, Ordering::AcqRel, Ordering::Acquire);
        self.kick();
        let mut inner = lock(&self.inner);
        while inner.parked < inner.threads && !self.has_ended() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        !self.has_ended()
    }

    /// A vCPU met a debugger's condition: all stop. It parks next itself.
    pub(crate) fn stop(&self, vcpu: usize) {
        {
            let mut inner = lock(&self.inner);
            inner.stopped.push_back(vcpu);
            let _ = self.phase.compare_exchange(RUNNING, PAUSED, Ordering::AcqRel, Ordering::Acquire);
            self.changed.notify_all();
        }
        self.kick();
    }

    /// Whether a vCPU stopped that nobody was told of.
    pub(crate) fn is_stop_waiting(&self) -> bool {
        !lock(&self.inner).stopped.is_empty()
    }

    /// From now on only this vCPU runs, or all.
    pub(crate) fn restrict(&self, only: Option<usize>) {
        lock(&self.inner).only = only;
    }

    /// The next vCPU that stopped, when all are parked; waits at most `limit`.
    pub(crate) fn stopped(&self, limit: Duration) -> Option<usize> {
        let pending = |inner: &mut Inner| {
            let stands = !inner.stopped.is_empty() && inner.parked == inner.threads;
            !stands && inner.outcome.is_none()
        };
        let waited = self.changed.wait_timeout_while(lock(&self.inner), limit, pending);
        let (mut inner, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() { None } else { inner.stopped.pop_front() }
    }

    /// Ends the machine; the first outcome counts.
    pub(crate) fn end(&self, outcome: Outcome) {
        {
            let mut inner = lock(&self.inner);
            inner.outcome.get_or_insert(outcome);
            self.phase.store(ENDED, Ordering::Release);
            self.changed.notify_all();
        }
        self.kick();
    }

    /// Makes a vCPU's thread look up.
    pub(crate) fn kick_vcpu(&self, vcpu: usize) {
        if let Some(kicker) = lock(&self.kickers).get(vcpu) {
            kicker.kick();
        }
    }

    fn kick(&self) {
        for kicker in lock(&self.kickers).iter() {
            kicker.kick();
        }
    }

    /// The outcome, once there is one; waits at most `limit`.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Option<Outcome> {
        let inner = lock(&self.inner);
        let pending = |inner: &mut Inner| inner.outcome.is_none();
        let inner = match limit {
            None => self.changed.wait_while(inner, pending).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(inner, limit, pending);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        inner.outcome.clone()
    }
}
