//! Code that was kept from before the machine was frozen: when it is read, and who gets it.
//!
//! A machine that is brought back and does little never asks for it. One that works has it read by the thread that reads
//! what else is known ([`crate::foretold`]); each vCPU takes its part between two pieces of its run.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hv::CodeSource;
use x86cpu::{CodePlaces, KeptCode};

/// Nothing is there or comes.
const NONE: u8 = 0;
/// It can be asked for.
const OFFERED: u8 = 1;
/// It is being read.
const AWAITED: u8 = 2;
/// Some vCPU can take some.
const READY: u8 = 3;

/// Instructions that a vCPU executes at a time while it waits: less than a millisecond.
const PIECE: u64 = 1 << 16;

/// Stands before what a vCPU kept, and where one kept nothing.
const HAS_SOME: u8 = 1;
const HAS_NONE: u8 = 0;

/// One part for each vCPU.
type Parts = Vec<Option<Box<KeptCode>>>;

#[derive(Default)]
pub(crate) struct Kept {
    state: AtomicU8,
    source: Mutex<Option<CodeSource>>,
    parts: Mutex<Parts>,
    /// By vCPU: what its code names, of those that have run.
    places: Mutex<Vec<Option<CodePlaces>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    pub(crate) fn offer(&self, source: CodeSource) {
        *lock(&self.source) = Some(source);
        self.state.store(OFFERED, Ordering::Release);
    }

    /// Whether there may be some, read or not.
    pub(crate) fn is_expected(&self) -> bool {
        self.state.load(Ordering::Acquire) != NONE
    }

    /// Instructions that a vCPU may go on for before it looks again.
    pub(crate) fn until_look(&self) -> u64 {
        if matches!(self.state.load(Ordering::Acquire), AWAITED | READY) { PIECE } else { u64::MAX }
    }

    /// Whether it is being read.
    pub(crate) fn is_awaited(&self) -> bool {
        self.state.load(Ordering::Acquire) == AWAITED
    }

    pub(crate) fn is_offered(&self) -> bool {
        self.state.load(Ordering::Acquire) == OFFERED
    }

    /// vCPUs look for their part from here on, until [`Kept::read`] is done; whether that is for the caller to see to.
    pub(crate) fn await_it(&self) -> bool {
        self.is_offered()
            && self.state.compare_exchange(OFFERED, AWAITED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Nothing comes.
    pub(crate) fn forget(&self) {
        self.state.store(NONE, Ordering::Release);
    }

    /// What the code of a vCPU will name; only who has said so gets a part.
    pub(crate) fn say_places(&self, vcpu: usize, places: CodePlaces) {
        let mut all = lock(&self.places);
        let len = all.len().max(vcpu + 1);
        all.resize(len, None);
        all[vcpu] = Some(places);
    }

    /// Reads it, for those vCPUs that have run. What cannot be read is done without.
    pub(crate) fn read(&self) {
        let Some(source) = lock(&self.source).take() else { return };
        let places = lock(&self.places).clone();
        let parts = source().and_then(|mut from| parts(from.as_mut(), &places)).unwrap_or_default();
        let state = if parts.iter().any(Option::is_some) { READY } else { NONE };
        *lock(&self.parts) = parts;
        self.state.store(state, Ordering::Release);
    }

    /// The part of a vCPU, once.
    pub(crate) fn take(&self, vcpu: usize) -> Option<KeptCode> {
        if self.state.load(Ordering::Acquire) != READY {
            return None;
        }
        let mut parts = lock(&self.parts);
        let part = parts.get_mut(vcpu)?.take()?;
        if parts.iter().all(Option::is_none) {
            self.state.store(NONE, Ordering::Release);
        }
        Some(*part)
    }
}

fn parts(from: &mut dyn Read, places: &[Option<CodePlaces>]) -> io::Result<Parts> {
    let mut parts = Vec::with_capacity(places.len());
    for own in places {
        let mut some = [HAS_NONE];
        from.read_exact(&mut some)?;
        if some == [HAS_NONE] {
            parts.push(None);
            continue;
        }
        // The parts behind that of one which has never run are not come to: it has others run first, and will be small.
        let Some(own) = own else { break };
        match KeptCode::read(from, *own)? {
            Some(part) => parts.push(Some(Box::new(part))),
            // Where one is of another build all of them are.
            None => return Ok(Parts::new()),
        }
    }
    Ok(parts)
}

/// Writes the part of a vCPU, which `keep` writes if there is any; whether there is.
pub(crate) fn write(
    to: &mut dyn Write,
    keep: impl FnOnce(&mut dyn Write) -> io::Result<bool>,
) -> io::Result<bool> {
    let mut to = Marked { to, begun: false };
    let some = keep(&mut to)?;
    if !to.begun {
        to.to.write_all(&[HAS_NONE])?;
    }
    Ok(some)
}

/// Writes the mark before the first byte.
struct Marked<'a> {
    to: &'a mut dyn Write,
    begun: bool,
}

impl Write for Marked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.begun, true) {
            self.to.write_all(&[HAS_SOME])?;
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
