//! The sorted table of ranges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::{BusDevice, IoResult};

/// A range that cannot be put on the bus: a fault of the machine's builder, not of the guest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InsertError {
    /// It shares addresses with another device.
    #[error("{name} at {base:#x}+{len:#x} overlaps {other}: choose another address")]
    Overlap { name: String, base: u64, len: u64, other: String },
    /// Empty, or beyond the end of the address space.
    #[error("{name} at {base:#x}+{len:#x} is not a range of addresses")]
    BadRange { name: String, base: u64, len: u64 },
}

/// What the bus counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusStats {
    /// Accesses where no device is.
    pub unknown: u64,
    /// Accesses that a device refused.
    pub refused: u64,
}

struct Slot {
    base: u64,
    /// Last address, inclusive: a range may end at the top of the address space.
    last: u64,
    name: String,
    device: Arc<dyn BusDevice>,
}

/// One address space (MMIO or port I/O). Filled while the machine is built, then only read.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
    unknown: AtomicU64,
    refused: AtomicU64,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `[base, base + len)`; `name` is for messages.
    ///
    /// # Errors
    /// [`InsertError`] when the range is empty, wraps around or overlaps another.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        name: &str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), InsertError> {
        let bad = || InsertError::BadRange { name: name.to_owned(), base, len };
        let last = len.checked_sub(1).and_then(|l| base.checked_add(l)).ok_or_else(bad)?;
        let at = self.slots.partition_point(|s| s.last < base);
        if let Some(next) = self.slots.get(at).filter(|s| s.base <= last) {
            let other = next.name.clone();
            return Err(InsertError::Overlap { name: name.to_owned(), base, len, other });
        }
        self.slots.insert(at, Slot { base, last, name: name.to_owned(), device });
        Ok(())
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Slot, u64)> {
        let slot = self.slots.get(self.slots.partition_point(|s| s.last < address))?;
        let end = address.checked_add((len as u64).checked_sub(1)?)?;
        (slot.base <= address && end <= slot.last).then(|| (slot, address - slot.base))
    }

    /// Answers a read: all ones where no device is, across the end of one, or when it refuses.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let result = self.find(address, data.len()).map(|(slot, offset)| slot.device.read(offset, data));
        if self.count(result).is_none() {
            data.fill(0xff);
        }
    }

    /// Takes a write; it goes nowhere where a read would give all ones.
    pub fn write(&self, address: u64, data: &[u8]) {
        let result = self.find(address, data.len()).map(|(slot, offset)| slot.device.write(offset, data));
        self.count(result);
    }

    fn count(&self, result: Option<IoResult>) -> Option<()> {
        match result {
            Some(Ok(())) => return Some(()),
            Some(Err(_)) => self.refused.fetch_add(1, Ordering::Relaxed),
            None => self.unknown.fetch_add(1, Ordering::Relaxed),
        };
        None
    }

    /// What went wrong so far.
    pub fn stats(&self) -> BusStats {
        BusStats {
            unknown: self.unknown.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Ranges in ascending order as (first address, last address, name).
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, &str)> {
        self.slots.iter().map(|s| (s.base, s.last, s.name.as_str()))
    }
}
