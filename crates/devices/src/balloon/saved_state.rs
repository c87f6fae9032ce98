//! What the driver wrote into the configuration. Pages that were given back are zeros in memory: nothing to keep.

use bus::RestoreError;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// The balloon's size as its driver says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// 1.
    pub version: u32,
    /// Pages of 4 KiB in the balloon.
    pub actual: u32,
}

impl BalloonState {
    pub(super) fn of(actual: u32) -> Self {
        Self { version: VERSION, actual }
    }

    pub(super) fn check(&self) -> Result<(), RestoreError> {
        RestoreError::check_version("virtio-balloon", self.version, VERSION)
    }
}
