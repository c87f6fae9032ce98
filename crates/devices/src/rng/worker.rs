//! Fills buffers.

use std::io;
use std::sync::Mutex;

use bus::{RestoreError, lock};
use virtio::features::kind;
use virtio::{Activation, VirtioDevice, Writer};

use super::saved_state::RngState;

/// Bytes given for one request; a driver that wants more asks again.
pub const MAX_REQUEST: u64 = 64 * 1024;
const QUEUE: u16 = 16;
const PIECE: usize = 1024;

/// Where the bytes come from.
type Source = Box<dyn Fn(&mut [u8]) -> io::Result<()> + Send + Sync>;

/// A virtio entropy source.
pub struct Rng {
    source: Source,
    world: Mutex<Option<Activation>>,
}

impl Rng {
    /// Bytes of `source`, which fills its argument.
    pub fn new(source: impl Fn(&mut [u8]) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { source: Box::new(source), world: Mutex::default() }
    }

    /// Bytes of the host's kernel.
    pub fn from_host() -> Self {
        Self::new(host::fill_random)
    }

    /// Returns how much was written: less where the source fails.
    fn fill(&self, mut room: Writer<'_>) -> u32 {
        let mut piece = [0; PIECE];
        while room.remaining() > 0 && room.written() < MAX_REQUEST {
            let n = room.remaining().min(MAX_REQUEST - room.written()).min(PIECE as u64) as usize;
            if (self.source)(&mut piece[..n]).is_err() || room.write_all(&piece[..n]).is_err() {
                break;
            }
        }
        room.written() as u32
    }
}

impl VirtioDevice for Rng {
    type State = RngState;

    fn kind(&self) -> u32 {
        kind::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&self, world: Activation) {
        *lock(&self.world) = Some(world);
    }

    fn notify(&self, queue: usize) {
        if let Some(world) = &*lock(&self.world) {
            world.drain(queue, |chain| self.fill(chain.writable(&world.memory)));
        }
    }

    fn reset(&self) {
        *lock(&self.world) = None;
    }

    fn save(&self) -> RngState {
        RngState::now()
    }

    fn restore(&self, state: &RngState) -> Result<(), RestoreError> {
        state.check()
    }
}
