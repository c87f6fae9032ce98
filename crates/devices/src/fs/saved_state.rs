//! The guest's session: what it knows of its folders by number, and its open files.

use hostfs::SessionState;
use serde::{Deserialize, Serialize};

pub(super) const VERSION: u32 = 1;
pub(super) const NAME: &str = "virtio-fs";

/// State of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// 1.
    pub version: u32,
    /// Names no place of the host.
    pub session: SessionState,
}
