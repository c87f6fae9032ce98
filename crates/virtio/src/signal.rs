//! What a device tells its driver besides used buffers: interrupts, configuration changes, defeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bus::IrqLine;

use crate::features::status;

/// InterruptStatus bit: the device used a buffer (4.2.2).
const USED_BUFFER: u32 = 1;
/// InterruptStatus bit: the configuration changed.
const CONFIG_CHANGE: u32 = 2;

/// The device's end of the interrupt, shared by the transport and the device's threads.
///
/// The line is edge-triggered: each event sets its status bit first and then sends one edge, so a
/// driver that read the status before the bit was set gets another interrupt.
pub struct Signal {
    line: Arc<dyn IrqLine>,
    pending: AtomicU32,
    /// Queues with something left to do.
    later: AtomicU32,
    pub(crate) generation: AtomicU32,
    /// Device status (2.1), here because a device may set NEEDS_RESET.
    pub(crate) status: AtomicU32,
}

impl Signal {
    pub(crate) fn new(line: Arc<dyn IrqLine>) -> Self {
        let zero = || AtomicU32::new(0);
        Self { line, pending: zero(), later: zero(), generation: zero(), status: zero() }
    }

    fn raise(&self, bits: u32) {
        self.pending.fetch_or(bits, Ordering::AcqRel);
        self.line.pulse();
    }

    /// Buffers were put in a used ring and the driver wants to know.
    pub fn used(&self) {
        self.raise(USED_BUFFER);
    }

    /// A device left a queue before it was empty. The driver is interrupted whether it wants that or not, and when it
    /// acknowledges the device is notified again: the rest is done, on the driver's own time.
    pub fn later(&self, queue: usize) {
        // No device has as many as 32.
        self.later.fetch_or(1u32.checked_shl(queue as u32).unwrap_or(0), Ordering::AcqRel);
        self.used();
    }

    /// The queues that [`Signal::later`] named since the last call.
    pub(crate) fn take_later(&self) -> u32 {
        self.later.swap(0, Ordering::AcqRel)
    }

    /// The configuration space reads differently from now on.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status.load(Ordering::Acquire) & status::DRIVER_OK != 0 {
            self.raise(CONFIG_CHANGE);
        }
    }

    /// The driver broke a rule that leaves the device without a way on (2.1.2).
    pub fn needs_reset(&self) {
        let old = self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        if old & status::NEEDS_RESET == 0 && old & status::DRIVER_OK != 0 {
            self.raise(CONFIG_CHANGE);
        }
    }

    pub(crate) fn pending(&self) -> u32 {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.pending.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(crate) fn set_pending(&self, bits: u32) {
        self.pending.store(bits & (USED_BUFFER | CONFIG_CHANGE), Ordering::Release);
    }

    /// Sends the edge once more for what is not acknowledged.
    pub(crate) fn repeat(&self) {
        if self.pending() != 0 {
            self.line.pulse();
        }
    }
}
