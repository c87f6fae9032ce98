//! What will run often, asked for when the machine has something to do.
//!
//! Most machines that are brought back never come so far, or not soon: neither they nor their first moments pay. Whoever
//! finds that enough has been executed starts a thread that asks; vCPUs go by its answer from when it is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use guestmem::GuestMemory;
use hv::HotSource;
use x86cpu::{Foresight, HotSet};

use crate::kept::Kept;

/// Instructions of a vCPU after which it is asked for: what a guest executes to put itself right and answer one command
/// is less.
pub(crate) const BUSY: u64 = 1_000_000;

/// The same of one that has rested before: less than what a command costs that does nothing.
const WORK: u64 = 300_000;

#[derive(Default)]
pub(crate) struct Foretold {
    /// There is a source; it was not asked.
    given: AtomicBool,
    waits: AtomicBool,
    source: Mutex<Option<(HotSource, GuestMemory)>>,
    set: Foresight,
    /// What there is of it already.
    pub(crate) kept: Arc<Kept>,
}

impl Foretold {
    /// Where the answer will be.
    pub(crate) fn set(&self) -> Foresight {
        Arc::clone(&self.set)
    }

    pub(crate) fn foretell(&self, source: HotSource, memory: &GuestMemory) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some((source, memory.clone()));
        self.given.store(true, Ordering::Release);
        self.waits.store(true, Ordering::Release);
    }

    /// Whether nothing more will be known.
    pub(crate) fn is_settled(&self) -> bool {
        !self.given.load(Ordering::Acquire) || self.set.get().is_some()
    }

    /// Instructions that a vCPU which has executed so many, and `work` since it rested, may go on for before
    /// [`Foretold::look`].
    pub(crate) fn until_look(&self, executed: u64, work: u64) -> u64 {
        let list =
            if self.waits.load(Ordering::Acquire) { BUSY.saturating_sub(executed).max(1) } else { u64::MAX };
        let kept = if self.kept.is_offered() { self.until_work(executed, work).max(1) } else { u64::MAX };
        list.min(kept).min(self.kept.until_look())
    }

    /// Instructions until a vCPU works: what was kept takes memory, and one that wakes now and then does not need it.
    fn until_work(&self, executed: u64, work: u64) -> u64 {
        let least = if work == executed { BUSY } else { WORK };
        least.saturating_sub(work)
    }

    fn take(&self) -> Option<(HotSource, GuestMemory)> {
        let waits = self.waits.load(Ordering::Acquire) && self.waits.swap(false, Ordering::AcqRel);
        waits.then(|| self.source.lock().unwrap_or_else(PoisonError::into_inner).take())?
    }

    /// Asks, once, when so much was executed, or so much `work` was done since the vCPU rested. `done` is called when what
    /// was kept is there.
    pub(crate) fn look(&self, executed: u64, work: u64, done: impl FnOnce() + Send + 'static) {
        let kept = self.kept.is_offered() && self.until_work(executed, work) == 0 && self.kept.await_it();
        let kept = kept.then(|| Arc::clone(&self.kept));
        let list = if executed >= BUSY { self.take() } else { None };
        if list.is_none() && kept.is_none() {
            return;
        }
        let set = self.set();
        let ask = move || {
            // First: what is there need not be made.
            if let Some(kept) = kept {
                kept.read();
                done();
            }
            if let Some((source, memory)) = list {
                let _ = set.set(HotSet::new(&source(), &memory));
            }
        };
        if thread::Builder::new().name("hot-blocks".into()).spawn(ask).is_err() {
            // Then nothing is known, which costs what finding out costs.
            let _ = self.set.set(HotSet::default());
            self.kept.forget();
        }
    }

    /// Asks here, if nobody has.
    pub(crate) fn ask(&self) {
        if let Some((source, memory)) = self.take() {
            let _ = self.set.set(HotSet::new(&source(), &memory));
        }
    }
}
