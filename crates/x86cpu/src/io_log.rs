//! The replay log: how an access that needs the outside happens in the middle of an instruction.
//!
//! The instruction stops with [`Trap::Io`](crate::cpu::Trap::Io) at its first access without an
//! answer. When the answer has come it runs again from its start and finds the answers of its
//! earlier accesses here, in order. The log is cleared when the instruction retires or faults, and
//! by string instructions after each element.

use crate::cpu::Stop;

/// More accesses than any one instruction makes (PUSHA, FXSAVE into MMIO): beyond, it is refused.
const MAX_ACCESSES: usize = 128;

/// Answers of the current instruction's accesses.
#[derive(Debug, Default)]
pub(crate) struct IoLog {
    answers: Vec<u64>,
    next: usize,
    request: Option<Stop>,
    /// A request went out and its answer has not come.
    waiting: bool,
    reply: Option<u64>,
}

impl IoLog {
    /// The answer of the next access of this instruction (any value for writes), or `None` after
    /// `request` was noted for the outside: the caller then returns `Trap::Io`.
    pub(crate) fn access(&mut self, request: impl FnOnce() -> Stop) -> Option<u64> {
        if let Some(answer) = self.answers.get(self.next) {
            self.next += 1;
            return Some(*answer);
        }
        if self.answers.len() >= MAX_ACCESSES {
            self.request = Some(Stop::Unsupported("one instruction made too many device accesses".into()));
        } else {
            self.request = Some(request());
        }
        None
    }

    /// The request that made the instruction stop; from now on its answer is awaited.
    pub(crate) fn take_request(&mut self) -> Option<Stop> {
        self.waiting = self.request.is_some();
        self.reply = None;
        self.request.take()
    }

    /// The outside's answer.
    pub(crate) fn answer(&mut self, value: u64) {
        self.reply = Some(value);
    }

    /// Whether an instruction is half done.
    #[inline(always)]
    pub(crate) fn is_active(&self) -> bool {
        self.waiting || !self.answers.is_empty()
    }

    /// Before the half-done instruction runs again.
    pub(crate) fn rewind(&mut self) {
        if self.waiting {
            self.waiting = false;
            self.answers.push(self.reply.take().unwrap_or(0));
        }
        self.next = 0;
    }

    /// The instruction (or one element of a string instruction) is done.
    pub(crate) fn clear(&mut self) {
        self.answers.clear();
        self.next = 0;
        self.waiting = false;
        self.request = None;
        self.reply = None;
    }
}
