//! The event register, and the identifier.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bus::{BusDevice, IoError, IoResult, IrqLine};
use guestmem::GuestMemory;

/// Bytes of address space that the event register takes.
pub const SIZE: u64 = 0x10;

/// Bits of the event register; the DSDT's `_EVT` method reads them.
pub struct Events;

impl Events {
    /// The generation identifier changed.
    pub const GENERATION: u32 = 1;
    /// The power button was pressed: shut down, please.
    pub const POWER_BUTTON: u32 = 2;
    /// All of them.
    pub(super) const ALL: u32 = Self::GENERATION | Self::POWER_BUTTON;
}

/// The event register: bits at offset 0, cleared by reading.
pub struct Ged {
    pub(super) pending: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl Ged {
    /// Interrupts through `line` (edge).
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { pending: AtomicU32::new(0), line }
    }

    /// Tells the guest of events ([`Events`]).
    pub fn raise(&self, events: u32) {
        self.pending.fetch_or(events & Events::ALL, Ordering::AcqRel);
        self.line.pulse();
    }
}

impl BusDevice for Ged {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult {
        data.fill(0);
        if offset != 0 {
            return Ok(());
        }
        // A narrow read takes only the bits that it can carry.
        let width = data.len().min(4);
        let mask = u32::MAX.checked_shr(32 - 8 * width as u32).unwrap_or(0);
        let taken = self.pending.fetch_and(!mask, Ordering::AcqRel) & mask;
        data[..width].copy_from_slice(&taken.to_le_bytes()[..width]);
        Ok(())
    }

    fn write(&self, offset: u64, _data: &[u8]) -> IoResult {
        Err(IoError::Direction { offset })
    }
}

/// The identifier's place in guest RAM.
pub struct VmGenId {
    memory: GuestMemory,
    gpa: u64,
    ged: Arc<Ged>,
}

impl VmGenId {
    /// The identifier at `gpa` (8-byte aligned, in RAM that the guest's kernel leaves alone).
    pub fn new(memory: GuestMemory, gpa: u64, ged: Arc<Ged>) -> Self {
        Self { memory, gpa, ged }
    }

    /// Writes the identifier without telling: before the first boot.
    ///
    /// # Errors
    /// `gpa` is not RAM.
    pub fn set(&self, id: [u8; 16]) -> io::Result<()> {
        self.memory.write(self.gpa, &id).map_err(io::Error::other)
    }

    /// Writes a fresh random identifier and tells the guest. After every restore, before any vCPU
    /// runs. Returns the identifier.
    ///
    /// # Errors
    /// `gpa` is not RAM, or the host has no random bytes.
    pub fn renew(&self) -> io::Result<[u8; 16]> {
        let mut id = [0; 16];
        host::fill_random(&mut id)?;
        self.renew_as(id)?;
        Ok(id)
    }

    /// The same with an identifier of the caller's choice.
    ///
    /// # Errors
    /// `gpa` is not RAM.
    pub fn renew_as(&self, id: [u8; 16]) -> io::Result<()> {
        self.set(id)?;
        self.ged.raise(Events::GENERATION);
        Ok(())
    }
}
