//! Registers, redirection, delivery.

use std::sync::{Arc, Mutex};

use bus::{BusDevice, IoError, IoResult, IrqLine, lock};

/// Inputs.
pub const PINS: usize = 24;
/// Bytes of address space (conventionally at 0xfec0_0000).
pub const SIZE: u64 = 0x1000;

const VERSION: u32 = 0x20;
const DELIVERY: u64 = 0x700;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What the guest may write: not delivery status (12) and remote IRR (14).
const WRITABLE: u64 = 0xffff_0000_0001_afff;
/// Every bit that an entry can hold.
pub(super) const ENTRY: u64 = WRITABLE | REMOTE_IRR;

/// Takes the messages to the local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers one message of `pin`.
    fn send(&self, pin: u8, message: Message);
}

impl<F: Fn(u8, Message) + Send + Sync> MsiSink for F {
    fn send(&self, pin: u8, message: Message) {
        self(pin, message);
    }
}

/// What a pin sends: a message-signalled interrupt (SDM vol. 3, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub address: u64,
    pub data: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Registers {
    pub select: u8,
    pub id: u8,
    pub entries: [u64; PINS],
    /// Level of each wire, one bit a pin.
    pub levels: u32,
    /// Edges that came while the pin was masked.
    pub edges: u32,
}

/// An I/O APIC.
pub struct IoApic {
    pub(super) registers: Mutex<Registers>,
    sink: Arc<dyn MsiSink>,
}

/// What an entry makes of an interrupt.
fn message(entry: u64) -> Message {
    let destination = entry >> 56 & 0xff;
    let extended = entry >> 49 & 0x7f;
    let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
    let address = 0xfee0_0000 | destination << 12 | extended << 5 | logical;
    // Bit 14: level messages assert. Vector, delivery mode and trigger mode are where they were.
    let level = if entry & LEVEL != 0 { LEVEL | 1 << 14 } else { 0 };
    Message { address, data: (entry & (0xff | DELIVERY) | level) as u32 }
}

/// Fixed and lowest-priority interrupts are acknowledged; the others have no remote IRR.
fn is_level(entry: u64) -> bool {
    entry & LEVEL != 0 && entry & DELIVERY <= 0x100
}

impl Registers {
    fn new() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS], levels: 0, edges: 0 }
    }

    /// Sends what pin `pin` has to send, if it may now.
    fn service(&mut self, pin: usize) -> Option<Message> {
        let bit = 1 << pin;
        let entry = self.entries.get_mut(pin)?;
        if *entry & MASKED != 0 {
            return None;
        }
        if is_level(*entry) {
            self.edges &= !bit;
            if self.levels & bit == 0 || *entry & REMOTE_IRR != 0 {
                return None;
            }
            *entry |= REMOTE_IRR;
        } else if self.edges & bit == 0 {
            return None;
        }
        self.edges &= !bit;
        Some(message(*entry))
    }

    fn set_level(&mut self, pin: usize, high: bool) -> Option<Message> {
        let bit = 1 << pin;
        if !high {
            self.levels &= !bit;
            return None;
        }
        if self.levels & bit == 0 {
            self.levels |= bit;
            self.edges |= bit;
        }
        self.service(pin)
    }

    fn read(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION | (PINS as u32 - 1) << 16,
            s => {
                let (pin, high) = ((s as usize).wrapping_sub(0x10) / 2, s & 1 != 0);
                let entry = self.entries.get(pin).copied().unwrap_or(0);
                (entry >> if high { 32 } else { 0 }) as u32
            }
        }
    }

    /// Returns the pin whose entry changed.
    fn write(&mut self, value: u32) -> Option<usize> {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0x0f;
        }
        let pin = (self.select as usize).checked_sub(0x10)? / 2;
        let entry = self.entries.get_mut(pin)?;
        let high = self.select & 1 != 0;
        let (mask, value) = if high {
            (WRITABLE >> 32 << 32, u64::from(value) << 32)
        } else {
            (WRITABLE & 0xffff_ffff, value.into())
        };
        *entry = *entry & !mask | value & mask;
        if !is_level(*entry) {
            // Switching to edge is how older kernels acknowledge a level interrupt.
            *entry &= !REMOTE_IRR;
        }
        Some(pin)
    }

    fn end_of_interrupt(&mut self, vector: u8) -> Vec<(usize, Message)> {
        let mut messages = Vec::new();
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if is_level(entry) && entry & REMOTE_IRR != 0 && entry as u8 == vector {
                self.entries[pin] &= !REMOTE_IRR;
                messages.extend(self.service(pin).map(|message| (pin, message)));
            }
        }
        messages
    }
}

impl IoApic {
    /// All pins masked.
    pub fn new(sink: Arc<dyn MsiSink>) -> Arc<Self> {
        Arc::new(Self { registers: Mutex::new(Registers::new()), sink })
    }

    /// The wire to a pin; 24 and up end nowhere.
    pub fn line(self: &Arc<Self>, pin: u8) -> Arc<dyn IrqLine> {
        Arc::new(Pin { controller: self.clone(), pin: pin.into() })
    }

    /// A local APIC finished a level-triggered interrupt of this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        let messages = lock(&self.registers).end_of_interrupt(vector);
        messages.into_iter().for_each(|(pin, message)| self.deliver(pin, Some(message)));
    }

    /// Outside the lock: the sink may wait for a vCPU that is about to come here.
    fn deliver(&self, pin: usize, message: Option<Message>) {
        if let Some(message) = message {
            self.sink.send(pin as u8, message);
        }
    }

    fn write_window(&self, value: u32) {
        let mut registers = lock(&self.registers);
        let Some(pin) = registers.write(value) else { return };
        let message = registers.service(pin);
        drop(registers);
        self.deliver(pin, message);
    }
}

struct Pin {
    controller: Arc<IoApic>,
    pin: usize,
}

impl IrqLine for Pin {
    fn set_level(&self, high: bool) {
        if self.pin < PINS {
            let message = lock(&self.controller.registers).set_level(self.pin, high);
            self.controller.deliver(self.pin, message);
        }
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult {
        let registers = lock(&self.registers);
        let value = match offset {
            0x00 => u32::from(registers.select),
            0x10 => registers.read(),
            0x40 => return Err(IoError::Direction { offset }),
            _ => return Err(IoError::NoRegister { offset }),
        };
        let len = data.len();
        let data: &mut [u8; 4] = data.try_into().map_err(|_| IoError::Width { offset, len })?;
        *data = value.to_le_bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult {
        let len = data.len();
        // Index and vector are single bytes; some write them as such.
        let Some(&byte) = data.first().filter(|_| len == 4 || len == 1 && offset != 0x10) else {
            return Err(IoError::Width { offset, len });
        };
        match offset {
            0x00 => lock(&self.registers).select = byte,
            0x10 => {
                let raw = data.try_into().map_err(|_| IoError::Width { offset, len })?;
                self.write_window(u32::from_le_bytes(raw));
            }
            0x40 => self.end_of_interrupt(byte),
            _ => return Err(IoError::NoRegister { offset }),
        }
        Ok(())
    }
}
