//! Between requests a disk has no state of its own; what travels is what it must fit.

use bus::RestoreError;
use serde::{Deserialize, Serialize};

use super::Blk;

const VERSION: u32 = 1;
const NAME: &str = "virtio-blk";

/// What the guest knows of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// 1.
    pub version: u32,
    /// Size in bytes.
    pub size: u64,
    pub read_only: bool,
}

impl BlkState {
    pub(super) fn of(blk: &Blk) -> Self {
        Self { version: VERSION, size: blk.disk.size(), read_only: blk.offers_reading_only() }
    }

    pub(super) fn check(&self, blk: &Blk) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, self.version, VERSION)?;
        let here = Self::of(blk);
        // What is in a slot may come and grow. It is mounted, though, once it was there.
        let grown = blk.slot && self.read_only == here.read_only && self.size <= here.size;
        if *self == here || grown {
            return Ok(());
        }
        let word = |ro: bool| if ro { "read-only" } else { "writable" };
        let what = format!(
            "it was a {} disk of {} bytes, here it is a {} one of {}",
            word(self.read_only),
            self.size,
            word(here.read_only),
            here.size
        );
        Err(RestoreError::invalid(NAME, what))
    }
}
