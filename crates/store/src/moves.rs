//! Marks of moves into the store (`take.rs`), so that one that is cut off gives the user's file its mode back.
//!
//! Problem: a file is closed to writers before it becomes an object, and a kill in between would leave it so where its
//! user has it. Strategy: before that it gets one more name, among unfinished files, which says what it was: a second
//! name leads to the very file wherever its user has moved it since. Whoever moves holds a lock on the file; without one
//! a mark is nobody's any more, and whoever cleans up ends it. Next: `take.rs`, `prune.rs`, `check.rs`.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use artifact::temp::link_open;
use artifact::{Digest, open_quietly};

use crate::error::{Error, Result};
use crate::root::Store;

/// Of an object: reading, by its owner.
pub(crate) const MODE: u32 = 0o400;
/// What a mark's name begins with; then the object's id, and the mode in octal.
const PREFIX: &str = ".smolvm-move-";

/// A mark that nobody's lock holds.
pub(crate) struct CutOff {
    pub path: PathBuf,
    /// Locked meanwhile.
    file: File,
    mode: u32,
    is_object: bool,
}

impl CutOff {
    /// Whether nothing but the mark is left to be done: the file is an object alone, or its user's alone.
    fn is_over(&self) -> io::Result<bool> {
        Ok(!self.is_object || self.file.metadata()?.nlink() <= 2)
    }

    /// Removes the mark. The user's file has its mode again before.
    pub(crate) fn end(&self) -> io::Result<()> {
        if !self.is_object && self.file.metadata()?.mode() & 0o7777 == MODE {
            self.file.set_permissions(Permissions::from_mode(self.mode))?;
        }
        fs::remove_file(&self.path)
    }
}

impl Store {
    /// Marks an open, locked file of this mode that is to be the object `id`; nothing where it can have no second name.
    pub(crate) fn mark_move(&self, file: &File, id: &Digest, mode: u32) -> Result<Option<PathBuf>> {
        let path = self.made_part("tmp")?.join(format!("{PREFIX}{id}-{mode:o}"));
        Ok(link_open(file, &path).is_ok_and(|made| made).then_some(path))
    }

    /// The mark of the move of an object.
    pub(crate) fn mark_of(&self, id: &Digest) -> Result<Option<PathBuf>> {
        let names = self.names_in("tmp")?;
        let name = names.into_iter().find(|name| read_name(name).is_some_and(|(marked, _)| marked == *id));
        Ok(name.map(|name| self.part("tmp").join(name)))
    }

    /// The marks of moves that were cut off and have nothing more to do. Those of files that are objects and their
    /// users' at once stay: moving once more ends them, or a check with `repair`.
    pub(crate) fn cut_off_moves(&self) -> Result<Vec<CutOff>> {
        let dir = self.part("tmp");
        let marks = self.names_in("tmp")?;
        let marks = marks.iter().filter_map(|name| Some((dir.join(name), read_name(name)?)));
        let found = marks.filter_map(|(path, (id, mode))| {
            // Somebody else's file, or one that is gone by now, is not ours to mind.
            let file = open_quietly(&path).ok()?;
            file.try_lock().ok()?;
            let is_object = is_same(&file, &self.object_path(&id));
            Some(CutOff { path, file, mode, is_object })
        });
        let over = |mark: &CutOff| mark.is_over().map_err(|error| Error::io(&mark.path, "look at it", error));
        let mut left = Vec::new();
        for mark in found {
            if over(&mark)? {
                left.push(mark);
            }
        }
        Ok(left)
    }

    /// Ends them all; which they were.
    pub(crate) fn end_cut_off_moves(&self) -> Result<Vec<PathBuf>> {
        let marks = self.cut_off_moves()?;
        marks
            .into_iter()
            .map(|mark| match mark.end() {
                Ok(()) => Ok(mark.path),
                Err(error) => Err(Error::io(&mark.path, "end a move that was cut off", error)),
            })
            .collect()
    }
}

fn read_name(name: &str) -> Option<(Digest, u32)> {
    let (id, mode) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?;
    Some((id.parse().ok()?, mode))
}

fn is_same(file: &File, path: &Path) -> bool {
    let numbers = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let (Ok(one), Ok(other)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    numbers(one) == numbers(other)
}
