//! epoll with typed tokens.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use std::io;

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A host wants to connect.
    Listener,
    /// A child ended.
    Children,
    /// A connection, by id.
    Conn(u64),
    /// A session's program was executed, or not.
    Start(u64),
    /// A session's output (or terminal).
    Out(u64),
    /// A session's error output.
    Err(u64),
    /// A session's input takes bytes again.
    In(u64),
    /// The guest's end of a forwarded connection.
    Upstream(u64),
}

impl Token {
    fn pack(self) -> u64 {
        let (tag, id) = match self {
            Token::Listener => (0, 0),
            Token::Children => (1, 0),
            Token::Conn(id) => (2, id),
            Token::Start(id) => (3, id),
            Token::Out(id) => (4, id),
            Token::Err(id) => (5, id),
            Token::In(id) => (6, id),
            Token::Upstream(id) => (7, id),
        };
        tag << 56 | id
    }

    fn unpack(word: u64) -> Token {
        let id = word & ((1 << 56) - 1);
        match word >> 56 {
            0 => Token::Listener,
            1 => Token::Children,
            2 => Token::Conn(id),
            3 => Token::Start(id),
            4 => Token::Out(id),
            5 => Token::Err(id),
            6 => Token::In(id),
            _ => Token::Upstream(id),
        }
    }
}

/// What a descriptor is watched for. Nothing means that it is not watched at all: epoll reports a hang-up even when
/// asked for nothing, and level-triggered that would spin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
    /// The other end's closing, without reading.
    pub close: bool,
}

impl Interest {
    /// To read only.
    pub const READ: Interest = Interest { read: true, write: false, close: false };
    /// To write only.
    pub const WRITE: Interest = Interest { read: false, write: true, close: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags.set(EventFlags::RDHUP, self.close);
        flags
    }
}

/// One readiness.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Whose.
    pub token: Token,
    /// Readable, or at its end.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Failed, or closed at both ends.
    pub hangup: bool,
}

/// The set of watched descriptors.
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Brings what `fd` is watched for from `current` to `want`.
    pub fn set(&self, fd: impl AsFd, token: Token, current: &mut Interest, want: Interest) {
        if *current == want {
            return;
        }
        let nothing = Interest::default();
        let data = EventData::new_u64(token.pack());
        // Neither can fail on a live descriptor except for lack of memory; then the event is missed, not invented.
        let _ = match (*current == nothing, want == nothing) {
            (true, _) => epoll::add(&self.epoll, fd, data, want.flags()),
            (false, true) => epoll::delete(&self.epoll, fd),
            (false, false) => epoll::modify(&self.epoll, fd, data, want.flags()),
        };
        *current = want;
    }

    /// Waits for something, at most `timeout_ms` (forever when `None`).
    ///
    /// # Errors
    /// The kernel's; an interruption is an empty answer.
    pub fn wait(&self, timeout_ms: Option<u64>) -> io::Result<Vec<Ready>> {
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; 16];
        let limit = timeout_ms
            .map(|ms| Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000) as i64 * 1_000_000 });
        let (ready, _) = match epoll::wait(&self.epoll, events.as_mut_slice(), limit.as_ref()) {
            Ok(lists) => lists,
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(ready.iter().map(|event| readiness(*event)).collect())
    }
}

fn readiness(event: Event) -> Ready {
    let flags = event.flags;
    Ready {
        token: Token::unpack(event.data.u64()),
        read: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
        write: flags.contains(EventFlags::OUT),
        hangup: flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP),
    }
}
