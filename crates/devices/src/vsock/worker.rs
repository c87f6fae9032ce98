//! The queues: what the guest transmits, what it receives.

use std::sync::{Arc, Mutex, Weak};

use bus::{RestoreError, lock};
use virtio::features::kind;
use virtio::{Activation, QueueError, VirtioDevice};

use super::handle::VsockHandle;
use super::io::IoThread;
use super::saved_state::VsockState;
use super::table::Table;

/// Receive, transmit, event (5.10.2). Nothing is ever sent on the third. A driver fills the first
/// with a page for each entry, so it is no longer than a burst needs.
const QUEUES: [u16; 3] = [128, 128, 16];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Packets each way that are moved at a time; see `virtio::ROUNDS`.
const LIMIT: usize = virtio::ROUNDS * QUEUES[0] as usize;

/// A virtio socket device.
pub struct Vsock {
    pub(super) shared: Arc<Shared>,
}

/// What the device, its handles and its thread share.
pub(super) struct Shared {
    pub state: Mutex<State>,
    pub io: Mutex<Option<IoThread>>,
}

pub(super) struct State {
    pub table: Table,
    pub world: Option<Arc<Activation>>,
    /// Guest memory must not be touched.
    pub paused: bool,
    /// The device is gone.
    pub closed: bool,
    /// Called once when the guest has closed all connections that were begun; of a scripted device.
    pub at_end: Option<AtEnd>,
}

/// See [`Vsock::scripted`].
type AtEnd = Box<dyn FnOnce() + Send>;

impl Vsock {
    /// A device whose guest has the address `guest_cid` (3 and up; ours is 3).
    pub fn new(guest_cid: u64) -> Self {
        Self::with(Table::new(guest_cid), None)
    }

    /// A device of which everything is decided before the guest runs: it gets what was written by then to the
    /// streams of [`VsockHandle::begin`], there is no I/O thread, and nobody else connects. What the guest sends
    /// waits for the host's reader. `at_end` is called, on a vCPU's thread, when the guest has closed all of them.
    pub fn scripted(guest_cid: u64, at_end: impl FnOnce() + Send + 'static) -> Self {
        let mut table = Table::new(guest_cid);
        table.scripted = true;
        Self::with(table, Some(Box::new(at_end)))
    }

    fn with(table: Table, at_end: Option<AtEnd>) -> Self {
        let state = State { table, world: None, paused: false, closed: false, at_end };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), io: Mutex::new(None) }) }
    }

    /// Connects and listens for the host's side. Lives longer than the device if need be.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle::new(self.shared.clone())
    }

    /// Connections now, for statistics.
    pub fn connections(&self) -> usize {
        lock(&self.shared.state).table.len()
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        state.world = None;
        state.table.clear();
    }
}

impl Shared {
    /// Starts the I/O thread if there is none.
    pub fn start_io(self: &Arc<Self>) -> std::io::Result<()> {
        let mut io = lock(&self.io);
        if io.is_none() && !lock(&self.state).table.scripted {
            let thread = IoThread::start(Arc::downgrade(self))?;
            lock(&self.state).table.set_poller(thread.poller());
            *io = Some(thread);
        }
        Ok(())
    }

    /// Works under the lock, moves what can be moved, then hands streams to their listeners.
    pub fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let had = state.table.len() > 0;
        let result = work(&mut state);
        let had = had || state.table.len() > 0;
        state.pump();
        let accepted = state.table.take_accepted();
        let ended = had && state.table.len() == 0;
        let at_end = if ended { state.at_end.take() } else { None };
        drop(state);
        if let Some(at_end) = at_end {
            at_end();
        }
        for (listener, stream) in accepted {
            listener(stream);
        }
        result
    }

    /// For the I/O thread: what the poller saw; `false` when there is nobody left to serve.
    pub fn on_ready(shared: &Weak<Self>, ready: &[host::Ready]) -> bool {
        let Some(shared) = shared.upgrade() else { return false };
        shared.with(|state| ready.iter().for_each(|r| state.table.stream_ready(r)));
        true
    }
}

