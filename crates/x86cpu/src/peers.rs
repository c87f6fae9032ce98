//! What vCPUs that execute at once must know of each other: who may still write by an old permission.
//!
//! Problem: a vCPU decodes a page and has to learn of every later write to it, but other vCPUs hold write tags
//! for the page in their TLBs, which let them write without asking anybody.
//!
//! Strategy: a vCPU *claims* a page in guestmem before it passes the gate for it, and drops its claims together
//! with its write tags when the write epoch has moved, which it looks at between blocks. Who decodes marks the
//! page as code first and then waits for those with a claim, if there are any ([`Peers::wait_for`]): until they
//! have dropped it or do not execute. Whoever writes later finds the mark. A page that nobody else has written
//! lately costs nothing, and one wait settles all claims of a writer.
//!
//! Invariants: a vCPU that does not execute looks at the epoch before it writes again; who waits does not count
//! as executing, so that nobody waits in a circle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use guestmem::GuestMemory;

use crate::cpu::PollFlag;

/// Flag in [`Seat::state`], above the epoch.
const EXECUTES: u64 = 1 << 32;
/// Looks at a peer before the host's scheduler is asked for something else.
const SPINS: u32 = 200;

/// One vCPU, as its peers see it. A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Seat {
    /// The write epoch under which its claims are, and [`EXECUTES`].
    state: AtomicU64,
    poll: OnceLock<Arc<PollFlag>>,
}

/// All vCPUs of a machine.
#[derive(Debug)]
pub(crate) struct Peers {
    seats: Box<[Seat]>,
}

impl Peers {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { seats: (0..vcpus).map(|_| Seat::default()).collect() }
    }

    pub(crate) fn attach(&self, id: u32, poll: &Arc<PollFlag>) {
        if let Some(seat) = self.seats.get(id as usize) {
            let _ = seat.poll.set(Arc::clone(poll));
        }
    }

    fn set(&self, id: u32, state: u64) {
        if let Some(seat) = self.seats.get(id as usize) {
            seat.state.store(state, Ordering::SeqCst);
        }
    }

    /// vCPU `id` executes from now on, its claims being those of `epoch`. It looks at the epoch after this.
    pub(crate) fn enter(&self, id: u32, epoch: u32) {
        self.set(id, EXECUTES | u64::from(epoch));
    }

    /// vCPU `id` does not write before it enters again.
    pub(crate) fn leave(&self, id: u32, epoch: u32) {
        self.set(id, u64::from(epoch));
    }

    /// Waits until no vCPU of `others`, a bit each, writes by a permission that it has now.
    pub(crate) fn wait_for(&self, others: u16, memory: &GuestMemory) {
        let seats = || (0..16).filter(|id| others >> id & 1 != 0).filter_map(|id| self.seats.get(id));
        let now = memory.write_epoch();
        if seats().any(|seat| seat.state.load(Ordering::SeqCst) as u32 == now) {
            memory.move_write_epoch();
        }
        let target = memory.write_epoch();
        for seat in seats() {
            let writes = || {
                let state = seat.state.load(Ordering::SeqCst);
                state & EXECUTES != 0 && (state as u32).wrapping_sub(target) as i32 <= -1
            };
            if !writes() {
                continue;
            }
            if let Some(poll) = seat.poll.get() {
                poll.raise(PollFlag::SYNC);
            }
            let mut looks = 0;
            while writes() {
                looks += 1;
                if looks < SPINS {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    }
}
