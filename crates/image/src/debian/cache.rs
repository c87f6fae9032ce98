//! Packages on disk under their SHA-256: what a lock names and this has needs no apt and no
//! network. Several processes may use it at once; files come in by rename.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::request::check_lock;
use super::{Apt, DebianError, io_error};
use crate::lock::{PackageLock, hex};

/// The cache's directory.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Uses `dir`, making it when it is not there.
    ///
    /// # Errors
    /// [`DebianError::Io`].
    pub fn open(dir: &Path) -> Result<Self, DebianError> {
        let debs = dir.join("sha256");
        fs::create_dir_all(&debs).map_err(|e| io_error("making the directory", &debs, e))?;
        let dir = fs::canonicalize(dir).map_err(|e| io_error("finding", dir, e))?;
        Ok(Self { dir })
    }

    /// Whether the package is there. Its hash is checked when it is opened.
    pub fn has(&self, package: &PackageLock) -> bool {
        fs::metadata(self.path(package)).is_ok_and(|meta| meta.len() == package.size)
    }

    /// Opens the package and checks every byte of it. A file that is not what its name says is
    /// removed, so that the next build fetches it again.
    ///
    /// # Errors
    /// [`DebianError::Hash`], [`DebianError::Io`].
    pub fn open_package(&self, package: &PackageLock) -> Result<File, DebianError> {
        let path = self.path(package);
        let failed = |e| io_error("reading", &path, e);
        let mut file = File::open(&path).map_err(failed)?;
        let found = sha256(&mut file).map_err(failed)?;
        if found != package.sha256 {
            let _ = fs::remove_file(&path); // the error below says what matters
            return Err(wrong_hash(package, found));
        }
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    /// Takes in a file that should be `package`.
    fn adopt(&self, file: &Path, package: &PackageLock) -> Result<(), DebianError> {
        let failed = |e| io_error("keeping", file, e);
        let mut opened = File::open(file).map_err(failed)?;
        let found = sha256(&mut opened).map_err(failed)?;
        if found != package.sha256 {
            return Err(wrong_hash(package, found));
        }
        fs::rename(file, self.path(package)).map_err(failed)
    }

    /// Only digits of what a lock says become a path.
    fn path(&self, package: &PackageLock) -> PathBuf {
        let digits = package.sha256.chars().filter(char::is_ascii_hexdigit);
        let digits: String = digits.collect();
        self.dir.join("sha256").join(format!("{digits}.deb"))
    }

    /// The directory with apt's private state, made when it is not there.
    pub(super) fn apt_dir(&self) -> Result<PathBuf, DebianError> {
        let dir = self.dir.join("apt");
        let partial = dir.join("archives/partial");
        fs::create_dir_all(&partial).map_err(|e| io_error("making the directory", &partial, e))?;
        let status = dir.join("status");
        // Left alone when it is as it should be: apt's own cache depends on its time.
        if fs::metadata(&status).map_or(true, |meta| meta.len() > 0) {
            File::create(&status).map_err(|e| io_error("making", &status, e))?;
        }
        Ok(dir)
    }

    fn work_dir(&self) -> Result<tempfile::TempDir, DebianError> {
        tempfile::Builder::new()
            .prefix("download-")
            .tempdir_in(&self.dir)
            .map_err(|e| io_error("making a directory in", &self.dir, e))
    }
}

/// Brings every locked package that is not in the cache there, through apt. `on_download` hears
/// how many packages and bytes are to come, once, before they do.
///
/// # Errors
/// [`DebianError`]: versions that are no longer offered, hashes that differ, apt's own.
pub fn fetch(
    packages: &[PackageLock],
    arch: &str,
    cache: &Cache,
    on_download: &dyn Fn(usize, u64),
) -> Result<(), DebianError> {
    packages.iter().try_for_each(check_lock)?;
    let missing: Vec<&PackageLock> = packages.iter().filter(|p| !cache.has(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    on_download(missing.len(), missing.iter().map(|p| p.size).sum());
    let work = cache.work_dir()?;
    Apt::new(cache, arch)?.download(&missing, work.path())?;
    for package in missing {
        let file = work.path().join(file_name(package));
        cache.adopt(&file, package)?;
    }
    Ok(())
}

/// The name that apt gives a downloaded package.
fn file_name(package: &PackageLock) -> String {
    let version = package.version.replace('%', "%25");
    let version = version.replace(':', "%3a").replace('_', "%5f");
    format!("{}_{version}_{}.deb", package.name, package.arch)
}

fn sha256(reader: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(reader, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

fn wrong_hash(package: &PackageLock, found: String) -> DebianError {
    DebianError::Hash {
        package: format!("{} {}", package.name, package.version),
        wanted: package.sha256.clone(),
        found,
    }
}