impl State {
    /// Moves packets both ways until neither can go on.
    fn pump(&mut self) {
        let Some(world) = self.world.clone().filter(|_| !self.paused) else { return };
        for _ in 0..virtio::ROUNDS {
            let taken = self.transmit(&world).unwrap_or_else(|_| broken(&world));
            let given = self.receive(&world).unwrap_or_else(|_| broken(&world));
            // Resets in the way of the guest's packets may have gone out: once more.
            if !(taken == Transmit::Choked && given) {
                return;
            }
        }
        world.signal.later(TRANSMIT);
    }

    /// Takes the guest's packets.
    fn transmit(&mut self, world: &Activation) -> Result<Transmit, QueueError> {
        let mut queue = lock(&world.queues[TRANSMIT]);
        queue.disarm(&world.memory)?;
        let mut taken = 0;
        let end = loop {
            if self.table.is_choked() {
                break Transmit::Choked;
            }
            if taken == LIMIT {
                queue.arm(&world.memory)?;
                world.signal.later(TRANSMIT);
                break Transmit::Empty;
            }
            taken += 1;
            match queue.pop(&world.memory)? {
                Some(chain) => {
                    self.table.take_packet(chain.readable(&world.memory));
                    queue.push(&world.memory, chain.head(), 0)?;
                }
                None if queue.arm(&world.memory)? => {}
                None => break Transmit::Empty,
            }
        };
        world.interrupt(&mut queue);
        Ok(end)
    }

    /// Fills the guest's buffers; whether any was filled.
    fn receive(&mut self, world: &Activation) -> Result<bool, QueueError> {
        let mut given = false;
        if !self.table.has_output() {
            return Ok(given);
        }
        let mut queue = lock(&world.queues[RECEIVE]);
        for filled in 0..=LIMIT {
            if filled == LIMIT {
                world.signal.later(RECEIVE);
                break;
            }
            let Some(chain) = queue.pop(&world.memory)? else {
                // Out of buffers: hear of the next one.
                if queue.arm(&world.memory)? {
                    continue;
                }
                break;
            };
            match self.table.write_packet(chain.writable(&world.memory)) {
                Some(written) => queue.push(&world.memory, chain.head(), written)?,
                None => {
                    queue.undo_pop();
                    queue.disarm(&world.memory)?;
                    break;
                }
            }
            given = true;
        }
        world.interrupt(&mut queue);
        Ok(given)
    }
}

/// How taking the guest's packets ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Transmit {
    #[default]
    Empty,
    /// Too many resets wait for room.
    Choked,
}

fn broken<T: Default>(world: &Activation) -> T {
    world.signal.needs_reset();
    T::default()
}

impl VirtioDevice for Vsock {
    type State = VsockState;

    fn kind(&self) -> u32 {
        kind::VSOCK
    }

    /// None: stream sockets need no feature (5.10.3).
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let cid = lock(&self.shared.state).table.guest_cid;
        crate::read_bytes(&cid.to_le_bytes(), offset, data);
    }

    fn activate(&self, world: Activation) {
        lock(&self.shared.state).world = Some(Arc::new(world));
    }

    fn notify(&self, _queue: usize) {
        self.shared.with(|_| ());
    }

    fn reset(&self) {
        let mut state = lock(&self.shared.state);
        state.world = None;
        state.table.clear();
    }

    fn pause(&self) {
        lock(&self.shared.state).paused = true;
    }

    fn resume(&self) {
        self.shared.with(|state| state.paused = false);
    }

    fn save(&self) -> VsockState {
        VsockState::of(&lock(&self.shared.state).table)
    }

    fn restore(&self, state: &VsockState) -> Result<(), RestoreError> {
        state.apply(&mut lock(&self.shared.state).table)
    }
}
