//! A user's file moves into the store: `import --move`.
//!
//! Problem: a move must lose the file at no instant, and what is in the store must be nobody's to write. Strategy:
//! where the file can become the object itself (this file system, one name, this user's, nobody writing) it is
//! closed to writers, verified, brought to the disk and linked under its id; else it is copied as in any import.
//! Only once the caller has what it needs (a name), [`Taken::finish`] removes the old name. A kill in between leaves
//! both names: moving once more finishes it, and `doctor --repair` parts the two. What mode the user's file had is kept
//! in a mark meanwhile (`moves.rs`).

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use artifact::temp::{link_open, sync_dir};
use artifact::{MachineFile, open_quietly};

use crate::error::{Error, Result};
use crate::import::{ImportOptions, stamp, verify};
use crate::moves::MODE;
use crate::pin::Pin;
use crate::root::Store;

/// A file that the store has, on the disk, and that has its old name, too.
#[derive(Debug)]
pub struct Taken {
    pin: Pin,
    path: PathBuf,
    /// Which file had that name: device and inode.
    key: (u64, u64),
    len: u64,
    modified: (i64, i64),
    /// Remembers the mode that it had.
    mark: Option<PathBuf>,
}

impl Store {
    /// Puts the file at `path` into the store, without a copy where that is possible. It keeps its old name until
    /// [`Taken::finish`].
    ///
    /// # Errors
    /// As [`Store::import_with`]; [`Error::NotMovable`].
    pub fn take_over(&self, path: &Path, options: ImportOptions<'_>) -> Result<Taken> {
        let refuse = |why: &'static str| Error::NotMovable { path: path.to_owned(), why };
        let named = fs::symlink_metadata(path).map_err(|error| Error::io(path, "open it", error))?;
        if named.is_symlink() {
            return Err(refuse("it is a symbolic link; name the file that it leads to"));
        }
        // One of them may be of this very file, which has its mode again then.
        self.end_cut_off_moves()?;
        let file = open_quietly(path)?;
        let meta = file.metadata().map_err(|error| Error::io(path, "look at it", error))?;
        let again = file.try_clone().map_err(|error| Error::io(path, "use it again", error))?;
        let source = MachineFile::open(again, path)?;
        let (pin, mark) = match self.link_in(&source, &meta, options)? {
            Some(linked) => linked,
            None => (self.import_file(file, path, options)?, None),
        };
        let modified = (meta.mtime(), meta.mtime_nsec());
        Ok(Taken {
            pin,
            path: path.to_owned(),
            key: (meta.dev(), meta.ino()),
            len: meta.len(),
            modified,
            mark,
        })
    }

    /// Makes the very file an object, and says where its mark is; `None` where that cannot be, or where there is one of
    /// that id.
    fn link_in(
        &self,
        source: &MachineFile,
        meta: &fs::Metadata,
        options: ImportOptions<'_>,
    ) -> Result<Option<(Pin, Option<PathBuf>)>> {
        self.hold_parent(source)?;
        let _turn = self.import_turn(&source.id())?;
        match self.pin(&source.id()) {
            // A move that was cut off: the object is this file.
            Ok(pin) if is_file(&pin, meta) => return Ok(Some((pin, self.mark_of(&source.id())?))),
            Err(Error::Gone { .. }) => {}
            Ok(_) => return Ok(None),
            Err(error) => return Err(error),
        }
        let objects = self.made_part("objects")?;
        let ours = rustix::process::geteuid().as_raw();
        let here = fs::metadata(&objects).map_err(|error| Error::io(&objects, "look at it", error))?.dev();
        if (meta.dev(), meta.uid(), meta.nlink()) != (here, ours, 1) {
            return Ok(None);
        }
        let fail = |attempt| move |error: io::Error| Error::io(source.path(), attempt, error);
        // Held from its first moment under another name, so that nobody ends its mark or prunes it.
        source.file().lock_shared().map_err(fail("hold it"))?;
        let Some(mark) = self.mark_move(source.file(), &source.id(), meta.mode() & 0o7777)? else {
            return Ok(None);
        };
        let closed = Closed::to_writers(source, meta, mark)?;
        // Where that cannot be told there may be one.
        if host::has_writers(source.file()).unwrap_or(true) {
            return Ok(None);
        }
        let before = stamp(source.file(), source.path())?;
        verify(source, options)?;
        source.file().sync_all().map_err(fail("bring it to the disk"))?;
        if stamp(source.file(), source.path())? != before {
            return Err(Error::Changed { path: source.path().to_owned() });
        }
        let object = self.object_path(&source.id());
        match link_open(source.file(), &object) {
            Ok(true) => {}
            // Somebody else's copy came first, or this file system links only what has no name: copy.
            Ok(false) | Err(_) => return Ok(None),
        }
        let mark = closed.stays();
        let pin = self.pin(&source.id())?;
        sync_dir(&objects).map_err(fail("bring its new name to the disk"))?;
        self.hold_parent(source)?;
        Ok(Some((pin, mark)))
    }
}

impl Taken {
    /// The object, held.
    pub fn pin(&self) -> &Pin {
        &self.pin
    }

    /// Removes the old name, unless another file has it by now; whether it is gone.
    pub fn finish(self) -> Result<bool> {
        let fail = |error: io::Error| Error::io(&self.path, "remove it, which the store has now,", error);
        let meta = match fs::symlink_metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(fail(error)),
        };
        let same = (meta.dev(), meta.ino()) == self.key
            && (meta.len(), (meta.mtime(), meta.mtime_nsec())) == (self.len, self.modified);
        if !same {
            return Ok(false);
        }
        fs::remove_file(&self.path).map_err(fail)?;
        if let Some(mark) = &self.mark {
            // Best effort: without the old name the next who cleans up finds that it is over.
            let _ = fs::remove_file(mark);
        }
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Best effort: after a power failure it may have both names, as after a kill.
        let _ = sync_dir(dir);
        Ok(true)
    }
}

fn is_file(pin: &Pin, meta: &fs::Metadata) -> bool {
    pin.file().metadata().is_ok_and(|object| (object.dev(), object.ino()) == (meta.dev(), meta.ino()))
}

/// A file that nobody may write, for as long as this exists or for good.
struct Closed<'a> {
    file: Option<&'a File>,
    mode: u32,
    mark: PathBuf,
}

impl<'a> Closed<'a> {
    fn to_writers(source: &'a MachineFile, meta: &fs::Metadata, mark: PathBuf) -> Result<Closed<'a>> {
        let closed = Closed { file: Some(source.file()), mode: meta.mode() & 0o7777, mark };
        let set = source.file().set_permissions(Permissions::from_mode(MODE));
        set.map_err(|error| Error::io(source.path(), "close it to writers", error))?;
        Ok(closed)
    }

    /// For good; its mark is the caller's.
    fn stays(mut self) -> Option<PathBuf> {
        self.file.take().map(|_| std::mem::take(&mut self.mark))
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // Best effort: it is its owner's, who can open it again.
            if file.set_permissions(Permissions::from_mode(self.mode)).is_ok() {
                let _ = fs::remove_file(&self.mark);
            }
        }
    }
}
