//! The device and its thread.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bus::{RestoreError, lock};
use host::{Event, Interest, Poller, Ready};
use netstack::{Config, GUEST_MAC, Link, MAX_FRAME, MTU, ROUND_BYTES, ROUND_FRAMES, Reporter, Stack, Watch};
use virtio::features::kind;
use virtio::{Activation, QueueError, VirtioDevice};

use super::port::{EVERYBODY, GUEST_CSUM, HEADER, MRG_RXBUF, Parked, Port, Station};
use super::saved_state::NetState;

/// Receive and transmit (5.1.2). Large frames take many receive buffers.
const QUEUES: [u16; 2] = [256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Features (5.1.3): the driver may leave checksums to us; MTU, address and link status are in the configuration.
const CSUM: u64 = 1 << 0;
const MTU_GIVEN: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
/// `status` of the configuration: the link is up.
const LINK_UP: u16 = 1;
/// Tokens of the poller that are not the stack's.
const KICK: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

/// A network device.
pub struct Net {
    shared: Arc<Shared>,
    up: bool,
}

struct Shared {
    poller: Arc<Poller>,
    kick: Event,
    stop: Event,
    reporter: Reporter,
    state: Mutex<State>,
    resumed: Condvar,
}

struct State {
    stack: Option<Stack>,
    world: Option<Arc<Activation>>,
    parked: Parked,
    frame: Box<[u8]>,
    /// The guest's hardware address, as its frames say.
    guest: Station,
    started: bool,
    /// Guest memory must not be touched.
    paused: bool,
    /// The device is gone.
    closed: bool,
    /// The driver may not know the link's status.
    restored: bool,
}

impl Net {
    /// A device on the network that `config` says; without one, a device without carrier (a frozen machine that has a
    /// network device, started without network).
    ///
    /// # Errors
    /// The host's: out of descriptors.
    pub fn new(config: Option<Config>) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let (kick, stop) = (Event::new()?, Event::new()?);
        poller.add(&kick, KICK, Interest::READ)?;
        poller.add(&stop, STOP, Interest::READ)?;
        let stack = config.map(|config| Stack::new(config, poller.clone())).transpose()?;
        let reporter = stack.as_ref().map(Stack::reporter).unwrap_or_default();
        let up = stack.is_some();
        let state = State {
            stack,
            world: None,
            parked: Parked::new(),
            frame: vec![0; MAX_FRAME].into(),
            guest: GUEST_MAC,
            started: false,
            paused: false,
            closed: false,
            restored: false,
        };
        let (state, resumed) = (Mutex::new(state), Condvar::new());
        Ok(Self { shared: Arc::new(Shared { poller, kick, stop, reporter, state, resumed }), up })
    }

    /// What may be asked of the network from other threads.
    pub fn reporter(&self) -> Reporter {
        self.shared.reporter.clone()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        state.world = None;
        state.stack = None;
        drop(state);
        self.shared.resumed.notify_all();
        self.shared.stop.signal();
    }
}

/// The thread: waits, then works under the lock.
fn run(shared: &Shared) {
    let mut ready = Vec::new();
    let (mut watch, mut timeout) = (Watch::default(), None);
    while watch.wait(&shared.poller, &mut ready, timeout).is_ok() {
        let mut state = lock(&shared.state);
        // What the poller told is not told again: it is kept until the machine goes on.
        while state.paused && !state.closed {
            state = shared.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return;
        }
        shared.kick.clear();
        timeout = state.work(&ready, &mut watch, &shared.reporter);
    }
}

impl State {
    /// One round; how long the next may take to come.
    fn work(&mut self, ready: &[Ready], watch: &mut Watch, reporter: &Reporter) -> Option<Duration> {
        let world = self.world.clone()?;
        let Self { stack, parked, frame, guest, .. } = self;
        let Some(stack) = stack else { return discard(&world) };
        let mut port = Port::new(&world, lock(&world.queues[RECEIVE]), parked, reporter, *guest);
        // The guest may have room for what it had none for.
        if port.ready() {
            stack.unblocked(&mut port);
        }
        let more = transmit(&world, stack, &mut port, frame).unwrap_or_else(|_| {
            world.signal.needs_reset();
            false
        });
        ready.iter().for_each(|r| stack.ready(r, &mut port));
        watch.end_round(stack, &mut port, ready);
        *guest = port.guest;
        port.finish();
        if more { Some(Duration::ZERO) } else { stack.timeout() }
    }
}

