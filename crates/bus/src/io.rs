//! The contract between the bus and a device.

use thiserror::Error;

/// Why a device did not take an access. The bus decides what the guest sees: reads give all ones,
/// writes are dropped, and the access is counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum IoError {
    /// The register exists but not with this many bytes.
    #[error("{len} bytes at offset {offset:#x}: the register does not have this width")]
    Width { offset: u64, len: usize },
    /// No register at this offset.
    #[error("no register at offset {offset:#x}")]
    NoRegister { offset: u64 },
    /// A register that can only be written was read, or the other way round.
    #[error("register at offset {offset:#x} does not go this way")]
    Direction { offset: u64 },
}

/// What a device answers with.
pub type IoResult = Result<(), IoError>;

/// Something with registers. Called from any vCPU thread, several at once.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1, 2, 4 or 8 bytes, little-endian) from the register at `offset` into the
    /// device's range. `offset + data.len()` lies within the range.
    ///
    /// # Errors
    /// An access that the device does not have; `data` is then overwritten with ones.
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult;

    /// Takes a write, as [`BusDevice::read`].
    ///
    /// # Errors
    /// An access that the device does not have; it had no effect.
    fn write(&self, offset: u64, data: &[u8]) -> IoResult;
}
