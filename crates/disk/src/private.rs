//! The file below an overlay.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// A new empty file in `dir` that has no name: it goes when the process does, however it ends.
///
/// # Errors
/// The host's, naming the directory.
pub fn private_file(dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    if let Ok(fd) = openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(fd));
    }
    // Not every file system knows nameless files: make one and remove its name at once.
    let path = dir.join(format!(".overlay-{}", std::process::id()));
    let named = |e: io::Error| {
        io::Error::new(e.kind(), format!("cannot make the instance's disk file in {}: {e}", dir.display()))
    };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(named)?;
    std::fs::remove_file(&path).map_err(named)?;
    Ok(file)
}

/// The file of an overlay's own changes, made when the first of them is written: many machines that are resumed write
/// nothing for a while, or never.
#[derive(Debug)]
pub struct Private {
    dir: PathBuf,
    file: OnceLock<File>,
}

impl Private {
    /// A file to be made in `dir` as [`private_file`] makes one.
    pub fn later(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: OnceLock::new() }
    }

    /// The file; it is there once anything was written.
    ///
    /// # Errors
    /// As [`private_file`].
    pub(crate) fn get(&self) -> io::Result<&File> {
        match self.file.get() {
            Some(file) => Ok(file),
            None => {
                let made = private_file(&self.dir)?;
                Ok(self.file.get_or_init(|| made))
            }
        }
    }
}

impl From<File> for Private {
    fn from(file: File) -> Self {
        Self { dir: PathBuf::new(), file: OnceLock::from(file) }
    }
}
