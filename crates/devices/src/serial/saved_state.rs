//! What travels of a UART.

use bus::{RestoreError, Saved, lock};
use serde::{Deserialize, Serialize};

use super::Serial;
use super::regs::{INPUT_LIMIT, Registers};

const VERSION: u32 = 1;
const NAME: &str = "serial port";

/// Registers, and input that the guest has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// 1.
    pub version: u32,
    pub ier: u8,
    pub fifo: bool,
    pub lcr: u8,
    pub mcr: u8,
    pub scratch: u8,
    pub divisor: u16,
    pub transmitter_pending: bool,
    pub input: Vec<u8>,
}

impl Saved for Serial {
    type State = SerialState;

    fn save(&self) -> SerialState {
        let r = lock(&self.inner).registers.clone();
        SerialState {
            version: VERSION,
            ier: r.ier,
            fifo: r.fifo,
            lcr: r.lcr,
            mcr: r.mcr,
            scratch: r.scratch,
            divisor: r.divisor,
            transmitter_pending: r.transmitter_pending,
            input: r.input.into(),
        }
    }

    fn restore(&self, s: &SerialState) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, s.version, VERSION)?;
        if s.ier > 0x0f || s.mcr > 0x1f || s.input.len() > INPUT_LIMIT {
            return Err(RestoreError::invalid(NAME, "registers that the port cannot hold"));
        }
        let inner = &mut *lock(&self.inner);
        inner.registers = Registers {
            ier: s.ier,
            fifo: s.fifo,
            lcr: s.lcr,
            mcr: s.mcr,
            scratch: s.scratch,
            divisor: s.divisor,
            transmitter_pending: s.transmitter_pending,
            input: s.input.iter().copied().collect(),
        };
        self.drive(&inner.registers);
        Ok(())
    }
}