/// Takes the guest's frames; whether there are more.
fn transmit(
    world: &Activation,
    stack: &mut Stack,
    port: &mut Port<'_>,
    frame: &mut [u8],
) -> Result<bool, QueueError> {
    let mut queue = lock(&world.queues[TRANSMIT]);
    queue.disarm(&world.memory)?;
    let (mut taken, mut bytes) = (0, 0);
    let more = loop {
        if taken == ROUND_FRAMES || bytes >= ROUND_BYTES {
            break true;
        }
        let Some(chain) = queue.pop(&world.memory)? else {
            if queue.arm(&world.memory)? {
                continue;
            }
            break false;
        };
        taken += 1;
        let mut reader = chain.readable(&world.memory);
        // Offloads that were not offered, and what is longer than any frame, are not carried.
        let mut header = [0; HEADER];
        let plain = reader.read_exact(&mut header).is_ok() && header[1] == 0;
        if plain && reader.remaining() <= frame.len() as u64 {
            let n = reader.read(frame).unwrap_or(0);
            bytes += n;
            let frame = frame.get(..n).unwrap_or_default();
            learn(frame, port);
            stack.input(frame, port);
        }
        queue.push(&world.memory, chain.head(), 0)?;
    };
    world.interrupt(&mut queue);
    Ok(more)
}

/// Takes the sender's address (IEEE 802.3, 3.2.4) as the guest's, unless it is one of a group.
fn learn(frame: &[u8], port: &mut Port<'_>) {
    let sender: Option<&Station> = frame.get(GUEST_MAC.len()..).and_then(|rest| rest.first_chunk());
    if let Some(sender) = sender.filter(|sender| sender[0] & 1 == 0) {
        port.guest = *sender;
    }
}

/// Without carrier what the guest sends all the same is taken and lost.
fn discard(world: &Activation) -> Option<Duration> {
    world.drain(TRANSMIT, |_| 0);
    None
}

impl VirtioDevice for Net {
    type State = NetState;

    fn kind(&self) -> u32 {
        kind::NET
    }

    fn features(&self) -> u64 {
        CSUM | GUEST_CSUM | MTU_GIVEN | MAC | MRG_RXBUF | STATUS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    /// `mac`, `status`, `max_virtqueue_pairs`, `mtu` (5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.up { LINK_UP } else { 0 };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&GUEST_MAC);
        for (to, value) in config[6..].chunks_exact_mut(2).zip([status, 1, MTU as u16]) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        crate::read_bytes(&config, offset, data);
    }

    fn activate(&self, world: Activation) {
        let mut state = lock(&self.shared.state);
        let offload = world.has(GUEST_CSUM);
        if let Some(stack) = &mut state.stack {
            stack.reset(offload);
        }
        state.parked.clear();
        if !state.started {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("net".into()).spawn(move || run(&shared));
            if thread.is_err() {
                return world.signal.needs_reset();
            }
            state.started = true;
        }
        state.world = Some(Arc::new(world));
    }

    fn notify(&self, _queue: usize) {
        self.shared.kick.signal();
    }

    fn reset(&self) {
        let mut state = lock(&self.shared.state);
        state.world = None;
        state.parked.clear();
        if let Some(stack) = &mut state.stack {
            stack.reset(false);
        }
    }

    fn pause(&self) {
        lock(&self.shared.state).paused = true;
    }

    fn resume(&self) {
        let mut state = lock(&self.shared.state);
        state.paused = false;
        let world = state.world.clone().filter(|_| std::mem::take(&mut state.restored));
        drop(state);
        self.shared.resumed.notify_all();
        if let Some(world) = world {
            world.signal.config_changed();
        }
    }

    fn save(&self) -> NetState {
        NetState::now()
    }

    fn restore(&self, state: &NetState) -> Result<(), RestoreError> {
        state.check()?;
        let mut state = lock(&self.shared.state);
        state.restored = true;
        // It may have another one than it was told at boot.
        state.guest = EVERYBODY;
        Ok(())
    }
}
