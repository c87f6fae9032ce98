//! Waiting for many things at once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// What to wait for. The end of a stream counts as readable, and always wakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
}

impl Interest {
    /// Readable only.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Both.
    pub const BOTH: Self = Self { readable: true, writable: true };
}

/// One thing that became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What [`Poller::add`] was given.
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
    /// That less was read than asked for does not mean that all was read: the stream's end follows, or an urgent mark
    /// (tcp(7)) stops a read. Otherwise it does, for a stream (epoll(7)).
    pub drain: bool,
    /// The other end is gone: nothing can be written, and after what is left nothing is read.
    pub closed: bool,
}

/// Waits without cost. Edge-triggered: tells of a change once, so its user reads or writes until
/// the kernel says "would block". Callable from several threads.
#[derive(Debug)]
pub struct Poller {
    fd: OwnedFd,
}

impl Poller {
    /// Waits for nothing yet.
    ///
    /// # Errors
    /// The kernel's: out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches `source`; what is ready already is told at once.
    ///
    /// # Errors
    /// The kernel's: watched already, over a limit.
    pub fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.fd, source, epoll::EventData::new_u64(token), flags(interest))?)
    }

    /// Changes what `source` is watched for, and tells at once what is ready.
    ///
    /// # Errors
    /// The kernel's: not watched.
    pub fn modify(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.fd, source, epoll::EventData::new_u64(token), flags(interest))?)
    }

    /// Watches `source` no longer. (Closing it does the same.)
    ///
    /// # Errors
    /// The kernel's: not watched.
    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.fd, source)?)
    }

    /// Waits until something is ready or the time is over (`None`: for ever) and puts it in
    /// `ready`, which is emptied first. A signal ends the wait with nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = [std::mem::MaybeUninit::uninit(); 64];
        let got = match epoll::wait(&self.fd, &mut events, timeout.as_ref()) {
            Ok((got, _)) => got,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        ready.extend(got.iter().map(|event| {
            let f = event.flags;
            let closed = f.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            let drain = closed || f.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::PRI);
            Ready {
                token: event.data.u64(),
                readable: drain || f.contains(epoll::EventFlags::IN),
                writable: f.contains(epoll::EventFlags::OUT),
                drain,
                closed,
            }
        }));
        Ok(())
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::ET;
    if interest.readable {
        flags |= epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::PRI;
    }
    if interest.writable {
        flags |= epoll::EventFlags::OUT;
    }
    flags
}
