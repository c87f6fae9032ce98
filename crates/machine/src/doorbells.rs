//! The thread that answers queue notifications which an engine made events of.
//!
//! Problem: under KVM a vCPU need not come out to notify a device; somebody must wait for the event instead.
//!
//! Strategy: one thread for all queues of a machine; it does a device's work as a vCPU thread would
//! (docs/adr/0032). An engine without such events has none of it.
//!
//! Invariants: while the machine is paused no device works ([`Doorbells::pause`] waits for the one that does). A
//! notification that came just before is not lost: it is answered after the pause, and a machine that was saved
//! meanwhile offers all its queues again when it is restored.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use bus::lock;
use host::{Event, Interest, Poller, Ready};

/// Token of the event that ends the thread; doorbells count from 0.
const STOP: u64 = u64::MAX;

/// What ringing does.
pub(crate) type Answer = Box<dyn Fn() + Send + Sync>;

/// All doorbells of a machine.
#[derive(Default)]
pub(crate) struct Doorbells {
    bells: Vec<(Event, Answer)>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    paused: bool,
    ended: bool,
}

/// The running thread.
pub(crate) struct Ringing {
    doorbells: Arc<Doorbells>,
    stop: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Doorbells {
    pub(crate) fn add(&mut self, event: Event, answer: Answer) {
        self.bells.push((event, answer));
    }

    /// Starts to answer; nothing where there are no doorbells.
    ///
    /// # Errors
    /// The host's: descriptors, threads.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<Option<Ringing>> {
        if self.bells.is_empty() {
            return Ok(None);
        }
        let poller = Poller::new()?;
        let stop = Arc::new(Event::new()?);
        poller.add(&*stop, STOP, Interest::READ)?;
        for (token, (event, _)) in (0u64..).zip(&self.bells) {
            poller.add(event, token, Interest::READ)?;
        }
        let (doorbells, keep) = (self.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("doorbells".into()).spawn(move || {
            // The event must outlive the wait for it.
            let _keep = keep;
            doorbells.answer(&poller);
        })?;
        Ok(Some(Ringing { doorbells: self.clone(), stop, thread: Some(thread) }))
    }

    /// No device works when this returns, and none will before [`Doorbells::resume`].
    pub(crate) fn pause(&self) {
        lock(&self.gate).paused = true;
    }

    pub(crate) fn resume(&self) {
        lock(&self.gate).paused = false;
        self.changed.notify_all();
    }

    fn answer(&self, poller: &Poller) {
        let mut ready: Vec<Ready> = Vec::new();
        while poller.wait(&mut ready, None).is_ok() {
            // Held while devices work: that is what `pause` waits for.
            let gate = lock(&self.gate);
            let gate = self.changed.wait_while(gate, |gate| gate.paused && !gate.ended);
            if gate.unwrap_or_else(PoisonError::into_inner).ended {
                return;
            }
            for (event, answer) in ready.iter().filter_map(|r| self.bells.get(r.token as usize)) {
                event.clear();
                answer();
            }
        }
    }
}

impl Drop for Ringing {
    fn drop(&mut self) {
        lock(&self.doorbells.gate).ended = true;
        self.doorbells.changed.notify_all();
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn a_bell_that_rings_is_answered_except_in_a_pause() {
        let (first, second) = (Event::new().unwrap(), Event::new().unwrap());
        let ring = |event: &Event| event.signal();
        let (sender, answers) = mpsc::channel();
        let mut doorbells = Doorbells::default();
        for (number, event) in [(1, first), (2, second)] {
            let sender = sender.clone();
            doorbells.add(event, Box::new(move || sender.send(number).unwrap()));
        }
        let doorbells = Arc::new(doorbells);
        let thread = doorbells.start().unwrap().unwrap();
        ring(&doorbells.bells[0].0);
        assert_eq!(answers.recv_timeout(SOON), Ok(1));
        doorbells.pause();
        ring(&doorbells.bells[1].0);
        ring(&doorbells.bells[1].0);
        assert_eq!(answers.try_recv(), Err(mpsc::TryRecvError::Empty));
        doorbells.resume();
        assert_eq!(answers.recv_timeout(SOON), Ok(2));
        // Also a thread that waits in a pause ends.
        doorbells.pause();
        ring(&doorbells.bells[0].0);
        drop(thread);
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn without_bells_there_is_no_thread() {
        assert!(Arc::new(Doorbells::default()).start().unwrap().is_none());
    }
}
