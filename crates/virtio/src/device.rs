//! What a device model implements, and what it is given.

use std::sync::Arc;

use bus::{RestoreError, lock};
use guestmem::GuestMemory;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Chain, QueueError, QueueHandle, Signal, features};

/// Rings full of chains that are handled for one notification. A driver whose buffers are its own rings, or one that
/// another vCPU feeds, could otherwise keep a thread for ever (docs/adr/0151).
pub const ROUNDS: usize = 4;

/// A device behind a transport. Methods are called from any vCPU thread, several at once.
pub trait VirtioDevice: Send + Sync {
    /// What travels of the device's own state (queues and features are the transport's).
    type State: Serialize + DeserializeOwned + Send;

    /// Device type: [`crate::features::kind`].
    fn kind(&self) -> u32;

    /// Device-specific features offered; the transport adds [`features::TRANSPORT`].
    fn features(&self) -> u64;

    /// Largest size of each queue: powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads configuration space; bytes beyond what the device has stay as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (DRIVER_OK), or a saved machine is: take the world over.
    fn activate(&self, world: Activation);

    /// The driver put something in this queue. Called only while active.
    fn notify(&self, queue: usize);

    /// Back to the state after construction; the world given by `activate` is let go.
    fn reset(&self);

    /// Stops threads of the device from touching guest memory; back when they have stopped.
    fn pause(&self) {}

    /// Undoes [`VirtioDevice::pause`].
    fn resume(&self) {}

    /// The state, while paused.
    fn save(&self) -> Self::State;

    /// Takes a state over; comes before [`VirtioDevice::activate`].
    ///
    /// # Errors
    /// [`RestoreError`]; the device is then as before.
    fn restore(&self, state: &Self::State) -> Result<(), RestoreError>;
}

/// The world of an active device.
#[derive(Clone)]
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// As many as [`VirtioDevice::queue_sizes`]; one that the driver did not set up gives nothing.
    pub queues: Vec<QueueHandle>,
    /// What was negotiated.
    pub features: u64,
    /// Interrupts.
    pub signal: Arc<Signal>,
}

impl Activation {
    /// Whether a feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    /// Handles everything in a queue: `handle` gets each chain and returns how many bytes it
    /// wrote. One interrupt for each batch, where the driver wants it. A queue that breaks the
    /// rules stops and the driver is told. After [`ROUNDS`] rings full the rest is left for later.
    pub fn drain(&self, index: usize, mut handle: impl FnMut(&Chain) -> u32) {
        let Some(queue) = self.queues.get(index) else { return };
        let mut queue = lock(queue);
        for _ in 0..ROUNDS {
            let more = queue.batch(&self.memory, &mut handle);
            self.interrupt(&mut queue);
            match more {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => return self.signal.needs_reset(),
            }
        }
        self.signal.later(index);
    }

    /// Interrupts the driver when it wants to know of what was put in `queue`'s used ring since
    /// the last call.
    pub fn interrupt(&self, queue: &mut crate::Queue) {
        match queue.should_interrupt(&self.memory) {
            Ok(true) => self.signal.used(),
            Ok(false) => {}
            Err(_) => self.signal.needs_reset(),
        }
    }

    /// Whether the driver accepted [`features::EVENT_IDX`].
    pub fn event_idx(&self) -> bool {
        self.has(features::EVENT_IDX)
    }
}

impl crate::Queue {
    /// Takes at most a ring full of chains; `true` when there is more.
    fn batch(
        &mut self,
        memory: &GuestMemory,
        handle: &mut impl FnMut(&Chain) -> u32,
    ) -> Result<bool, QueueError> {
        self.disarm(memory)?;
        for _ in 0..self.size() {
            let Some(chain) = self.pop(memory)? else { break };
            let written = handle(&chain);
            self.push(memory, chain.head(), written)?;
        }
        self.arm(memory)
    }
}
