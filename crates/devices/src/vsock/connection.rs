//! One connection: credit, both directions, shutdown. Knows no queue.
//!
//! Credit (5.10.6.3): either side may have in flight what the other's last header said its buffer
//! holds, less what it has not forwarded yet. All counters are free-running 32-bit numbers.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;

use super::packet::{Header, NO_RECEIVE, NO_SEND, Op, Ports};
use super::{CHUNK, WINDOW};

/// Bytes read from a stream at a time, until once there were more.
const SMALL: usize = 4096;
/// Tell the guest of taken bytes when this many were taken since it last heard.
const TELL: u32 = WINDOW / 4;

/// How far a connection is.
pub enum Phase {
    /// We asked, the guest has not answered; who waits for it, and the end that it will get.
    Connecting(SyncSender<bool>),
    Open,
    /// The guest is done with it; only bytes that wait for the host's reader are left.
    Draining,
}

/// One connection.
pub struct Connection {
    pub ports: Ports,
    pub phase: Phase,
    /// Our end; `None` when the host's end is closed and everything was said.
    stream: Option<UnixStream>,
    /// In the list of those that have something for the guest.
    pub queued: bool,
    /// The poller also watches for room in the stream.
    pub watching_room: bool,
    /// The host's reader is waited for, so that there is never a backlog.
    pub patient: bool,

    to_host: VecDeque<u8>,
    /// Bytes that came from the guest, that were taken from it, and that it knows were.
    received: u32,
    forwarded: u32,
    told: u32,
    /// Shutdown flags of the guest.
    guest_shutdown: u32,

    from_host: Option<Buffer>,
    /// The stream may have more to read.
    readable: bool,
    /// The host will send no more; the host will receive no more.
    host_ended: bool,
    host_deaf: bool,
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// Shutdown flags that the guest was told.
    shutdown_told: u32,

    owe_greeting: Option<Op>,
    owe_credit: bool,
    owe_credit_request: bool,
    asked_credit: bool,
}

/// What to send to the guest next.
pub enum Next {
    Nothing,
    Control(Op, u32),
    /// So many bytes are ready: [`Connection::data`].
    Data(usize),
}

/// The guest broke the rules of the protocol.
pub struct Violation;

impl Connection {
    /// A connection whose first packet to the guest is `greeting`.
    pub fn new(ports: Ports, phase: Phase, stream: UnixStream, greeting: Op) -> Self {
        Self {
            ports,
            phase,
            stream: Some(stream),
            queued: false,
            watching_room: false,
            patient: false,
            to_host: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            guest_shutdown: 0,
            from_host: None,
            readable: true,
            host_ended: false,
            host_deaf: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            shutdown_told: 0,
            owe_greeting: Some(greeting),
            owe_credit: false,
            owe_credit_request: false,
            asked_credit: false,
        }
    }

    /// Our end of the stream, while there is one.
    pub fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// Bytes wait for the host's reader.
    pub fn has_backlog(&self) -> bool {
        !self.to_host.is_empty()
    }

    /// The host's end is gone and the guest knows all: only its last word is missing.
    pub fn is_spent(&self) -> bool {
        self.stream.is_none()
    }

    /// Whether the guest knows of it: all but those that we have not asked for yet.
    pub fn is_known(&self) -> bool {
        self.owe_greeting != Some(Op::Request)
    }

