//! vCPUs in rounds: the same turns in every run.
//!
//! Problem: a run that is to be repeated to the bit must not depend on when a thread of the host comes by.
//!
//! Strategy: vCPUs execute in the order of their numbers, a fixed count of instructions each, and keep their
//! turn while the machine handles their exits. Time is what they have executed: the clock is moved after each
//! piece. A vCPU in HLT is passed over until it is woken or its timer is due; when all of them are, the clock is
//! moved to the first timer.
//!
//! Invariant: as long as nothing but vCPUs (and devices on their threads) wakes vCPUs, every turn begins at the
//! same instruction and the same time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use x86cpu::clock::Clock;

use crate::baton::Seat;

/// Instructions of a turn.
pub(crate) const TURN: u64 = 32_768;
/// Instructions after which the clock is moved.
pub(crate) const PIECE: u64 = 8_192;
/// What an instruction takes.
const NS: u64 = 1;

pub(crate) struct Rounds {
    state: Mutex<State>,
}

struct State {
    /// Whose turn it is; nobody's when all sleep without a timer.
    turn: Option<usize>,
    vcpus: Vec<Rest>,
}

/// What one vCPU waits for.
#[derive(Clone, Copy, Default)]
struct Rest {
    halted: bool,
    woken: bool,
    /// When its timer is due, in nanoseconds of the clock.
    due: Option<u64>,
}

impl Rounds {
    pub(crate) fn new(vcpus: usize) -> Self {
        Self { state: Mutex::new(State { turn: Some(0), vcpus: vec![Rest::default(); vcpus] }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of vCPU `id`; false when it was kicked meanwhile.
    pub(crate) fn take(&self, id: usize, seat: &Seat) -> bool {
        let mut state = self.lock();
        while state.turn != Some(id) && !seat.is_kicked() {
            state = seat.wait_turn(state);
        }
        let mine = state.turn == Some(id);
        if mine {
            state.vcpus[id] = Rest::default();
        }
        mine
    }

    /// Lets a kicked vCPU look.
    pub(crate) fn nudge(&self, seat: &Seat) {
        let _line = self.lock();
        seat.nudge();
    }

    /// So many instructions were executed.
    pub(crate) fn executed(clock: &Clock, instructions: u64) {
        clock.advance(instructions * NS);
    }

    /// The turn of `id` is over.
    pub(crate) fn pass(&self, id: usize, clock: &Clock, seats: &[Seat]) {
        let mut state = self.lock();
        state.next(id, clock, seats);
    }

    /// The same, and `id` is in HLT, its timer due then.
    pub(crate) fn rest(&self, id: usize, due: Option<u64>, clock: &Clock, seats: &[Seat]) {
        let mut state = self.lock();
        let rest = &mut state.vcpus[id];
        (rest.halted, rest.due) = (true, due);
        state.next(id, clock, seats);
    }

    /// Something is in the mailbox of `id`.
    pub(crate) fn wake(&self, id: usize, seats: &[Seat]) {
        let mut state = self.lock();
        state.vcpus[id].woken = true;
        if state.turn.is_none() {
            state.give(id, seats);
        }
    }
}

impl State {
    fn give(&mut self, id: usize, seats: &[Seat]) {
        self.turn = Some(id);
        seats[id].nudge();
    }

    fn next(&mut self, from: usize, clock: &Clock, seats: &[Seat]) {
        let count = self.vcpus.len();
        let round = (1..=count).map(|k| (from + k) % count);
        let now = clock.now_ns();
        let can = |rest: &Rest| !rest.halted || rest.woken || rest.due.is_some_and(|due| due <= now);
        if let Some(id) = round.clone().find(|id| can(&self.vcpus[*id])) {
            return self.give(id, seats);
        }
        // Of several that are due at one time the next in the round: min_by_key gives the first.
        let first =
            round.filter_map(|id| self.vcpus[id].due.map(|due| (id, due))).min_by_key(|(_, due)| *due);
        match first {
            Some((id, due)) => {
                clock.advance(due - now);
                self.give(id, seats);
            }
            None => self.turn = None,
        }
    }
}
