//! Both directions.

use std::collections::VecDeque;
use std::sync::Mutex;

use bus::{RestoreError, lock};
use virtio::features::kind;
use virtio::{Activation, QueueError, Reader, VirtioDevice};

use super::saved_state::ConsoleState;
use crate::Output;

/// Feature: the configuration says the window's size.
const F_SIZE: u64 = 1;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE: u16 = 64;
/// Input bytes that wait for the guest.
pub const INPUT_LIMIT: usize = 64 * 1024;
/// Bytes taken from one chain of the guest; what is more is no console output.
const MAX_OUTPUT: u64 = 1 << 20;
const PIECE: usize = 4096;

/// A virtio console.
pub struct Console {
    pub(super) inner: Mutex<Inner>,
}

pub(super) struct Inner {
    world: Option<Activation>,
    /// Guest memory must not be touched.
    paused: bool,
    output: Box<dyn Output>,
    pub input: VecDeque<u8>,
    pub columns: u16,
    pub rows: u16,
}

impl Console {
    /// A console of 80 by 25 that writes to `output`.
    pub fn new(output: Box<dyn Output>) -> Self {
        let inner =
            Inner { world: None, paused: false, output, input: VecDeque::new(), columns: 80, rows: 25 };
        Self { inner: Mutex::new(inner) }
    }

    /// Gives the guest input; returns how many bytes were taken (the rest does not fit now).
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        let taken = bytes.len().min(INPUT_LIMIT - inner.input.len());
        inner.input.extend(&bytes[..taken]);
        inner.give_input();
        taken
    }

    /// Tells the guest the size of its window.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut inner = lock(&self.inner);
        (inner.columns, inner.rows) = (columns, rows);
        if let Some(world) = &inner.world {
            world.signal.config_changed();
        }
    }
}

impl Inner {
    fn take_output(&mut self) {
        let Some(world) = self.world.take() else { return };
        world.drain(TRANSMIT, |chain| {
            print(&mut *self.output, chain.readable(&world.memory));
            0
        });
        self.world = Some(world);
    }

    fn give_input(&mut self) {
        if self.input.is_empty() || self.paused {
            return;
        }
        let Some(world) = self.world.take() else { return };
        if self.fill(&world).is_err() {
            world.signal.needs_reset();
        }
        self.world = Some(world);
    }

    fn fill(&mut self, world: &Activation) -> Result<(), QueueError> {
        let Some(queue) = world.queues.get(RECEIVE) else { return Ok(()) };
        let mut queue = lock(queue);
        for taken in 0.. {
            if self.input.is_empty() {
                break;
            }
            if taken == virtio::ROUNDS * usize::from(QUEUE) {
                world.signal.later(RECEIVE);
                break;
            }
            let Some(chain) = queue.pop(&world.memory)? else {
                if queue.arm(&world.memory)? {
                    continue;
                }
                break;
            };
            let mut room = chain.writable(&world.memory);
            while room.remaining() > 0 && !self.input.is_empty() {
                let (front, _) = self.input.as_slices();
                let Ok(taken) = room.write(front) else { break };
                self.input.drain(..taken);
            }
            queue.push(&world.memory, chain.head(), room.written() as u32)?;
        }
        world.interrupt(&mut queue);
        Ok(())
    }
}

fn print(output: &mut dyn Output, mut bytes: Reader<'_>) {
    let mut piece = [0; PIECE];
    let mut done = 0;
    while done < MAX_OUTPUT {
        match bytes.read(&mut piece) {
            Ok(n) if n > 0 => {
                output.write(&piece[..n]);
                done += n as u64;
            }
            _ => return,
        }
    }
}

impl VirtioDevice for Console {
    type State = ConsoleState;

    fn kind(&self) -> u32 {
        kind::CONSOLE
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE, QUEUE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let inner = lock(&self.inner);
        let [c0, c1] = inner.columns.to_le_bytes();
        let [r0, r1] = inner.rows.to_le_bytes();
        crate::read_bytes(&[c0, c1, r0, r1], offset, data);
    }

    fn activate(&self, world: Activation) {
        lock(&self.inner).world = Some(world);
    }

    fn notify(&self, queue: usize) {
        let mut inner = lock(&self.inner);
        match queue {
            RECEIVE => inner.give_input(),
            TRANSMIT => inner.take_output(),
            _ => {}
        }
    }

    fn reset(&self) {
        lock(&self.inner).world = None;
    }

    fn pause(&self) {
        lock(&self.inner).paused = true;
    }

    fn resume(&self) {
        let mut inner = lock(&self.inner);
        inner.paused = false;
        inner.give_input();
    }

    fn save(&self) -> ConsoleState {
        ConsoleState::of(&lock(&self.inner))
    }

    fn restore(&self, state: &ConsoleState) -> Result<(), RestoreError> {
        state.apply(&mut lock(&self.inner))
    }
}
