//! Whether a file has room before it is written.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Problem, Result};

/// Bytes that the file system with `dir` has free for this user.
pub fn available(dir: &Path) -> Result<u64> {
    let open = File::open(dir).map_err(|error| Error::io(dir, "open the directory", error))?;
    let stat = rustix::fs::fstatvfs(&open)
        .map_err(|error| Error::io(dir, "ask for its free space", error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Refuses to start a file `path` of `needed` bytes in `dir` when that much is not free.
pub fn check(path: &Path, dir: &Path, needed: u64) -> Result<()> {
    let available = available(dir)?;
    if needed <= available {
        return Ok(());
    }
    let dir = dir.to_owned();
    Err(Error::new(path, Problem::NoSpace { dir, needed, available }))
}
