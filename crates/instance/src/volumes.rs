//! Volumes as a VMM uses them: disks that somebody opened and locked, and where they are mounted.

use std::fmt;
use std::sync::Arc;

use agent_protocol::{MountSource, MountSpec};
use disk::Disk;

use crate::error::Error;

/// A volume that is attached to a machine; its slot is its place among the others.
#[derive(Clone)]
pub struct VolumeMount {
    pub name: String,
    pub disk: Arc<dyn Disk>,
    /// Absolute path in the guest.
    pub guest: String,
    pub read_only: bool,
}

impl fmt::Debug for VolumeMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.name, self.guest, if self.read_only { ":ro" } else { "" })
    }
}

/// What the agent is to mount.
pub(crate) fn specs(volumes: &[VolumeMount]) -> impl Iterator<Item = MountSpec> {
    let spec = |(slot, volume): (u8, &VolumeMount)| MountSpec {
        source: MountSource::Volume(slot),
        path: volume.guest.clone(),
        read_only: volume.read_only,
    };
    (0..).zip(volumes).map(spec)
}

/// Refuses what would part a running state from the volumes that it has mounted: `what`, like "a snapshot".
pub(crate) fn refuse_parting(volumes: &[VolumeMount], what: &str) -> Result<(), Error> {
    let Some(first) = volumes.first() else { return Ok(()) };
    Err(Error::Refused(format!(
        "volume `{}` is mounted at {} in this machine, and {what} would go on with it beside this one; `smolvm freeze` \
         keeps both together, `smolvm volume snapshot` copies a volume once its machine is stopped or frozen",
        first.name, first.guest
    )))
}