    /// Takes the sender's view of its buffer from a header of the guest.
    pub fn update_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.guest_room() > 0 {
            self.asked_credit = false;
            self.owe_credit_request = false;
        }
    }

    /// Bytes that the guest has room for.
    fn guest_room(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// The guest wants to know our credit.
    pub fn owe_credit(&mut self) {
        self.owe_credit = true;
    }

    /// Checks that the guest may send `len` bytes now; to be followed by [`Self::receive`].
    ///
    /// # Errors
    /// [`Violation`] when that is more than its credit, or after it said it would send no more.
    pub fn expect(&mut self, len: u32) -> Result<(), Violation> {
        let waiting = self.received.wrapping_sub(self.forwarded);
        if len > WINDOW.saturating_sub(waiting) || len > 0 && self.guest_shutdown & NO_SEND != 0 {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Takes bytes of the guest: to the stream, and what does not fit there into the backlog.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        if self.to_host.is_empty() {
            let taken = write_some(self.stream.as_mut(), &mut self.host_deaf, self.patient, bytes);
            self.forward(taken);
            bytes = &bytes[taken..];
        }
        self.to_host.extend(bytes);
    }

    fn forward(&mut self, len: usize) {
        self.forwarded = self.forwarded.wrapping_add(len as u32);
        if self.forwarded.wrapping_sub(self.told) >= TELL {
            self.owe_credit = true;
        }
    }

    /// Moves backlog to the stream; when all is there and the guest ended, the host sees the end.
    pub fn flush(&mut self) {
        while !self.to_host.is_empty() {
            let (front, _) = self.to_host.as_slices();
            let all = front.len();
            let taken = write_some(self.stream.as_mut(), &mut self.host_deaf, self.patient, front);
            self.forward(taken);
            self.to_host.drain(..taken);
            if taken < all {
                return;
            }
        }
        self.to_host = VecDeque::new();
        if self.guest_shutdown & NO_SEND != 0
            && let Some(stream) = &self.stream
        {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// The guest said what it will no longer do; `true` when that is everything.
    pub fn guest_shuts_down(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & (NO_RECEIVE | NO_SEND);
        if self.guest_shutdown & NO_RECEIVE != 0
            && let Some(stream) = &self.stream
        {
            let _ = stream.shutdown(Shutdown::Read);
            self.drop_input();
        }
        self.flush();
        self.guest_shutdown == NO_RECEIVE | NO_SEND
    }

    /// The guest is gone: nothing more goes to it, the host still gets what it sent.
    pub fn detach(&mut self) {
        self.phase = Phase::Draining;
        self.owe_greeting = None;
        self.guest_shuts_down(NO_RECEIVE | NO_SEND);
    }

    fn drop_input(&mut self) {
        self.from_host = None;
        self.readable = false;
        self.host_ended = true;
        self.shutdown_told |= NO_SEND;
    }

    /// The poller saw something on the stream.
    pub fn stream_ready(&mut self, readable: bool, closed: bool) {
        self.readable |= readable && !self.host_ended;
        self.host_deaf |= closed;
        if self.has_backlog() {
            self.flush();
        }
    }

    /// What the guest should get next; reads from the stream when there is room for it.
    pub fn next(&mut self, spare: &mut Spare) -> Next {
        if let Some(op) = self.owe_greeting.take() {
            return Next::Control(op, 0);
        }
        if !matches!(self.phase, Phase::Open) {
            return Next::Nothing;
        }
        let ready = self.fill(spare);
        if ready > 0 {
            return Next::Data(ready);
        }
        if std::mem::take(&mut self.owe_credit) {
            return Next::Control(Op::CreditUpdate, 0);
        }
        if std::mem::take(&mut self.owe_credit_request) {
            self.asked_credit = true;
            return Next::Control(Op::CreditRequest, 0);
        }
        let ended = self.host_ended && self.pending().is_empty();
        let flags = if ended { NO_SEND } else { 0 } | if self.host_deaf { NO_RECEIVE } else { 0 };
        if flags & !self.shutdown_told == 0 {
            return Next::Nothing;
        }
        self.shutdown_told |= flags;
        if self.shutdown_told == NO_RECEIVE | NO_SEND {
            self.stream = None;
        }
        Next::Control(Op::Shutdown, self.shutdown_told)
    }

    fn pending(&self) -> &[u8] {
        self.from_host.as_ref().map_or(&[], |b| b.bytes.get(b.start..b.end).unwrap_or(&[]))
    }

    /// Makes sure that something is pending if the stream has it and the guest has room; returns
    /// how much may be sent.
    fn fill(&mut self, spare: &mut Spare) -> usize {
        let room = self.guest_room() as usize;
        if self.pending().is_empty() {
            spare.put(self.from_host.take());
            if self.readable && room > 0 {
                self.read_stream(room, spare);
            }
        }
        if room == 0 && (self.readable || !self.pending().is_empty()) {
            self.owe_credit_request |= !self.asked_credit;
        }
        self.pending().len().min(room)
    }

    fn read_stream(&mut self, room: usize, spare: &mut Spare) {
        let mut buffer = spare.take();
        let limit = room.min(buffer.bytes.len());
        while let Some(stream) = self.stream.as_mut() {
            match stream.read(&mut buffer.bytes[..limit]) {
                Ok(0) => self.host_ended = true,
                Ok(n) => {
                    buffer.end = n;
                    spare.large |= n == buffer.bytes.len();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.host_ended = true,
            }
            break;
        }
        // Until the stream says that it is empty: its end would not be told a second time.
        self.readable = buffer.end > 0;
        if self.readable { self.from_host = Some(buffer) } else { spare.put(Some(buffer)) }
    }

    /// The next bytes, at most `max`; they count as sent.
    pub fn data(&mut self, max: usize) -> &[u8] {
        let n = self.pending().len().min(max).min(self.guest_room() as usize);
        self.sent = self.sent.wrapping_add(n as u32);
        let Some(buffer) = &mut self.from_host else { return &[] };
        let start = buffer.start;
        buffer.start += n;
        &buffer.bytes[start..start + n]
    }

    /// Completes a header with our credit.
    pub fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = WINDOW;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
        if header.op != Op::CreditRequest {
            self.owe_credit = false;
        }
    }
}

/// Writes what the stream takes now, or all of it (`patient`); a deaf host takes everything.
fn write_some(stream: Option<&mut UnixStream>, deaf: &mut bool, patient: bool, bytes: &[u8]) -> usize {
    let Some(stream) = stream.filter(|_| !*deaf) else { return bytes.len() };
    let mut done = 0;
    while done < bytes.len() {
        match stream.write(&bytes[done..]) {
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock && patient => {
                let waited = stream.set_nonblocking(false).and_then(|()| stream.write_all(&bytes[done..]));
                *deaf |= waited.and(stream.set_nonblocking(true)).is_err();
                return bytes.len();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return done,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                *deaf = true;
                return bytes.len();
            }
        }
    }
    done
}

/// Bytes on their way to the guest.
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A few buffers to use again, so that an idle connection needs none.
#[derive(Default)]
pub struct Spare {
    buffers: Vec<Buffer>,
    /// There is more to read at a time than fits into [`SMALL`]: most machines are asked small things, and many.
    large: bool,
}

impl Spare {
    fn len(&self) -> usize {
        if self.large { CHUNK } else { SMALL }
    }

    fn take(&mut self) -> Buffer {
        let len = self.len();
        let fresh = || Buffer { bytes: vec![0; len].into(), start: 0, end: 0 };
        self.buffers.pop().filter(|buffer| buffer.bytes.len() == len).unwrap_or_else(fresh)
    }

    fn put(&mut self, buffer: Option<Buffer>) {
        let len = self.len();
        if let Some(buffer) = buffer.filter(|buffer| self.buffers.len() < 2 && buffer.bytes.len() == len) {
            self.buffers.push(Buffer { start: 0, end: 0, ..buffer });
        }
    }
}
