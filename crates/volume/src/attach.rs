//! A volume that a machine uses.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use disk::LiveDisk;
use rustix::fs::FlockOperation;

use crate::error::{Error, io_error};
use crate::volumes::Volume;

/// Where the superblock's incompatible features are, and the one that says that the journal holds what the file
/// system does not yet (kernel documentation, filesystems/ext4/super.rst).
const FEATURE_INCOMPAT: u64 = 1024 + 0x60;
const NEEDS_RECOVERY: u32 = 0x4;

/// What a machine does with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Alone.
    Write,
    /// With other readers.
    Read,
}

/// A volume in use, until the last of its disk is gone: the lock is the open file's.
pub struct Attached {
    pub disk: Arc<LiveDisk>,
    /// For [`Volume::attach`] by the same machine after a freeze.
    pub generation: u64,
}

impl Volume {
    /// Takes it for `instance`. `known`: the generation that a frozen machine has it mounted with.
    ///
    /// # Errors
    /// [`Error::InUse`]; [`Error::NeedsRecovery`] for reading; [`Error::Changed`]; the host's.
    pub fn attach(&self, instance: &str, access: Access, known: Option<u64>) -> Result<Attached, Error> {
        let path = self.disk_path();
        let file = self.lock(match access {
            Access::Write => FlockOperation::NonBlockingLockExclusive,
            Access::Read => FlockOperation::NonBlockingLockShared,
        })?;
        let mut info = self.info()?;
        if known.is_some_and(|known| known != info.generation) {
            return Err(Error::Changed { name: self.name().to_owned() });
        }
        if access == Access::Read
            && known.is_none()
            && needs_recovery(&file).map_err(io_error("read", &path))?
        {
            return Err(Error::NeedsRecovery { name: self.name().to_owned() });
        }
        let disk = LiveDisk::new(file, access == Access::Write).map_err(io_error("use", &path))?;
        info.generation += u64::from(access == Access::Write);
        info.used_by = Some(instance.to_owned());
        self.write_info(&info)?;
        Ok(Attached { disk: Arc::new(disk), generation: info.generation })
    }
}

/// Whether only a mount for writing would make the file system whole.
fn needs_recovery(disk: &File) -> io::Result<bool> {
    let mut word = [0; 4];
    disk.read_exact_at(&mut word, FEATURE_INCOMPAT)?;
    Ok(u32::from_le_bytes(word) & NEEDS_RECOVERY != 0)
}
