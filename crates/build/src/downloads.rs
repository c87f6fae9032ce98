//! What builds keep beside the store because it can be had again: packages, layers of container images.
//!
//! Problem: it grows, and may only be removed while no build reads it. Strategy: a build holds a shared lock on
//! `lock` in the cache directory, who removes takes the exclusive one without waiting; the kernel ends both with their
//! process. With the exclusive lock everything that is half transferred is somebody's who is gone.

use std::fs::{self, DirEntry, File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use instance::io_error;

use crate::error::Error;

/// What is kept: its name for people, its directory in the cache.
const KEPT: [(&str, &str); 2] = [("packages", "debian/sha256"), ("image layers", "oci/sha256")];

/// Where unfinished transfers lie, and how their names begin.
const UNFINISHED: [(&str, &str); 2] = [("debian", "download-"), ("oci", "part-")];

/// One kind of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downloads {
    /// What it is: `packages`, `image layers`.
    pub what: &'static str,
    /// How many.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of those that were not used for a while.
    pub unused_bytes: u64,
}

/// What [`clean_downloads`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Files and directories that are gone, or with `dry_run` would be.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// A build is at work: nothing was removed.
    pub busy: bool,
}

/// What may go.
#[derive(Clone, Copy, Debug, Default)]
pub struct CleanPolicy {
    /// What is whole and was not used for so long; `None`: only what is unfinished.
    pub unused_for: Option<Duration>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// Holds the cache for a build.
pub(crate) fn in_use(cache: &Path) -> Result<File, Error> {
    let path = cache.join("lock");
    let file = open_lock(cache).map_err(io_error("open", &path))?;
    file.lock_shared().map_err(io_error("lock", &path))?;
    Ok(file)
}

fn open_lock(cache: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(cache.join("lock"))
}

/// What is kept in the cache directory, and how much of it was not used for `least`.
pub fn kept_downloads(cache: &Path, least: Duration) -> Vec<Downloads> {
    let sum = |(what, dir): (&'static str, &str)| {
        let mut kept = Downloads { what, files: 0, bytes: 0, unused_bytes: 0 };
        for entry in entries(&cache.join(dir)) {
            let len = entry.metadata().map_or(0, |meta| meta.len());
            kept.files += 1;
            kept.bytes = kept.bytes.saturating_add(len);
            kept.unused_bytes += if is_unused(&entry, least) { len } else { 0 };
        }
        kept
    };
    KEPT.map(sum).to_vec()
}

/// Removes transfers that were cut off, and what the policy says.
///
/// # Errors
/// The host's.
pub fn clean_downloads(cache: &Path, policy: CleanPolicy) -> Result<Cleaned, Error> {
    let mut cleaned = Cleaned::default();
    if !cache.is_dir() {
        return Ok(cleaned);
    }
    let lock = open_lock(cache).map_err(io_error("open", cache))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Cleaned { busy: true, ..cleaned }),
        Err(TryLockError::Error(error)) => return Err(io_error("lock", cache)(error).into()),
    }
    for (dir, prefix) in UNFINISHED {
        let cut_off = |entry: &DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
        entries(&cache.join(dir))
            .filter(cut_off)
            .try_for_each(|entry| remove(&entry, policy, &mut cleaned))?;
    }
    let Some(least) = policy.unused_for else { return Ok(cleaned) };
    for (_, dir) in KEPT {
        let old = |entry: &DirEntry| is_unused(entry, least);
        entries(&cache.join(dir)).filter(old).try_for_each(|entry| remove(&entry, policy, &mut cleaned))?;
    }
    Ok(cleaned)
}

fn is_unused(entry: &DirEntry, least: Duration) -> bool {
    let Ok(meta) = entry.metadata() else { return false };
    // Access times may be off for the file system; then they are no newer.
    let used = [meta.accessed(), meta.modified()].into_iter().flatten().max();
    used.is_some_and(|used| SystemTime::now().duration_since(used).unwrap_or_default() >= least)
}

fn remove(entry: &DirEntry, policy: CleanPolicy, cleaned: &mut Cleaned) -> Result<(), Error> {
    let path = entry.path();
    let meta = fs::symlink_metadata(&path).map_err(io_error("look at", &path))?;
    let bytes = match meta.is_dir() {
        true => entries(&path).filter_map(|inner| Some(inner.metadata().ok()?.len())).sum(),
        false => meta.len(),
    };
    if !policy.dry_run {
        let removed = if meta.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(io_error("remove", &path))?;
    }
    cleaned.files += 1;
    cleaned.bytes = cleaned.bytes.saturating_add(bytes);
    Ok(())
}

fn entries(dir: &Path) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(dir).into_iter().flatten().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, bytes) in [("debian/sha256/a.deb", 10), ("oci/sha256/b", 20), ("oci/part-x", 3)] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; bytes]).unwrap();
        }
        fs::create_dir_all(dir.path().join("debian/download-1")).unwrap();
        fs::write(dir.path().join("debian/download-1/c.deb"), [0; 5]).unwrap();
        dir
    }

    #[test]
    fn what_is_unfinished_goes_and_what_is_whole_when_it_is_old() {
        let cache = cache();
        let kept = |least| kept_downloads(cache.path(), least);
        let left = || kept(Duration::ZERO).iter().map(|kept| kept.bytes).collect::<Vec<_>>();
        let unused = |least| kept(least).iter().map(|kept| kept.unused_bytes).collect::<Vec<_>>();
        assert_eq!((unused(Duration::ZERO), unused(Duration::from_secs(3600))), (vec![10, 20], vec![0, 0]));
        let dry = CleanPolicy { unused_for: Some(Duration::ZERO), dry_run: true };
        let said = clean_downloads(cache.path(), dry).unwrap();
        assert_eq!(said, Cleaned { files: 4, bytes: 38, busy: false });
        assert_eq!(left(), [10, 20]);
        let said = clean_downloads(cache.path(), CleanPolicy::default()).unwrap();
        assert_eq!(said, Cleaned { files: 2, bytes: 8, busy: false });
        let young = CleanPolicy { unused_for: Some(Duration::from_secs(3600)), dry_run: false };
        assert_eq!(clean_downloads(cache.path(), young).unwrap().files, 0);
        let all = CleanPolicy { unused_for: Some(Duration::ZERO), dry_run: false };
        assert_eq!(clean_downloads(cache.path(), all).unwrap().bytes, 30);
        assert_eq!(left(), [0, 0]);
    }

    #[test]
    fn a_build_at_work_keeps_everything() {
        let cache = cache();
        let all = CleanPolicy { unused_for: Some(Duration::ZERO), dry_run: false };
        let build = in_use(cache.path()).unwrap();
        assert!(clean_downloads(cache.path(), all).unwrap().busy);
        drop(build);
        assert_eq!(clean_downloads(cache.path(), all).unwrap().files, 4);
        let nowhere = clean_downloads(&cache.path().join("none"), all).unwrap();
        assert_eq!(nowhere, Cleaned::default());
    }
}
