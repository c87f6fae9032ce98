//! Gives back what the driver names.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bus::{RestoreError, lock};
use guestmem::{GuestMemory, PAGE_SIZE};
use virtio::features::kind;
use virtio::{Activation, Chain, VirtioDevice};

use super::saved_state::BalloonState;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM (5.5.3): a guest that needs its memory takes it back instead of ending a program.
const DEFLATE_ON_OOM: u64 = 1 << 2;
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

/// A virtio balloon.
#[derive(Default)]
pub struct Balloon {
    returned: AtomicU64,
    /// Pages that the guest is asked to have in it, and that it says it has.
    wanted: AtomicU32,
    actual: AtomicU32,
    world: Mutex<Option<Activation>>,
}

impl Balloon {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes given back so far; a page counts each time.
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Asks the guest to have so many bytes in the balloon, in whole pages. It does so in its own time, as far as it can.
    pub fn want(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        self.wanted.store(pages, Ordering::Relaxed);
        if let Some(world) = &*lock(&self.world) {
            world.signal.config_changed();
        }
    }

    /// Bytes that are in it, by the guest's word.
    pub fn size(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Relaxed)) * PAGE_SIZE
    }

    fn give_back(&self, memory: &GuestMemory, gpa: u64, len: u64) {
        let gone = memory.give_back(gpa, len);
        self.returned.fetch_add(gone, Ordering::Relaxed);
    }

    /// A report is a chain of the free pieces themselves (5.5.6.7).
    fn reported(&self, memory: &GuestMemory, chain: &Chain) -> u32 {
        for piece in chain.writable_segments() {
            self.give_back(memory, piece.gpa, piece.len.into());
        }
        0
    }

    /// Page numbers, 32 bits each (5.5.6), in any order. Those that follow each other go together: a hole costs the host
    /// a mapping where a file lies behind.
    fn inflated(&self, memory: &GuestMemory, chain: &Chain) -> u32 {
        let mut bytes = chain.readable(memory);
        let mut numbers = Vec::with_capacity(MAX_NUMBERS);
        let mut number = [0; 4];
        while numbers.len() < MAX_NUMBERS && bytes.read_exact(&mut number).is_ok() {
            numbers.push(u32::from_le_bytes(number));
        }
        numbers.sort_unstable();
        for run in numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let first = run.first().copied().map_or(0, u64::from);
            self.give_back(memory, first * PAGE_SIZE, run.len() as u64 * PAGE_SIZE);
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
        DEFLATE_ON_OOM | PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE; 5]
    }

    /// `num_pages` and `actual` (5.5.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = [&self.wanted, &self.actual].map(|pages| pages.load(Ordering::Relaxed).to_le_bytes());
        let config = config.as_flattened();
        crate::read_bytes(config, offset, data);
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
        // What it has it keeps: it was asked for.
        self.wanted.store(state.actual, Ordering::Relaxed);
        Ok(())
    }
}
