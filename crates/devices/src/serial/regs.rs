//! The eight registers (PC16550D, table I and section 8).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bus::{BusDevice, IoError, IoResult, IrqLine, lock};

use crate::Output;

/// Ports that the UART takes.
pub const SIZE: u64 = 8;
/// Input bytes that are kept for the guest: more are refused.
pub(super) const INPUT_LIMIT: usize = 1024;

/// IER: received data, transmitter empty; the other two sources never fire.
const IER_RECEIVED: u8 = 1;
const IER_TRANSMITTER: u8 = 2;
const IER_MASK: u8 = 0x0f;
/// IIR: nothing pending, transmitter empty, received data, FIFOs on.
const IIR_NONE: u8 = 1;
const IIR_TRANSMITTER: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_FIFO: u8 = 0xc0;
/// FCR: FIFOs on, clear the receive FIFO.
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVE: u8 = 2;
/// LCR: the first two registers are the baud-rate divisor.
const LCR_DIVISOR: u8 = 0x80;
/// MCR: outputs are wired to the inputs.
const MCR_LOOP: u8 = 0x10;
const MCR_MASK: u8 = 0x1f;
/// LSR: a byte is there; the transmitter is empty, twice.
const LSR_READY: u8 = 1;
const LSR_EMPTY: u8 = 0x60;
/// MSR: carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The registers that hold something.
#[derive(Clone, Debug, Default)]
pub(super) struct Registers {
    pub ier: u8,
    pub fifo: bool,
    pub lcr: u8,
    pub mcr: u8,
    pub scratch: u8,
    pub divisor: u16,
    pub transmitter_pending: bool,
    pub input: VecDeque<u8>,
}

/// A 16550A.
pub struct Serial {
    pub(super) inner: Mutex<Inner>,
    line: Arc<dyn IrqLine>,
}

pub(super) struct Inner {
    pub registers: Registers,
    output: Box<dyn Output>,
}

impl Serial {
    /// A UART that interrupts through `line` (ISA interrupt 4, edge) and writes to `output`.
    pub fn new(line: Arc<dyn IrqLine>, output: Box<dyn Output>) -> Self {
        let registers = Registers { divisor: 1, ..Default::default() };
        Self { inner: Mutex::new(Inner { registers, output }), line }
    }

    /// Gives the guest input; returns how many bytes were taken (the rest does not fit now).
    pub fn input(&self, bytes: &[u8]) -> usize {
        let inner = &mut *lock(&self.inner);
        let taken = bytes.len().min(INPUT_LIMIT - inner.registers.input.len());
        inner.registers.input.extend(&bytes[..taken]);
        self.drive(&inner.registers);
        taken
    }

    /// Sets the line as the registers demand. Called under the lock, so levels come in order.
    pub(super) fn drive(&self, registers: &Registers) {
        self.line.set_level(registers.source().is_some());
    }
}

impl Registers {
    /// The pending interrupt of the highest priority.
    fn source(&self) -> Option<u8> {
        if self.ier & IER_RECEIVED != 0 && !self.input.is_empty() {
            Some(IIR_RECEIVED)
        } else if self.ier & IER_TRANSMITTER != 0 && self.transmitter_pending {
            Some(IIR_TRANSMITTER)
        } else {
            None
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match offset {
            0 if divisor => self.divisor as u8,
            1 if divisor => (self.divisor >> 8) as u8,
            0 => self.input.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => {
                let source = self.source();
                if source == Some(IIR_TRANSMITTER) {
                    self.transmitter_pending = false;
                }
                source.unwrap_or(IIR_NONE) | if self.fifo { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => LSR_EMPTY | if self.input.is_empty() { 0 } else { LSR_READY },
            6 if self.mcr & MCR_LOOP != 0 => {
                // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
                let m = self.mcr;
                (m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4
            }
            6 => MSR_CONNECTED,
            _ => self.scratch,
        }
    }

    /// Returns a byte that leaves the machine.
    fn write(&mut self, offset: u64, value: u8) -> Option<u8> {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match offset {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if divisor => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => {
                self.transmitter_pending = true;
                if self.mcr & MCR_LOOP == 0 {
                    return Some(value);
                }
                if self.input.len() < INPUT_LIMIT {
                    self.input.push_back(value);
                }
            }
            1 => {
                // Enabling the transmitter interrupt while it is empty fires at once.
                self.transmitter_pending |= value & !self.ier & IER_TRANSMITTER != 0;
                self.ier = value & IER_MASK;
            }
            2 => {
                self.fifo = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVE != 0 {
                    self.input.clear();
                }
            }
            3 => self.lcr = value,
            4 => self.mcr = value & MCR_MASK,
            7 => self.scratch = value,
            _ => {} // line and modem status cannot be written
        }
        None
    }
}

fn byte(offset: u64, data: &[u8]) -> Result<u8, IoError> {
    match data {
        [byte] => Ok(*byte),
        _ => Err(IoError::Width { offset, len: data.len() }),
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult {
        byte(offset, data)?;
        let inner = &mut *lock(&self.inner);
        data.fill(inner.registers.read(offset));
        self.drive(&inner.registers);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult {
        let value = byte(offset, data)?;
        let inner = &mut *lock(&self.inner);
        if let Some(out) = inner.registers.write(offset, value) {
            inner.output.write(&[out]);
        }
        self.drive(&inner.registers);
        Ok(())
    }
}
