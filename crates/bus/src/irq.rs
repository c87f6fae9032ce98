//! Interrupt lines, as a device sees them.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::lock;

/// One wire from a device to the interrupt controller. Callable from any thread.
pub trait IrqLine: Send + Sync {
    /// One edge: low to high and back. For a device whose every event is a new interrupt.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }

    /// Drives the wire. Setting the level that it has already changes nothing.
    fn set_level(&self, high: bool);
}

/// A wire that ends nowhere.
#[derive(Debug, Default)]
pub struct NoLine;

impl IrqLine for NoLine {
    fn set_level(&self, _high: bool) {}
}

/// A wire that counts its rising edges: for tests of devices without an interrupt controller.
#[derive(Debug, Default)]
pub struct CountingLine {
    /// Level, and edges so far.
    state: Mutex<(bool, u64)>,
    risen: Condvar,
}

impl CountingLine {
    /// Rising edges so far.
    pub fn edges(&self) -> u64 {
        lock(&self.state).1
    }

    /// Whether the wire is high now.
    pub fn level(&self) -> bool {
        lock(&self.state).0
    }

    /// Waits until there were more than `edges` rising edges; `false` after a minute without.
    pub fn wait_beyond(&self, edges: u64) -> bool {
        let state = lock(&self.state);
        let wait = self.risen.wait_timeout_while(state, Duration::from_secs(60), |s| s.1 <= edges);
        !wait.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl IrqLine for CountingLine {
    fn set_level(&self, high: bool) {
        let mut state = lock(&self.state);
        if high && !state.0 {
            state.1 += 1;
            self.risen.notify_all();
        }
        state.0 = high;
    }
}
