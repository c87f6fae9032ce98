//! The file below an overlay.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

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
