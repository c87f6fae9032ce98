//! Uses that last longer than a process: a frozen or stopped instance needs its machine at its next start.
//!
//! A reference names the directory of its owner and counts for as long as that directory exists, so that an
//! instance that is removed, by whatever means, gives its machine free.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use artifact::temp::sync_dir;
use artifact::{Digest, MachineFile};

use crate::error::{Error, Result};
use crate::pin::Pin;
use crate::root::Store;

impl Store {
    /// The pinned object is needed for as long as the directory `owner` (an absolute path) exists. It is known after a
    /// power failure, too; saying so once more costs nothing.
    pub fn add_reference(&self, pin: &Pin, owner: &Path) -> Result<()> {
        self.refer(pin, owner, true)
    }

    fn refer(&self, pin: &Pin, owner: &Path, durable: bool) -> Result<()> {
        let owner = std::path::absolute(owner).map_err(|error| Error::io(owner, "use it", error))?;
        self.made_part("refs")?;
        let part = format!("refs/{}", pin.id());
        let owner = owner.as_os_str().as_bytes();
        let name = Digest::of(owner).to_string();
        let path = self.part(&part).join(&name);
        match File::open(&path) {
            // Written whole or not at all: one that is there is as good as a new one.
            Ok(_) if !durable => Ok(()),
            // It may have been a passing one until now. Where it was not, this costs next to nothing.
            Ok(file) => file
                .sync_all()
                .and_then(|()| sync_dir(&self.part(&part)))
                .map_err(|error| Error::io(&path, "bring it to the disk", error)),
            Err(_) => self.put(&part, &name, owner, durable),
        }
    }

    /// Holds the object that `file` builds on, if it builds on one.
    ///
    /// # Errors
    /// [`Error::NoParent`] when it is not in the store.
    pub fn parent(&self, file: &MachineFile) -> Result<Option<Pin>> {
        let Some(id) = file.parent() else { return Ok(None) };
        match self.pin(&id) {
            Ok(pin) => Ok(Some(pin)),
            Err(Error::Gone { .. }) => Err(Error::NoParent { path: file.path().to_owned(), parent: id }),
            Err(error) => Err(error),
        }
    }

    /// An object that builds on another one needs it for as long as it is there.
    pub(crate) fn hold_parent(&self, file: &MachineFile) -> Result<()> {
        match self.parent(file)? {
            Some(parent) => self.add_reference(&parent, &self.object_path(&file.id())),
            None => Ok(()),
        }
    }

    /// [`Store::add_reference`] for an owner that is of no use after a power failure: written without
    /// waiting for the disk.
    pub fn add_passing_reference(&self, pin: &Pin, owner: &Path) -> Result<()> {
        self.refer(pin, owner, false)
    }

    /// Whether `owner` is known to need the object.
    pub fn is_referred(&self, id: &Digest, owner: &Path) -> bool {
        let owner = std::path::absolute(owner).unwrap_or_else(|_| owner.to_owned());
        let name = Digest::of(owner.as_os_str().as_bytes()).to_string();
        self.part(&format!("refs/{id}")).join(name).exists()
    }

    /// The directories, and objects of the store, that need an object. Ones that are gone are forgotten.
    pub fn references(&self, id: &Digest) -> Result<Vec<PathBuf>> {
        let part = format!("refs/{id}");
        let mut owners = Vec::new();
        for name in self.names_in(&part)? {
            let path = self.part(&part).join(name);
            let owner = match fs::read(&path) {
                Ok(owner) => owner,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(&path, "read it", error)),
            };
            let owner = PathBuf::from(OsStr::from_bytes(&owner));
            if is_gone(&owner) {
                // Best effort: it is looked at again next time.
                let _ = fs::remove_file(&path);
            } else {
                owners.push(owner);
            }
        }
        Ok(owners)
    }

    /// The object is not needed by `owner` any more.
    pub fn drop_reference(&self, id: &Digest, owner: &Path) -> Result<()> {
        let owner = std::path::absolute(owner).map_err(|error| Error::io(owner, "use it", error))?;
        let name = Digest::of(owner.as_os_str().as_bytes()).to_string();
        let path = self.part(&format!("refs/{id}")).join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(&path, "remove it", error)),
        }
    }

    /// Removes what is left of the references to an object that goes.
    pub(crate) fn drop_references(&self, id: &Digest) {
        // Only if it is empty; best effort: an empty directory harms nobody.
        let _ = fs::remove_dir(self.part(&format!("refs/{id}")));
    }
}

/// Whether an owner was removed, and not merely out of sight with the disk that it is on: then the directory
/// above it would be gone, too.
fn is_gone(owner: &Path) -> bool {
    let absent =
        |path: &Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    absent(owner) && !owner.parent().is_some_and(absent)
}
