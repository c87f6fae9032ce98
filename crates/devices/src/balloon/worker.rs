//! Gives back what the driver names.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bus::{RestoreError, lock};
use guestmem::{GuestMemory, PAGE_SIZE};
use virtio::features::kind;
use virtio::{Activation, Chain, VirtioDevice};

use super::saved_state::BalloonState;

/// VIRTIO_BALLOON_F_PAGE_REPORTING (5.5.3).
const PAGE_REPORTING: u64 = 1 << 5;
/// The inflate queue: arrays of page numbers. The next one deflates: nothing to do for pages that come back.
const INFLATE: usize = 0;
/// The specification numbers the reporting queue 4 (5.5.2). Linux counts only queues that exist, and finds it at 2.
const REPORTING: std::ops::RangeInclusive<usize> = 2..=4;
/// Linux wants room for 32 pieces in a report.
const QUEUE: u16 = 64;
/// Page numbers read of one request: Linux sends 256.
const MAX_NUMBERS: usize = 1024;

/// How much was given back so far; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Returned(Arc<AtomicU64>);

impl Returned {
    /// Bytes; a page counts each time.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A virtio balloon.
#[derive(Default)]
pub struct Balloon {
    returned: Returned,
    actual: AtomicU32,
    world: Mutex<Option<Activation>>,
}

impl Balloon {
    pub fn new() -> Self {
        Self::default()
    }

    /// What it gives back from now on.
    pub fn returned(&self) -> Returned {
        self.returned.clone()
    }

    fn give_back(&self, memory: &GuestMemory, gpa: u64, len: u64) {
        let gone = memory.give_back(gpa, len);
        self.returned.0.fetch_add(gone, Ordering::Relaxed);
    }

    /// A report is a chain of the free pieces themselves (5.5.6.7).
    fn reported(&self, memory: &GuestMemory, chain: &Chain) -> u32 {
        for piece in chain.writable_segments() {
            self.give_back(memory, piece.gpa, piece.len.into());
        }
        0
    }

    /// Page numbers, 32 bits each (5.5.6).
    fn inflated(&self, memory: &GuestMemory, chain: &Chain) -> u32 {
        let mut numbers = chain.readable(memory);
        let mut number = [0; 4];
        for _ in 0..MAX_NUMBERS {
            if numbers.read_exact(&mut number).is_err() {
                break;
            }
            self.give_back(memory, u64::from(u32::from_le_bytes(number)) * PAGE_SIZE, PAGE_SIZE);
        }
        0
    }
}

impl VirtioDevice for Balloon {
    type State = BalloonState;

    fn kind(&self) -> u32 {
        kind::BALLOON
    }

    fn features(&self) -> u64 {
        PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE; 5]
    }

    /// `num_pages`, always 0, and `actual` (5.5.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[4..].copy_from_slice(&self.actual.load(Ordering::Relaxed).to_le_bytes());
        crate::read_bytes(&config, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.actual.store(u32::from_le_bytes(actual), Ordering::Relaxed);
        }
    }

    fn activate(&self, world: Activation) {
        *lock(&self.world) = Some(world);
    }

    fn notify(&self, queue: usize) {
        let world = lock(&self.world);
        let Some(world) = &*world else { return };
        let memory = &world.memory;
        match queue {
            INFLATE => world.drain(queue, |chain| self.inflated(memory, chain)),
            at if REPORTING.contains(&at) => world.drain(queue, |chain| self.reported(memory, chain)),
            _ => world.drain(queue, |_| 0),
        }
    }

    fn reset(&self) {
        *lock(&self.world) = None;
        self.actual.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> BalloonState {
        BalloonState::of(self.actual.load(Ordering::Relaxed))
    }

    fn restore(&self, state: &BalloonState) -> Result<(), RestoreError> {
        state.check()?;
        self.actual.store(state.actual, Ordering::Relaxed);
        Ok(())
    }
}
