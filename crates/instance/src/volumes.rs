//! Volumes as a VMM uses them: disks that somebody opened and locked, and where they are mounted.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_protocol::{MountSource, MountSpec};
use disk::{LiveCopy, LiveDisk, private_file};

use crate::error::{Error, io_error};

/// A volume that is attached to a machine; its slot is its place among the others.
#[derive(Clone)]
pub struct VolumeMount {
    pub name: String,
    pub disk: Arc<LiveDisk>,
    /// Absolute path in the guest.
    pub guest: String,
    pub read_only: bool,
}

impl VolumeMount {
    /// An empty disk of `size` bytes in the place of a volume, for a machine that is only looked into. It costs what is
    /// written to it, in a nameless file in `dir`.
    ///
    /// # Errors
    /// The host's.
    pub fn stand_in(name: &str, guest: &str, read_only: bool, size: u64, dir: &Path) -> Result<Self, Error> {
        let file = private_file(dir).map_err(io_error("make a file in", dir))?;
        let disk = file.set_len(size).and_then(|()| LiveDisk::new(file, !read_only));
        let disk = Arc::new(disk.map_err(io_error("make a disk in", dir))?);
        Ok(Self { name: name.to_owned(), disk, guest: guest.to_owned(), read_only })
    }
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

/// The copy of a volume for copies of its machine, as it is at one instant.
pub(crate) struct VolumeCopy {
    disk: Arc<LiveDisk>,
    path: PathBuf,
    /// Made before anything stands still.
    file: Option<File>,
    begun: Option<LiveCopy>,
}

/// Makes the files of those that are wanted, each a volume's name and a path.
///
/// # Errors
/// The host's; a name that no volume here has.
pub(crate) fn copies(volumes: &[VolumeMount], wanted: &[(String, String)]) -> Result<Vec<VolumeCopy>, Error> {
    let make = |(name, path): &(String, String)| {
        let volume = volumes.iter().find(|volume| volume.name == *name);
        let volume = volume.ok_or_else(|| Error::Refused(format!("volume `{name}` is not mounted here")))?;
        let path = PathBuf::from(path);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = Some(file.map_err(io_error("make", &path))?);
        Ok(VolumeCopy { disk: volume.disk.clone(), path, file, begun: None })
    };
    wanted.iter().map(make).collect()
}

impl VolumeCopy {
    /// This is the instant.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        if let Some(file) = self.file.take() {
            self.begun = Some(self.disk.copy(file).map_err(io_error("copy a volume to", &self.path))?);
        }
        Ok(())
    }

    /// Copies what was not copied yet, while the machine goes on.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let finished = self.begun.map_or(Ok(()), LiveCopy::finish);
        finished.map_err(io_error("copy a volume to", &self.path))
    }
}

/// Refuses what would part a running state from the volumes that it has mounted: `what`, like "a copy". One on this host
/// reads the same ones, and of those that are `copied` it gets its own.
pub(crate) fn refuse_parting(
    volumes: &[VolumeMount],
    copied: Option<&[(String, String)]>,
    what: &str,
) -> Result<(), Error> {
    let is_kept = |volume: &VolumeMount| {
        copied.is_some_and(|names| volume.read_only || names.iter().any(|(name, _)| *name == volume.name))
    };
    let Some(first) = volumes.iter().find(|volume| !is_kept(volume)) else { return Ok(()) };
    Err(Error::Refused(format!(
        "volume `{}` is mounted at {} in this machine, and {what} would go on with it beside this one; `smolvm freeze` \
         keeps both together, `smolvm volume snapshot` copies a volume once its machine is stopped or frozen",
        first.name, first.guest
    )))
}
