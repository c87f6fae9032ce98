//! Objects: how one comes into the store, and how it is held while it is used.
//!
//! Problem: a machine may be resumed at the very moment at which somebody prunes the store. Strategy: who uses
//! an object has a shared lock (flock) on it for as long, who removes one takes the exclusive lock first.
//! Invariant: an object that is locked and whose name still stands for the locked file stays until the lock is
//! given up.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use artifact::temp::{TempFile, sync_dir};
use artifact::{Digest, MachineFile, MachineFileWriter, WriterOptions};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::error::{Error, Result};
use crate::root::Store;

/// An object that is in use: it is not removed while this exists, in this process or in one that inherits the
/// open file. The kernel ends the use with the process.
#[derive(Debug)]
pub struct Pin {
    file: File,
    id: Digest,
    path: PathBuf,
    /// What was read of it the first time.
    opened: OnceLock<MachineFile>,
}

impl Pin {
    /// The object's id.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Where it lies in the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, read-only, at no particular position.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Header and index, read once: nobody writes to an object. Its bytes were verified when it came into the store.
    pub fn open(&self) -> Result<MachineFile> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened.again()?);
        }
        let file = self.file.try_clone().map_err(|error| Error::io(&self.path, "use it again", error))?;
        let opened = MachineFile::open(file, &self.path)?;
        Ok(self.opened.get_or_init(|| opened).again()?)
    }
}

impl Store {
    /// Holds an object for use, and notes that it was used now.
    pub fn pin(&self, id: &Digest) -> Result<Pin> {
        let pin = self.pin_quietly(id)?;
        // Access times may be off for the file system, but can always be set. Best effort: it is for `images`.
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = rustix::fs::futimens(&pin.file, &Timestamps { last_access: now, last_modification: omit });
        Ok(pin)
    }

    /// Holds an object without noting so: to look is not to use.
    pub(crate) fn pin_quietly(&self, id: &Digest) -> Result<Pin> {
        let path = self.object_path(id);
        let fail = |attempt, error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::Gone { id: *id },
            _ => Error::io(&path, attempt, error),
        };
        let file = File::open(&path).map_err(|error| fail("open it", error))?;
        file.lock_shared().map_err(|error| fail("hold it", error))?;
        if !same_file(&file, &path).map_err(|error| fail("look at it", error))? {
            return Err(Error::Gone { id: *id });
        }
        Ok(Pin { file, id: *id, path, opened: OnceLock::new() })
    }

    /// Starts a machine file that comes into the store without being anywhere else.
    pub fn begin_object(&self, expected_len: Option<u64>) -> Result<ObjectWriter> {
        let path = self.made_part("tmp")?.join("new-machine");
        let options =
            WriterOptions { expected_len, mode: 0o400, temp: self.temp_style(), ..Default::default() };
        let writer = MachineFileWriter::create_with(&path, options)?;
        Ok(ObjectWriter { store: self.clone(), writer })
    }

    /// Gives a whole, verified, synced file its place. Where there is an object of that id, that one stays.
    pub(crate) fn place(&self, temp: TempFile, id: Digest) -> Result<Pin> {
        let dir = self.made_part("objects")?;
        let path = self.object_path(&id);
        let fail = |error| Error::io(&path, "put it into the store", error);
        let Some(file) = temp.link_new(&path).map_err(fail)? else {
            return self.pin(&id);
        };
        // From the writer's exclusive lock to a shared one; `pin` sees if somebody was faster.
        file.lock_shared().map_err(fail)?;
        let pin = self.pin(&id)?;
        sync_dir(&dir).map_err(fail)?;
        Ok(pin)
    }
}

/// A machine file being written into the store: see [`Store::begin_object`].
pub struct ObjectWriter {
    store: Store,
    /// Takes the sections.
    pub writer: MachineFileWriter,
}

impl ObjectWriter {
    /// The object is whole.
    pub fn finish(self) -> Result<Pin> {
        let (temp, id, _) = self.writer.seal()?;
        self.store.place(temp, id)
    }
}

/// Whether `path` still stands for the open `file`.
pub(crate) fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    let named = std::fs::symlink_metadata(path)?;
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}
