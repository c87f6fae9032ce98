//! A user's file comes into the store: copied, then every byte of the *copy* verified, then named.
//!
//! What is checked is what will be used: whatever happens to the user's file meanwhile or later changes nothing.
//! Next: `pin.rs`, which gives the copy its name.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use artifact::copy::{clone_file, copy_range};
use artifact::{Digest, Error as FileError, MachineFile, Problem, Progress, VerifyOptions, space};

use crate::alike::{self, Known};
use crate::error::{Error, Result};
use crate::paths::Stamp;
use crate::pin::Pin;
use crate::root::Store;

/// How often an import begins again because the object was pruned the moment it was there.
const ATTEMPTS: usize = 3;

/// What an import is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Copying the bytes; passed over where the file system shares them.
    Copy,
    /// Comparing them with the digests.
    Verify,
}

/// How a file is imported.
#[derive(Clone, Copy, Default)]
pub struct ImportOptions<'a> {
    /// Called now and then, from any thread; [`ControlFlow::Break`] ends the import with
    /// [`Problem::Cancelled`], and nothing stays.
    pub progress: Option<&'a (dyn Fn(Stage, Progress) -> ControlFlow<()> + Sync)>,
}

impl Store {
    /// The machine in the user's file at `path`: recognised if it was imported before, else imported. The way
    /// of `smolvm run FILE`.
    pub fn fetch(&self, path: &Path, options: ImportOptions<'_>) -> Result<Pin> {
        match self.recognise(path)? {
            Some(pin) => Ok(pin),
            None => self.import_with(path, options),
        }
    }

    /// The machine in the user's file at `path`, held, if it was imported before and is still there. Reads nothing
    /// of the file.
    pub fn recognise(&self, path: &Path) -> Result<Option<Pin>> {
        let Some(id) = self.lookup_path(path)? else { return Ok(None) };
        match self.pin(&id) {
            Err(Error::Gone { .. }) => Ok(None),
            pinned => pinned.map(Some),
        }
    }

    /// [`Store::import_with`] without progress.
    pub fn import(&self, path: &Path) -> Result<Pin> {
        self.import_with(path, ImportOptions::default())
    }

    /// Verifies the file at `path` whole, puts it into the store where it is not there yet, and holds it.
    /// Fails, with nothing left behind, when a byte of it is wrong, when the store's file system has no room, or
    /// when the file changes meanwhile. Many processes may import one file: one of them copies.
    pub fn import_with(&self, path: &Path, options: ImportOptions<'_>) -> Result<Pin> {
        self.import_file(artifact::open_quietly(path)?, path, options)
    }

    /// [`Store::import_with`] of a file that is open.
    pub(crate) fn import_file(&self, file: File, path: &Path, options: ImportOptions<'_>) -> Result<Pin> {
        // Before the first byte is read: see `Stamp::is_settled`.
        let begun = SystemTime::now();
        let before = stamp(&file, path)?;
        let source = MachineFile::open(file, path)?;
        // Before the copy, and again once there is an owner: a prune in between forgets the first.
        self.hold_parent(&source)?;
        let _turn = self.import_turn(&source.id())?;
        let mut attempt = 1;
        let pin = loop {
            match self.take(&source, &before, options) {
                Err(Error::Gone { .. }) if attempt < ATTEMPTS => attempt += 1,
                taken => break taken,
            }
        };
        let unchanged = stamp(source.file(), path)? == before;
        match pin {
            Ok(pin) => {
                self.hold_parent(&source)?;
                if unchanged && before.is_settled(begun) {
                    self.record_stamp(&before, &pin.id())?;
                }
                Ok(pin)
            }
            Err(Error::File(_)) if !unchanged => Err(Error::Changed { path: path.to_owned() }),
            Err(error) => Err(error),
        }
    }

