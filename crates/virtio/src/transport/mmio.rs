//! Virtio over MMIO, version 2 (4.2.2): one page of registers for each device.
//!
//! Status goes 0 → ACKNOWLEDGE → DRIVER → FEATURES_OK → DRIVER_OK; bits are only added, a write
//! of 0 resets. What may be written when:
//!
//! ```text
//! features        after DRIVER, before FEATURES_OK
//! queue layout    after FEATURES_OK, before that queue's QueueReady
//! QueueReady = 1  after FEATURES_OK, before DRIVER_OK; checked
//! QueueReady = 0  always: the queue stops; after DRIVER_OK that is final until a reset
//! QueueNotify     after DRIVER_OK
//! ```
//!
//! Anything else is ignored, as a device that was handed nonsense should. Next in way (b):
//! `devices/<d>/worker.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bus::{BusDevice, IoError, IoResult, IrqLine, RestoreError, Saved, lock};
use guestmem::GuestMemory;

use crate::features::{self, status};
use crate::saved_state::VERSION;
use crate::{Activation, Queue, QueueHandle, QueueState, Signal, TransportState, VirtioDevice, VirtioState};

/// Bytes of address space that a transport takes.
pub const SIZE: u64 = 0x1000;
/// First byte of the device's configuration space.
pub const CONFIG: u64 = 0x100;
/// Offset of QueueNotify, for an engine that can turn writes to it into events.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"SMOL");

/// Registers that belong to the driver's dialogue.
#[derive(Clone, Copy, Default)]
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
}

/// A device on the MMIO bus.
pub struct MmioTransport<D: VirtioDevice> {
    device: Arc<D>,
    memory: GuestMemory,
    signal: Arc<Signal>,
    queues: Vec<QueueHandle>,
    registers: Mutex<Registers>,
    /// DRIVER_OK was taken and no reset came since.
    live: AtomicBool,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind a transport that interrupts through `line` (edge-triggered).
    pub fn new(memory: GuestMemory, device: Arc<D>, line: Arc<dyn IrqLine>) -> Self {
        let queue = |&max: &u16| Arc::new(Mutex::new(Queue::new(max)));
        Self {
            queues: device.queue_sizes().iter().map(queue).collect(),
            device,
            memory,
            signal: Arc::new(Signal::new(line)),
            registers: Mutex::default(),
            live: AtomicBool::new(false),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Handles a notification without a register write (an engine's event for QueueNotify).
    pub fn notify(&self, queue: usize) {
        if self.live.load(Ordering::Acquire) && queue < self.queues.len() {
            self.device.notify(queue);
        }
    }

    /// Before a save, after the vCPUs stopped: the device no longer touches guest memory.
    pub fn pause(&self) {
        self.device.pause();
    }

    /// After a save or restore, before the vCPUs run. What came in before the pause is handled,
    /// and an interrupt that was not acknowledged is sent again: one too many is harmless, one
    /// too few hangs the guest.
    pub fn resume(&self) {
        self.device.resume();
        if self.live.load(Ordering::Acquire) {
            (0..self.queues.len()).for_each(|q| self.device.notify(q));
            self.signal.repeat();
        }
    }

    /// Lets the device go on with queues that it left for later.
    fn catch_up(&self) {
        let later = self.signal.take_later();
        (0..self.queues.len()).filter(|queue| later >> queue & 1 != 0).for_each(|queue| self.notify(queue));
    }

    fn offered(&self) -> u64 {
        self.device.features() | features::TRANSPORT
    }

    fn status(&self) -> u32 {
        self.signal.status.load(Ordering::Acquire)
    }

    fn activate(&self, negotiated: u64) {
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues: self.queues.clone(),
            features: negotiated,
            signal: self.signal.clone(),
        });
        self.live.store(true, Ordering::Release);
    }

    fn selected(&self, registers: &Registers) -> Option<&QueueHandle> {
        self.queues.get(registers.queue_sel as usize)
    }

    fn read_register(&self, offset: u64) -> Result<u32, IoError> {
        let registers = *lock(&self.registers);
        Ok(match offset {
            0x000 => MAGIC,
            0x004 => 2,
            0x008 => self.device.kind(),
            0x00c => VENDOR,
            0x010 => match registers.device_features_sel {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            0x034 => self.selected(&registers).map_or(0, |q| lock(q).max_size.into()),
            0x044 => self.selected(&registers).map_or(0, |q| lock(q).ready.into()),
            0x060 => self.signal.pending(),
            0x070 => self.status(),
            // Shared-memory regions: length and base of one that does not exist (4.2.2).
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => u32::MAX,
            // QueueReset: no such feature, never in progress.
            0x0c0 => 0,
            0x0fc => self.signal.generation.load(Ordering::Acquire),
            0x014 | 0x020 | 0x024 | 0x030 | 0x038 | 0x050 | 0x064 | 0x0ac => {
                return Err(IoError::Direction { offset });
            }
            _ => return Err(IoError::NoRegister { offset }),
        })
    }

    fn write_register(&self, offset: u64, value: u32) -> IoResult {
        match offset {
            QUEUE_NOTIFY => self.notify(value as usize),
            0x064 => {
                self.signal.acknowledge(value);
                self.catch_up();
            }
            0x070 => self.write_status(value),
            0x014 => lock(&self.registers).device_features_sel = value,
            0x024 => lock(&self.registers).driver_features_sel = value,
            0x030 => lock(&self.registers).queue_sel = value,
            0x020 => self.write_features(value),
            0x038 | 0x080..=0x0a4 => self.write_layout(offset, value),
            0x044 => self.write_ready(value),
            0x0ac | 0x0c0 => {}
            0x000..=0x010 | 0x034 | 0x060 | 0x0b0..=0x0bc | 0x0fc => {
                return Err(IoError::Direction { offset });
            }
            _ => return Err(IoError::NoRegister { offset }),
        }
        Ok(())
    }

    fn write_features(&self, value: u32) {
        let mut registers = lock(&self.registers);
        if self.status() & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            return;
        }
        let shift = match registers.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        registers.driver_features &= !(u64::from(u32::MAX) << shift);
        registers.driver_features |= u64::from(value) << shift;
    }

    fn write_layout(&self, offset: u64, value: u32) {
        let registers = lock(&self.registers);
        let Some(queue) = self.selected(&registers) else { return };
        let mut queue = lock(queue);
        if self.status() & status::FEATURES_OK == 0 || queue.ready {
            return;
        }
        let layout = &mut queue.layout;
        let low = |old: u64| old & !u64::from(u32::MAX) | u64::from(value);
        let high = |old: u64| old & u64::from(u32::MAX) | u64::from(value) << 32;
        match offset {
            // A size that does not fit in 16 bits is as wrong as 0, which QueueReady refuses.
            0x038 => layout.size = u16::try_from(value).unwrap_or(0),
            0x080 => layout.desc = low(layout.desc),
            0x084 => layout.desc = high(layout.desc),
            0x090 => layout.driver = low(layout.driver),
            0x094 => layout.driver = high(layout.driver),
            0x0a0 => layout.device = low(layout.device),
            0x0a4 => layout.device = high(layout.device),
            _ => {}
        }
    }

    fn write_ready(&self, value: u32) {
        let registers = lock(&self.registers);
        let Some(queue) = self.selected(&registers) else { return };
        if value == 0 {
            // The driver gives the queue up; after DRIVER_OK nothing short of a reset reopens it.
            lock(queue).ready = false;
            return;
        }
        let open = status::FEATURES_OK;
        if value != 1 || self.status() & (open | status::DRIVER_OK) != open {
            return;
        }
        let mut queue = lock(queue);
        if !queue.ready && queue.make_ready(&self.memory, registers.driver_features).is_err() {
            self.signal.needs_reset();
        }
    }

    fn write_status(&self, value: u32) {
        let mut registers = lock(&self.registers);
        if value == 0 {
            return self.reset(&mut registers);
        }
        let old = self.status();
        let mut new = value & status::BY_DRIVER;
        if old & status::BY_DRIVER & !new != 0 || value & !(status::BY_DRIVER | status::NEEDS_RESET) != 0 {
            return;
        }
        if new & status::FEATURES_OK & !old != 0 && !self.accepts(registers.driver_features) {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.signal.status.fetch_or(new, Ordering::AcqRel);
        if new & status::DRIVER_OK & !old != 0 && old & status::NEEDS_RESET == 0 {
            self.activate(registers.driver_features);
        }
    }

    fn accepts(&self, driver: u64) -> bool {
        driver & !self.offered() == 0 && driver & features::VERSION_1 != 0
    }

    fn reset(&self, registers: &mut Registers) {
        self.live.store(false, Ordering::Release);
        self.device.reset();
        self.queues.iter().for_each(|q| lock(q).reset());
        *registers = Registers::default();
        self.signal.status.store(0, Ordering::Release);
        self.signal.set_pending(0);
        self.signal.take_later();
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            data.fill(0);
            self.device.read_config(offset, data);
            return Ok(());
        }
        let len = data.len();
        let data: &mut [u8; 4] = data.try_into().map_err(|_| IoError::Width { offset, len })?;
        *data = self.read_register(offset)?.to_le_bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.write_config(offset, data);
            return Ok(());
        }
        let len = data.len();
        let data: [u8; 4] = data.try_into().map_err(|_| IoError::Width { offset, len })?;
        self.write_register(offset, u32::from_le_bytes(data))
    }
}

