//! A point at which processes wait for each other.

use std::io::{self, PipeReader, PipeWriter};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Processes that were split off from one ([`crate::split`]) wait here until each of them has come.
///
/// Strategy: the writing end of a pipe, of which each process inherits a copy. Who has come closes its own; when all are
/// closed the reading end says so to everybody at once. A process that ends has come: the kernel closes what it had.
#[derive(Debug)]
pub struct Rendezvous {
    absent: Mutex<Option<PipeWriter>>,
    all: PipeReader,
}

impl Rendezvous {
    /// To be made before the processes are split off. The one that they are split off from has to come, too.
    ///
    /// # Errors
    /// The kernel's: too many open files.
    pub fn new() -> io::Result<Self> {
        let (all, absent) = io::pipe()?;
        Ok(Self { absent: Mutex::new(Some(absent)), all })
    }

    /// This process has come; again and again is the same as once.
    pub fn come(&self) {
        drop(self.absent.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Waits until all have come, at most `limit`; whether they have.
    pub fn wait(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            // POLLHUP is told whether or not it is asked for (poll(2)).
            let mut polled = [PollFd::new(&self.all, PollFlags::empty())];
            match rustix::event::poll(&mut polled, Some(&left)) {
                Err(Errno::INTR) => {}
                told => return told == Ok(1),
            }
        }
    }
}
