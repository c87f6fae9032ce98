//! A pollable alarm on the monotonic clock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Becomes readable once when its time is over. Does not run while the host sleeps.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
}

const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

impl Timer {
    /// Not set.
    ///
    /// # Errors
    /// The kernel's: out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self { fd: timerfd_create(TimerfdClockId::Monotonic, flags)? })
    }

    /// Fires once after `delay` from now (0: at once); `None` takes a setting back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set(&self, delay: Option<Duration>) -> io::Result<()> {
        let value = delay.map_or(NEVER, |d| Timespec {
            tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            // All zeros would mean "never" to the kernel.
            tv_nsec: if d.is_zero() { 1 } else { d.subsec_nanos().into() },
        });
        timerfd_settime(
            &self.fd,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: NEVER, it_value: value },
        )?;
        Ok(())
    }

    /// Whether it fired since it was set or asked last.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.fd, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