impl<D: VirtioDevice> Saved for MmioTransport<D> {
    type State = VirtioState<D::State>;

    fn save(&self) -> Self::State {
        let registers = *lock(&self.registers);
        VirtioState {
            transport: TransportState {
                version: VERSION,
                kind: self.device.kind(),
                status: self.status(),
                device_features_sel: registers.device_features_sel,
                driver_features_sel: registers.driver_features_sel,
                driver_features: registers.driver_features,
                queue_sel: registers.queue_sel,
                interrupt_status: self.signal.pending(),
                config_generation: self.signal.generation.load(Ordering::Acquire),
                queues: self.queues.iter().map(|q| QueueState::of(&lock(q))).collect(),
            },
            device: self.device.save(),
        }
    }

    fn restore(&self, state: &Self::State) -> Result<(), RestoreError> {
        let t = &state.transport;
        let sizes = self.device.queue_sizes();
        let queues = t.queues(self.device.kind(), self.offered(), sizes, &self.memory)?;
        self.device.restore(&state.device)?;
        let broken = t.status & status::NEEDS_RESET != 0;
        for (mine, mut queue) in self.queues.iter().zip(queues) {
            if broken {
                queue.stop();
            }
            *lock(mine) = queue;
        }
        *lock(&self.registers) = Registers {
            device_features_sel: t.device_features_sel,
            driver_features_sel: t.driver_features_sel,
            driver_features: t.driver_features,
            queue_sel: t.queue_sel,
        };
        self.signal.status.store(t.status, Ordering::Release);
        self.signal.generation.store(t.config_generation, Ordering::Release);
        self.signal.set_pending(t.interrupt_status);
        if t.status & status::DRIVER_OK != 0 && !broken {
            self.activate(t.driver_features);
        }
        Ok(())
    }
}
