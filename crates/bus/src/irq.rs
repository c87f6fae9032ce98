//! Interrupt lines, as a device sees them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    level: AtomicBool,
    edges: AtomicU64,
}

impl CountingLine {
    /// Rising edges so far.
    pub fn edges(&self) -> u64 {
        self.edges.load(Ordering::Acquire)
    }

    /// Whether the wire is high now.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Acquire)
    }
}

impl IrqLine for CountingLine {
    fn set_level(&self, high: bool) {
        if !self.level.swap(high, Ordering::AcqRel) && high {
            self.edges.fetch_add(1, Ordering::AcqRel);
        }
    }
}
