//! Three bytes of registers. They hold nothing, so nothing of them travels.

use bus::{BusDevice, IoError, IoResult};

/// Bytes of address space.
pub const SIZE: u64 = 3;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register; always "not waking".
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// What the guest writes there.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of S5, soft off; the DSDT's `\_S5` says the same.
pub const SLP_TYP_S5: u8 = 5;

/// Sleep control: go.
const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;

/// What the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    Shutdown,
    Reset,
}

/// The registers.
pub struct Power {
    callback: Box<dyn Fn(PowerEvent) + Send + Sync>,
}

impl Power {
    /// Calls `callback` on the vCPU thread that wrote: it must only leave word and return.
    pub fn new(callback: impl Fn(PowerEvent) + Send + Sync + 'static) -> Self {
        Self { callback: Box::new(callback) }
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult {
        if offset >= SIZE {
            return Err(IoError::NoRegister { offset });
        }
        data.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult {
        let &[value] = data else { return Err(IoError::Width { offset, len: data.len() }) };
        match offset {
            SLEEP_CONTROL if value == SLP_EN | SLP_TYP_S5 << SLP_TYP_SHIFT => {
                (self.callback)(PowerEvent::Shutdown);
            }
            RESET if value == RESET_VALUE => (self.callback)(PowerEvent::Reset),
            // Other sleep types do not exist here; the wake status is cleared by writing.
            SLEEP_CONTROL | SLEEP_STATUS | RESET => {}
            _ => return Err(IoError::NoRegister { offset }),
        }
        Ok(())
    }
}
