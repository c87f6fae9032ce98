//! The cache: one directory for each part and set of inputs, made whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A running hash of a part's inputs; each is named, so that no two lists read the same.
#[derive(Default)]
pub struct Inputs(blake3::Hasher);

impl Inputs {
    /// Adds one input.
    pub fn add(mut self, name: &str, value: impl AsRef<[u8]>) -> Inputs {
        let value = value.as_ref();
        for field in [name.as_bytes(), value] {
            self.0.update(&(field.len() as u64).to_le_bytes());
            self.0.update(field);
        }
        self
    }

    /// The key: 16 hexadecimal digits.
    pub fn key(&self) -> String {
        self.0.finalize().to_hex()[..16].to_string()
    }
}

/// Returns the directory `<cache>/<part>-<key>`, calling `make` to fill it if it is not there.
///
/// `make` writes into a temporary directory beside it, which takes the final name at the end: an
/// interrupted build leaves nothing that looks finished.
pub fn get_or_make(
    cache: &Path,
    part: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let done = cache.join(format!("{part}-{key}"));
    if done.is_dir() {
        return Ok(done);
    }
    let temporary = cache.join(format!(".{part}-{key}.{}", std::process::id()));
    remove_dir(&temporary)?;
    fs::create_dir_all(&temporary).with_context(|| format!("cannot make {}", temporary.display()))?;
    make(&temporary)?;
    match fs::rename(&temporary, &done) {
        Err(_) if done.is_dir() => remove_dir(&temporary)?, // another build was faster
        other => {
            other.with_context(|| format!("cannot rename {} to {}", temporary.display(), done.display()))?
        }
    }
    Ok(done)
}

/// Waits until no other process holds this lock file, and holds it until the result is dropped.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Removes a directory and what is in it; nothing there is fine.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Puts a file at its final place (temporary name, rename); leaves it alone if it holds that already,
/// so that cargo does not see a change where there is none.
pub fn publish(bytes: &[u8], to: &Path) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let name = to.file_name().context("a part needs a file name")?.to_string_lossy();
    let temporary = to.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&temporary, bytes).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, to).with_context(|| format!("cannot put {} in place", to.display()))
}

/// Reads a file, naming it when that fails.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
