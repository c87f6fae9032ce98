//! The local APIC's timer (SDM vol. 3, 11.5.4): one-shot, periodic, TSC-deadline.

use crate::clock::Clock;

/// Timer modes in LVT bits 18:17.
pub(super) mod timer_mode {
    pub const SHIFT: u32 = 17;
    pub const ONE_SHOT: u32 = 0;
    pub const PERIODIC: u32 = 1;
    pub const TSC_DEADLINE: u32 = 2;
}

/// Shortest period: a guest that asks for less would only make itself wait.
const MIN_PERIOD_NS: u64 = 20_000;

/// When it is due. The counting modes count at 1 GHz before the divider, as KVM's do.
#[derive(Debug, Default)]
pub(super) struct Timer {
    /// Clock time at which it expires.
    due_ns: Option<u64>,
    /// Periodic: time between expiries.
    period_ns: u64,
    /// TSC-deadline as written, 0 when disarmed.
    deadline: u64,
}

/// Nanoseconds per count of a divide configuration register value (SDM vol. 3, figure 11-10).
fn divider(divide_config: u32) -> u64 {
    let code = (divide_config & 3) | ((divide_config >> 1) & 4);
    1 << ((code + 1) & 7)
}

impl Timer {
    /// Starts a count of `count` (0 stops); periodic or once.
    pub(super) fn start(&mut self, clock: &Clock, count: u32, divide_config: u32, periodic: bool) {
        self.start_from(clock, count, count, divide_config, periodic);
    }

    /// Starts with `left` of `initial` counts to go.
    pub(super) fn start_from(
        &mut self,
        clock: &Clock,
        initial: u32,
        left: u32,
        divide_config: u32,
        periodic: bool,
    ) {
        let unit = divider(divide_config);
        self.deadline = 0;
        self.due_ns = None;
        self.period_ns = 0;
        if initial == 0 || (left == 0 && !periodic) {
            return;
        }
        if periodic {
            self.period_ns = (u64::from(initial) * unit).max(MIN_PERIOD_NS);
        }
        self.due_ns = Some(clock.now_ns().saturating_add(u64::from(left) * unit));
    }

    /// Counts that remain.
    pub(super) fn current(&self, clock: &Clock, divide_config: u32) -> u32 {
        let Some(due) = self.due_ns.filter(|_| self.deadline == 0) else { return 0 };
        let left = due.saturating_sub(clock.now_ns());
        u32::try_from(left / divider(divide_config)).unwrap_or(u32::MAX)
    }

    /// Arms the TSC deadline (0 disarms), for a vCPU whose TSC is ahead by `tsc_offset`.
    pub(super) fn set_deadline(&mut self, clock: &Clock, deadline: u64, tsc_offset: u64) {
        self.deadline = deadline;
        self.period_ns = 0;
        self.due_ns = (deadline != 0).then(|| {
            let now = clock.now_ns();
            let tsc = clock.tsc_at(now).wrapping_add(tsc_offset);
            now.saturating_add(clock.ns_of_ticks(deadline.saturating_sub(tsc)))
        });
    }

    /// The TSC deadline as armed, else 0.
    pub(super) fn deadline(&self) -> u64 {
        self.deadline
    }

    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    pub(super) fn due(&self) -> Option<u64> {
        self.due_ns
    }

    /// True once for each expiry; periods that were missed count as one.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let Some(due) = self.due_ns.filter(|due| *due <= now) else { return false };
        self.deadline = 0;
        self.due_ns = (self.period_ns > 0).then(|| {
            let next = due.saturating_add(self.period_ns);
            if next > now { next } else { now + self.period_ns - (now - due) % self.period_ns }
        });
        true
    }
}
