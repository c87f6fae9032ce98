//! Who executes, and who sleeps.
//!
//! vCPUs execute at once ([`Gate`]), each on its thread, where the host's memory order is the guest's; now and
//! then one of them has to be alone. Elsewhere they take turns ([`Baton`]); where a run is to be repeatable, in
//! [`Rounds`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use x86cpu::PollFlag;

use crate::rounds::Rounds;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to execute: one vCPU has it, the others wait in line.
#[derive(Default)]
pub(crate) struct Baton {
    line: Mutex<Line>,
    /// Length of the line, for the holder to look at without the lock.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Line {
    held: bool,
    queue: VecDeque<u32>,
}

impl Baton {
    /// Waits for the turn of vCPU `id`; false when it was kicked out of the line.
    pub(crate) fn take(&self, id: u32, seat: &Seat) -> bool {
        let mut line = lock(&self.line);
        if !line.held && line.queue.is_empty() {
            line.held = true;
            return true;
        }
        line.queue.push_back(id);
        self.waiting.store(line.queue.len(), Ordering::Relaxed);
        let mine = |line: &Line| !line.held && line.queue.front() == Some(&id);
        while !mine(&line) && !seat.kicked.load(Ordering::Acquire) {
            line = seat.turn.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        let won = mine(&line);
        line.held |= won;
        line.queue.retain(|other| *other != id);
        self.waiting.store(line.queue.len(), Ordering::Relaxed);
        won
    }

    /// Gives it back and wakes who is next.
    pub(crate) fn pass(&self, seats: &[Seat]) {
        let mut line = lock(&self.line);
        line.held = false;
        if let Some(next) = line.queue.front() {
            seats[*next as usize].turn.notify_one();
        }
    }

    /// Whether somebody waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Makes a kicked vCPU in the line, or the one behind it, look again.
    pub(crate) fn nudge(&self, seats: &[Seat]) {
        let line = lock(&self.line);
        for id in &line.queue {
            seats[*id as usize].turn.notify_one();
        }
    }
}

/// Counts who executes, and lets one be alone.
#[derive(Default)]
pub(crate) struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    vcpus: u32,
    /// Somebody is alone, or waits for it.
    closed: bool,
}

impl Gate {
    fn wait<'a>(&self, inside: MutexGuard<'a, Inside>) -> MutexGuard<'a, Inside> {
        self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes together with others.
    pub(crate) fn together<R>(&self, execute: impl FnOnce() -> R) -> R {
        let mut inside = lock(&self.inside);
        while inside.closed {
            inside = self.wait(inside);
        }
        inside.vcpus += 1;
        drop(inside);
        let _inside = Within(self);
        execute()
    }

    /// Executes while nobody else does: they are asked to stop, and wait.
    pub(crate) fn alone<R>(&self, seats: &[Seat], execute: impl FnOnce() -> R) -> R {
        let mut inside = lock(&self.inside);
        while inside.closed {
            inside = self.wait(inside);
        }
        inside.closed = true;
        seats.iter().filter_map(|seat| seat.poll.get()).for_each(|poll| poll.kick());
        while inside.vcpus > 0 {
            inside = self.wait(inside);
        }
        drop(inside);
        let result = execute();
        lock(&self.inside).closed = false;
        self.changed.notify_all();
        result
    }
}

/// A vCPU that executes. One that panics does not any more, either.
struct Within<'a>(&'a Gate);

impl Drop for Within<'_> {
    fn drop(&mut self) {
        let mut inside = lock(&self.0.inside);
        inside.vcpus -= 1;
        if inside.closed && inside.vcpus == 0 {
            self.0.changed.notify_all();
        }
    }
}

/// How vCPUs share the time.
pub(crate) enum Order {
    Together(Gate),
    Turns(Baton),
    Rounds(Rounds),
}

/// Where one vCPU waits: for its turn, or in HLT.
#[derive(Default)]
pub(crate) struct Seat {
    /// What interrupts it while it executes.
    pub(crate) poll: OnceLock<Arc<PollFlag>>,
    turn: Condvar,
    pub(crate) kicked: AtomicBool,
    woken: Mutex<bool>,
    bell: Condvar,
}

impl Seat {
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }

    /// Waits to be nudged, about the line that `guard` holds.
    pub(crate) fn wait_turn<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.turn.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the vCPU look at its line again; to be called with the line's lock.
    pub(crate) fn nudge(&self) {
        self.turn.notify_one();
    }

    /// Forgets earlier wake-ups; what comes after counts.
    pub(crate) fn clear(&self) {
        *lock(&self.woken) = false;
    }

    pub(crate) fn wake(&self) {
        *lock(&self.woken) = true;
        self.bell.notify_one();
    }

    pub(crate) fn is_woken(&self) -> bool {
        *lock(&self.woken)
    }

    /// Sleeps until woken, since [`Seat::clear`] at the latest, or until the time is over; whether it was woken.
    pub(crate) fn sleep(&self, limit: Option<Duration>) -> bool {
        let woken = lock(&self.woken);
        if let Some(limit) = limit {
            let wait = self.bell.wait_timeout_while(woken, limit, |woken| !*woken);
            *wait.unwrap_or_else(PoisonError::into_inner).0
        } else {
            *self.bell.wait_while(woken, |woken| !*woken).unwrap_or_else(PoisonError::into_inner)
        }
    }
}
