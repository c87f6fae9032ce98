//! Folders of this host that a machine may use: what the user named, opened; what the guest's agent is told.

use std::path::{Path, PathBuf};

use agent_protocol::{MountSource, MountSpec};
use machine::{Folder, Machine, Placed};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Folders of one machine at once.
const MOST: usize = 64;

/// A folder or file, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFolder {
    /// On this host.
    pub host: PathBuf,
    /// An absolute path in the guest.
    pub guest: String,
    pub read_only: bool,
}

/// Opens what the user named, and makes room for the guest's open files. Nothing without folders.
///
/// # Errors
/// The first that cannot be shared, by name.
pub(crate) fn open(folders: &[SharedFolder]) -> Result<Vec<Folder>, Error> {
    if folders.len() > MOST {
        return Err(Error::Refused(format!(
            "{} shared folders; a machine has at most {MOST}",
            folders.len()
        )));
    }
    if !folders.is_empty() {
        // Each of them is a descriptor here.
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
    folders.iter().map(open_one).collect()
}

fn open_one(folder: &SharedFolder) -> Result<Folder, Error> {
    let refused = |why: String| Error::Refused(format!("cannot share {}: {why}", folder.host.display()));
    Folder::open(&folder.host, &folder.guest, folder.read_only).map_err(|e| {
        let hint = if e.kind() == std::io::ErrorKind::NotFound { "; make it first" } else { "" };
        refused(format!("{e}{hint}"))
    })
}

/// What the agent is to mount.
pub(crate) fn specs(machine: &Machine) -> impl Iterator<Item = MountSpec> {
    machine.folders().into_iter().map(|Placed { id, guest, read_only, file }| MountSpec {
        source: MountSource::Folder { id, file },
        path: guest,
        read_only,
    })
}

/// What to tell the user of folders that a frozen machine had and now has not.
pub fn missing_note(machine: &Machine) -> Option<String> {
    let missing = machine.missing_folders();
    let first = missing.first()?;
    Some(format!(
        "the machine was frozen with shared folders at {}; what its processes do there fails with \"Stale file \
         handle\" unless you name them again, like -v {}:{first}",
        missing.join(", "),
        Path::new(first)
            .file_name()
            .map_or("./folder".into(), |name| format!("./{}", name.to_string_lossy())),
    ))
}
