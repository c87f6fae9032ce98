//! The thread that waits for the host's streams. It sleeps without a timeout and holds the
//! sockets only weakly: when the last user is gone, so is it.

use std::sync::{Arc, Weak};

use host::{Event, Interest, Poller};

use super::worker::Shared;

/// Token of the event that ends the thread; connections count from 0.
const STOP: u64 = u64::MAX;

/// The thread's owner.
pub struct IoThread {
    poller: Arc<Poller>,
    stop: Arc<Event>,
}

impl IoThread {
    /// Starts it.
    pub fn start(shared: Weak<Shared>) -> std::io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let stop = Arc::new(Event::new()?);
        poller.add(&*stop, STOP, Interest::READ)?;
        let (waiting, keep) = (poller.clone(), stop.clone());
        std::thread::Builder::new().name("vsock".into()).spawn(move || {
            // The event must outlive the wait for it.
            let _keep = keep;
            run(&waiting, &shared);
        })?;
        Ok(Self { poller, stop })
    }

    pub fn poller(&self) -> Arc<Poller> {
        self.poller.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.signal();
    }
}

fn run(poller: &Poller, shared: &Weak<Shared>) {
    let mut ready = Vec::new();
    while poller.wait(&mut ready, None).is_ok() {
        if ready.iter().any(|r| r.token == STOP) || !Shared::on_ready(shared, &ready) {
            return;
        }
    }
}
