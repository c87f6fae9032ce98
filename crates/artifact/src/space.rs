//! Whether a file has room before it is written.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Problem, Result};

/// File systems on which a copy may share the blocks of its source (statfs(2), `f_type`): Btrfs, XFS, bcachefs.
const SHARING: [u64; 3] = [0x9123_683e, 0x5846_5342, 0xca45_1a4e];

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

/// Whether a copy in `dir` may cost nothing, so that nobody should refuse it for want of room.
pub fn may_share(dir: &Path) -> bool {
    let stat = File::open(dir).map(|open| rustix::fs::fstatfs(&open));
    stat.is_ok_and(|stat| stat.is_ok_and(|stat| SHARING.contains(&(stat.f_type as u64))))
}

/// Bytes as people read them: `512 B`, `1.5 MiB`.
pub fn words(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
