//! Where things are: the checkout, its target directory, the guest cache.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directories that the chores work in. All absolute.
pub struct Paths {
    /// The workspace root (the checkout).
    pub root: PathBuf,
    /// Cargo's target directory: `CARGO_TARGET_DIR`, else `target/` in the checkout.
    pub target: PathBuf,
    /// Where the embedded parts are put for `crates/assets`: `SMOLVM_GUEST_DIR`, else `target/guest/`
    /// in the checkout (whatever `CARGO_TARGET_DIR` says, so that every target directory finds them).
    pub guest: PathBuf,
    /// Built parts, keyed by a hash of their inputs, outside the checkout: `SMOLVM_GUEST_CACHE`,
    /// else `smolvm-dev/guest` in the user's cache directory.
    pub cache: PathBuf,
}

impl Paths {
    /// Reads the environment; the checkout is found from this crate's own manifest.
    pub fn find() -> Result<Paths> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("the xtask directory has no parent")?.to_path_buf();
        let absolute = |path: PathBuf| if path.is_absolute() { path } else { root.join(path) };
        Ok(Paths {
            target: dir_from("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), absolute),
            guest: dir_from("SMOLVM_GUEST_DIR").map_or_else(|| root.join("target/guest"), absolute),
            cache: dir_from("SMOLVM_GUEST_CACHE").map_or_else(user_cache, |path| Ok(absolute(path)))?,
            root,
        })
    }

    /// A path inside the checkout.
    pub fn in_root(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }
}

fn dir_from(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn user_cache() -> Result<PathBuf> {
    let base = match dir_from("XDG_CACHE_HOME") {
        Some(path) if path.is_absolute() => path,
        _ => dir_from("HOME")
            .context("neither SMOLVM_GUEST_CACHE, XDG_CACHE_HOME nor HOME is set: name a cache directory")?
            .join(".cache"),
    };
    Ok(base.join("smolvm-dev/guest"))
}
