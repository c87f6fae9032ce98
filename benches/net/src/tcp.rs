//! One TCP connection of the guest, as little as a link that is in order needs: a window each way, an acknowledgement
//! for each batch, and going back to the last acknowledged byte where something was lost.

use crate::frames::{ACK, FIN, HEADERS, Out, PSH, RST, SYN, Segment};

/// Our receive window in units of `1 << WINDOW_SHIFT`: 8 MiB.
const WINDOW: u16 = u16::MAX;
/// Equal acknowledgements that mean a loss (RFC 5681).
const DUPLICATES: u8 = 3;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Opening,
    Open,
    /// Reset by the other side.
    Reset,
}

/// See the module.
pub struct Tcp {
    pub state: State,
    local: u16,
    remote: u16,
    /// What we take, told in the SYN.
    offer: u16,
    /// What the other side takes.
    mss: usize,
    shift: u8,
    window: u32,
    first: u32,
    una: u32,
    next: u32,
    /// The sequence number behind the last byte that is to be sent.
    end: u32,
    /// To be said after the last byte.
    closing: bool,
    expected: u32,
    /// In-order bytes received.
    pub received: u64,
    /// The other side said its last.
    pub ended: bool,
    duplicates: u8,
    owes_ack: bool,
    /// Times that sending went back.
    pub losses: u64,
}

impl Tcp {
    /// A connection whose SYN is due. `offer`: the largest segment that we take.
    pub fn new(local: u16, remote: u16, offer: u16) -> Self {
        // Any will do, and different ones for connections that follow each other on one port.
        let first = u32::from(local).wrapping_mul(0x9e37_79b9) ^ u32::from(remote) << 7;
        Self {
            state: State::Opening,
            local,
            remote,
            offer,
            mss: 536,
            shift: 0,
            window: 0,
            first,
            una: first,
            next: first,
            end: first.wrapping_add(1),
            closing: false,
            expected: 0,
            received: 0,
            ended: false,
            duplicates: 0,
            owes_ack: false,
            losses: 0,
        }
    }

    /// Asks for `bytes` more to be sent: less than 2 GiB at a time.
    pub fn send(&mut self, bytes: u32) {
        self.end = self.end.wrapping_add(bytes);
    }

    /// Sends segments of at most `mss` bytes, whatever the other side takes.
    pub fn limit_segments(&mut self, mss: u16) {
        self.mss = self.mss.min(mss.into());
    }

    /// Ends the guest's direction after what was asked for.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Bytes that are not acknowledged, a FIN not counted.
    pub fn unacknowledged(&self) -> u32 {
        let left = self.end.wrapping_sub(self.una);
        if left > 1 << 31 { 0 } else { left }
    }

    /// Both directions ended, and the other side knows.
    pub fn is_over(&self) -> bool {
        let all = self.end.wrapping_add(u32::from(self.closing));
        self.state == State::Reset || (self.closing && self.ended && self.una == all && !self.owes_ack)
    }

    /// Takes a segment.
    pub fn take(&mut self, segment: &Segment<'_>) {
        if segment.flags & RST != 0 {
            self.state = State::Reset;
            return;
        }
        if self.state == State::Opening {
            return self.open(segment);
        }
        if segment.flags & SYN != 0 {
            self.owes_ack = true;
            return;
        }
        self.acknowledged(segment);
        let len = segment.payload.len() as u32;
        let fin = segment.flags & FIN != 0;
        if len == 0 && !fin {
            return;
        }
        self.owes_ack = true;
        if segment.seq == self.expected && !self.ended {
            self.expected = self.expected.wrapping_add(len + u32::from(fin));
            self.received += u64::from(len);
            self.ended = fin;
        }
    }

    fn open(&mut self, segment: &Segment<'_>) {
        if segment.flags & (SYN | ACK) != SYN | ACK || segment.ack != self.first.wrapping_add(1) {
            return;
        }
        self.state = State::Open;
        self.mss = usize::from(segment.mss()).min(usize::from(u16::MAX) - HEADERS);
        self.shift = segment.window_shift().unwrap_or(0);
        self.window = segment.window.into();
        (self.una, self.next) = (segment.ack, segment.ack);
        self.expected = segment.seq.wrapping_add(1);
        self.owes_ack = true;
    }

    fn acknowledged(&mut self, segment: &Segment<'_>) {
        let window = u32::from(segment.window) << self.shift;
        let news = segment.ack.wrapping_sub(self.una);
        if news > 0 && news <= self.end.wrapping_add(1).wrapping_sub(self.una) {
            self.una = segment.ack;
            self.duplicates = 0;
            // Behind what was sent again lies what had arrived.
            if self.next.wrapping_sub(self.una) > 1 << 31 {
                self.next = self.una;
            }
        } else if news == 0 && segment.payload.is_empty() && self.window == window && self.una != self.next {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == DUPLICATES {
                self.go_back();
            }
        }
        self.window = window;
    }

    /// Sends again from the last acknowledged byte, if there is anything.
    pub fn go_back(&mut self) {
        if self.next != self.una {
            self.losses += 1;
            self.next = self.una;
        }
    }

    /// The next segment that is due.
    pub fn due(&mut self) -> Option<Out> {
        if self.state == State::Reset {
            return None;
        }
        if self.state == State::Opening {
            if self.next != self.first {
                return None;
            }
            self.next = self.first.wrapping_add(1);
            return Some(Out { mss: Some(self.offer), seq: self.first, flags: SYN, ..self.out() });
        }
        let left = self.end.wrapping_sub(self.next);
        let fin_sent = left > 1 << 31;
        let room = self.window.saturating_sub(self.next.wrapping_sub(self.una));
        let payload = if fin_sent { 0 } else { left.min(room).min(self.mss as u32) };
        let fin = self.closing && !fin_sent && left == payload;
        if payload == 0 && !fin && !self.owes_ack {
            return None;
        }
        self.owes_ack = false;
        let out = Out { payload: payload as usize, ..self.out() };
        self.next = self.next.wrapping_add(payload + u32::from(fin));
        let more = if fin { FIN } else { 0 } | if payload > 0 { PSH } else { 0 };
        Some(Out { flags: ACK | more, ..out })
    }

    fn out(&self) -> Out {
        Out {
            from: self.local,
            to: self.remote,
            seq: self.next,
            ack: self.expected,
            flags: ACK,
            window: WINDOW,
            mss: None,
            payload: 0,
        }
    }
}
