//! The guest's receive queue as the stack's link.

use std::sync::MutexGuard;

use netstack::{GUEST_MAC, Link, MAX_FRAME, Reporter};
use virtio::{Activation, Chain, Queue, QueueError, ViewError};

/// Bytes of `struct virtio_net_hdr` with `num_buffers` (5.1.6).
pub const HEADER: usize = 12;
/// Header flag: the packet's checksums are fine (5.1.6.4), only with GUEST_CSUM.
const DATA_VALID: u8 = 2;
/// Feature: the driver takes packets whose checksums were not computed or are known to be good.
pub const GUEST_CSUM: u64 = 1 << 1;
/// Feature: a packet may be spread over several of the driver's buffers.
pub const MRG_RXBUF: u64 = 1 << 15;

/// A frame that the guest had no buffers for.
pub struct Parked {
    frame: Box<[u8]>,
    len: usize,
}

impl Parked {
    pub fn new() -> Self {
        Self { frame: vec![0; MAX_FRAME].into(), len: 0 }
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }
}

/// A hardware address.
pub type Station = [u8; 6];
/// The address of every station: of a guest that has not said its own.
pub const EVERYBODY: Station = [0xff; 6];

/// The way of one batch of work to the guest.
pub struct Port<'a> {
    /// The guest's hardware address, in place of the one that the stack knows.
    pub guest: Station,
    world: &'a Activation,
    queue: MutexGuard<'a, Queue>,
    parked: &'a mut Parked,
    reporter: &'a Reporter,
    chains: Vec<Chain>,
}

impl<'a> Port<'a> {
    pub fn new(
        world: &'a Activation,
        queue: MutexGuard<'a, Queue>,
        parked: &'a mut Parked,
        reporter: &'a Reporter,
        guest: Station,
    ) -> Self {
        Self { guest, world, queue, parked, reporter, chains: Vec::new() }
    }

    /// Interrupts the guest for what was given.
    pub fn finish(mut self) {
        self.world.interrupt(&mut self.queue);
    }

    /// Whether `frame` was taken (or can never be): `false` when the guest's buffers do not suffice for it.
    fn give(&mut self, frame: &[u8]) -> bool {
        let memory = &self.world.memory;
        let _ = self.queue.disarm(memory);
        let given = match self.collect(HEADER + frame.len()) {
            Ok(true) => self.fill(frame),
            Ok(false) => return false,
            Err(e) => Err(e),
        };
        if given.is_err() {
            self.world.signal.needs_reset();
        }
        true
    }

    /// Takes chains with room for `need` bytes, or the whole ring, or the one that the driver allows; none when there are
    /// too few, and then the driver is asked to tell of the next beyond them.
    fn collect(&mut self, need: usize) -> Result<bool, QueueError> {
        self.chains.clear();
        let mut room = 0;
        loop {
            let Some(chain) = self.queue.pop(&self.world.memory)? else {
                if self.queue.arm(&self.world.memory)? {
                    // More came meanwhile.
                    continue;
                }
                break;
            };
            room += chain.writable(&self.world.memory).remaining();
            self.chains.push(chain);
            let whole = self.chains.len() == usize::from(self.queue.size());
            if room >= need as u64 || whole || !self.world.has(MRG_RXBUF) {
                return Ok(true);
            }
        }
        for _ in self.chains.drain(..) {
            self.queue.undo_pop();
        }
        Ok(false)
    }

    /// Writes a frame into the collected chains and gives them back together. A frame that does not fit into what
    /// it may have is lost.
    fn fill(&mut self, frame: &[u8]) -> Result<(), QueueError> {
        let mut header = [0; HEADER];
        header[0] = if self.world.has(GUEST_CSUM) { DATA_VALID } else { 0 };
        header[10..].copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
        let (to, rest) = frame.split_at_checked(GUEST_MAC.len()).unwrap_or((frame, &[]));
        let guest = self.guest;
        let mut to = if to == GUEST_MAC { &guest[..] } else { to };
        let (mut head, mut body) = (&header[..], rest);
        let mut used = Vec::with_capacity(self.chains.len());
        for chain in &self.chains {
            let mut room = chain.writable(&self.world.memory);
            let mut put = |bytes: &mut &[u8]| {
                let n = room.write(bytes)?;
                *bytes = &bytes[n..];
                Ok::<_, ViewError>(())
            };
            put(&mut head).and_then(|()| put(&mut to)).and_then(|()| put(&mut body)).map_err(
                |e| match e {
                    ViewError::Memory(e) => QueueError::Memory(e),
                    ViewError::Short { .. } => QueueError::TooBig,
                },
            )?;
            used.push((chain.head(), room.written() as u32));
        }
        if to.is_empty() && body.is_empty() {
            self.reporter.count_in(frame.len());
        } else {
            used.iter_mut().for_each(|(_, len)| *len = 0);
        }
        self.queue.push_together(&self.world.memory, used)
    }
}

impl Link for Port<'_> {
    fn ready(&mut self) -> bool {
        if self.parked.len > 0 {
            let frame = std::mem::take(&mut self.parked.frame);
            let given = self.give(frame.get(..self.parked.len).unwrap_or_default());
            self.parked.frame = frame;
            if !given {
                return false;
            }
            self.parked.len = 0;
        }
        true
    }

    fn send(&mut self, frame: &[u8]) {
        if !self.ready() || self.give(frame) {
            return;
        }
        if let Some(place) = self.parked.frame.get_mut(..frame.len()) {
            place.copy_from_slice(frame);
            self.parked.len = frame.len();
        }
    }
}
