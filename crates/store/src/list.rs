//! What is in the store.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use artifact::{Digest, MachineFile, SectionKind};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::root::Store;
use crate::tags::{Origin, Tag};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// A base: boots.
    Base,
    /// A frozen run on a base: resumes.
    Snapshot,
    /// A base that was made of an OCI image.
    Oci,
    /// Changes of a disk, kept for the next build.
    Layer,
    /// Not readable; `prune` or `rm` removes it.
    Damaged,
}

/// An object and what is known of it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id.
    pub id: Digest,
    /// Its names, sorted.
    pub names: Vec<String>,
    /// What it is.
    pub kind: ImageKind,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes that it takes on the disk; shared ones count, too.
    pub on_disk: u64,
    /// When it came into the store.
    pub created: SystemTime,
    /// When it was last held for use.
    pub last_used: SystemTime,
    /// Whether somebody holds it now.
    pub in_use: bool,
    /// The object that it builds on.
    pub parent: Option<Digest>,
    /// Its first root image: digest and length in bytes. What builds on another object has that one's.
    pub root: Option<(Digest, u64)>,
}

impl Store {
    /// Every object, the last used first.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut names: HashMap<Digest, Vec<Tag>> = HashMap::new();
        for tag in self.tags()? {
            names.entry(tag.id).or_default().push(tag);
        }
        let mut images = Vec::new();
        for id in self.ids()? {
            let tags = names.remove(&id).unwrap_or_default();
            match self.image(id, tags) {
                Ok(image) => images.push(image),
                // Removed since.
                Err(Error::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by_key(|image| std::cmp::Reverse(image.last_used));
        Ok(images)
    }

    pub(crate) fn image(&self, id: Digest, tags: Vec<Tag>) -> Result<Image> {
        let path = self.object_path(&id);
        let fail = |error| not_looked_at(&path, id, error);
        let file = open_to_look(&path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let (created, last_used) = (meta.modified().map_err(fail)?, meta.accessed().map_err(fail)?);
        // The lock ends with `file`, a moment from now.
        let in_use = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        let oci = tags.iter().any(|tag| tag.origin == Origin::Oci);
        let machine = MachineFile::open(file, &path).ok().filter(|machine| machine.id() == id);
        let kind = match &machine {
            Some(machine) if machine.is_snapshot() => ImageKind::Snapshot,
            Some(machine) if machine.section(SectionKind::Spec).is_none() => ImageKind::Layer,
            Some(_) if oci => ImageKind::Oci,
            Some(_) => ImageKind::Base,
            None => ImageKind::Damaged,
        };
        let parent = machine.as_ref().and_then(MachineFile::parent);
        let root = machine.as_ref().and_then(|machine| machine.section(SectionKind::RootImage));
        let root = root.map(|section| (section.digest, section.len));
        let names = tags.into_iter().map(|tag| tag.name).collect();
        let (len, on_disk) = (meta.len(), meta.blocks().saturating_mul(512));
        Ok(Image { id, names, kind, len, on_disk, created, last_used, in_use, parent, root })
    }

    /// An object's sections, to be shown: it does not count as used for that, and may be removed meanwhile.
    ///
    /// # Errors
    /// [`Error::Gone`]; the host's; a damaged file.
    pub fn look(&self, id: &Digest) -> Result<MachineFile> {
        let path = self.object_path(id);
        let file = open_to_look(&path).map_err(|error| not_looked_at(&path, *id, error))?;
        Ok(MachineFile::open(file, &path)?)
    }
}

/// To look is not to use: without this the file system may count it as an access.
fn open_to_look(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn not_looked_at(path: &Path, id: Digest, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::Gone { id },
        _ => Error::io(path, "look at it", error),
    }
}