    /// One attempt.
    fn take(&self, source: &MachineFile, before: &Stamp, options: ImportOptions<'_>) -> Result<Pin> {
        match self.pin(&source.id()) {
            Ok(pin) => {
                // Somebody may have imported this very file while we waited for our turn.
                if self.lookup_stamp(before)? != Some(pin.id()) {
                    verify(source, options)?;
                }
                Ok(pin)
            }
            Err(Error::Gone { .. }) => self.copy_in(source, options),
            Err(error) => Err(error),
        }
    }

    /// Copies, verifies the copy, names it.
    fn copy_in(&self, source: &MachineFile, options: ImportOptions<'_>) -> Result<Pin> {
        let temp = self.temp_file(0o400)?;
        let shared = clone_file(source.file(), temp.file())
            .map_err(|error| FileError::io(source.path(), "share its blocks with the store", error))?;
        let known = self.sections_at_hand(source)?;
        if shared {
            alike::share(&known, temp.file())
                .map_err(|error| FileError::io(source.path(), "share its blocks with the store", error))?;
        } else {
            let shared: u64 = known.iter().map(|(section, ..)| section.len).sum();
            space::check(source.path(), &self.part("tmp"), source.len().saturating_sub(shared))?;
            copy(source, temp.file(), &known, options)?;
        }
        let copy = temp.file().try_clone().map_err(|error| Error::io(self.root(), "use a file", error))?;
        // Under the user's name: that is the file which is at fault if this fails.
        let copy = MachineFile::open(copy, source.path())?;
        verify(&copy, options)?;
        // An object is trusted by its name from now on, so it has to survive a power failure whole.
        let synced = temp.file().sync_all();
        synced.map_err(|error| Error::io(self.root(), "bring a machine to the disk", error))?;
        let id = copy.id();
        drop(copy);
        self.place(temp, id)
    }

    /// Waits until nobody else imports a file with this id, so that a hundred starts of a new file make one copy.
    /// (Files whose ids begin alike wait for each other, too.)
    pub(crate) fn import_turn(&self, id: &Digest) -> Result<File> {
        let stripe = id.as_bytes().first().map_or(0, |byte| byte >> 4);
        let path = self.made_part("locks")?.join(format!("import-{stripe:x}"));
        let fail = |error| Error::io(&path, "lock it", error);
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        lock.lock().map_err(fail)?;
        Ok(lock)
    }
}

pub(crate) fn stamp(file: &File, path: &Path) -> Result<Stamp> {
    let meta = file.metadata().map_err(|error| Error::io(path, "look at it", error))?;
    Ok(Stamp::of(&meta))
}

/// The bytes of `source` into the empty `into`; those of `known` sections from objects that have them, so that the file
/// system keeps them once.
fn copy(source: &MachineFile, into: &File, known: &[Known], options: ImportOptions<'_>) -> Result<()> {
    let (mut done, total) = (0, source.len());
    let cancelled = AtomicBool::new(false);
    let mut each = |piece| {
        done += piece;
        match options.progress.map(|progress| progress(Stage::Copy, Progress { done, total })) {
            Some(ControlFlow::Break(())) => {
                cancelled.store(true, Ordering::Relaxed);
                Err(io::ErrorKind::Interrupted.into())
            }
            _ => Ok(()),
        }
    };
    let mut at = 0;
    let mut copied = Ok(());
    for (section, object, offset) in known {
        copied = copied
            .and_then(|()| copy_range((source.file(), at), (into, at), section.offset - at, &mut each))
            .and_then(|()| copy_range((object, *offset), (into, section.offset), section.len, &mut each));
        at = section.offset + section.len;
    }
    let copied = copied.and_then(|()| copy_range((source.file(), at), (into, at), total - at, &mut each));
    copied.map_err(|error| {
        if cancelled.load(Ordering::Relaxed) {
            return source.error(Problem::Cancelled).into();
        }
        FileError::io(source.path(), "copy it into the store", error).into()
    })
}

pub(crate) fn verify(file: &MachineFile, options: ImportOptions<'_>) -> Result<()> {
    let progress =
        |progress| options.progress.map_or(ControlFlow::Continue(()), |f| f(Stage::Verify, progress));
    Ok(file.verify_all(VerifyOptions { threads: 0, progress: Some(&progress) })?)
}
