//! Where smolvm keeps things: the XDG base directories, or everything under `SMOLVM_HOME`.
//!
//! XDG Base Directory Specification 0.8: unset, empty and relative values count as absent.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use artifact::temp::sync_dir;

use crate::error::{Error, Result};

/// smolvm's directories. None of them need exist; [`ensure_private`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// What lasts and cannot be made again without work: the store (`store/`).
    /// `$SMOLVM_HOME`, else `$XDG_DATA_HOME/smolvm`, else `~/.local/share/smolvm`.
    pub data: PathBuf,
    /// What can be made again: `$SMOLVM_HOME/cache`, `$XDG_CACHE_HOME/smolvm`, `~/.cache/smolvm`.
    pub cache: PathBuf,
    /// What lasts and belongs to this host: instances (`instances/`), logs.
    /// `$SMOLVM_HOME/state`, `$XDG_STATE_HOME/smolvm`, `~/.local/state/smolvm`.
    pub state: PathBuf,
    /// Sockets and locks, gone after a reboot: `$SMOLVM_HOME/run`, `$XDG_RUNTIME_DIR/smolvm`,
    /// `/tmp/smolvm-UID`. Keep names short: a socket's path has at most 107 bytes.
    pub runtime: PathBuf,
    /// `config.toml`: `$SMOLVM_HOME/config`, `$XDG_CONFIG_HOME/smolvm`, `~/.config/smolvm`.
    pub config: PathBuf,
}

impl Dirs {
    /// From this process's environment.
    pub fn from_env() -> Result<Dirs> {
        Dirs::resolve(|name| std::env::var_os(name), rustix::process::geteuid().as_raw())
    }

    /// From the variables that `var` knows, for the user with this number.
    pub fn resolve(var: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Dirs> {
        let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(home) = var("SMOLVM_HOME").filter(|home| !home.is_empty()) {
            // Named by the user for smolvm alone, so a relative one is meant.
            let path = PathBuf::from(home);
            let home = std::path::absolute(&path)
                .map_err(|error| Error::io(&path, "make SMOLVM_HOME an absolute path", error))?;
            return Ok(Dirs {
                cache: home.join("cache"),
                state: home.join("state"),
                runtime: home.join("run"),
                config: home.join("config"),
                data: home,
            });
        }
        let home = absolute("HOME");
        let under = |variable: &str, default: &str| {
            let base = absolute(variable).or_else(|| home.as_ref().map(|home| home.join(default)));
            base.map(|base| base.join("smolvm")).ok_or(Error::NoHome)
        };
        let runtime = match absolute("XDG_RUNTIME_DIR") {
            Some(base) => base.join("smolvm"),
            None => PathBuf::from(format!("/tmp/smolvm-{uid}")),
        };
        Ok(Dirs {
            data: under("XDG_DATA_HOME", ".local/share")?,
            cache: under("XDG_CACHE_HOME", ".cache")?,
            state: under("XDG_STATE_HOME", ".local/state")?,
            config: under("XDG_CONFIG_HOME", ".config")?,
            runtime,
        })
    }

    /// The store's directory, for [`crate::Store::open`].
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// The directory in which each instance has one of its own.
    pub fn instances(&self) -> PathBuf {
        self.state.join("instances")
    }
}

/// Makes `dir` and what is missing above it, for this user only (0700), and refuses one that is somebody else's or
/// that others can write to. A symbolic link is followed if this user made it (the store may be on another disk);
/// in /tmp anybody could have.
pub fn ensure_private(dir: &Path) -> Result<()> {
    let look = |error| Error::io(dir, "look at it", error);
    let meta = match fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(dir).map_err(|error| Error::io(dir, "make the directory", error))?;
            fs::symlink_metadata(dir).map_err(look)?
        }
        Err(error) => return Err(look(error)),
    };
    if !meta.is_symlink() {
        return check_private(dir, &meta);
    }
    check_ours(dir, &meta)?;
    check_private(dir, &fs::metadata(dir).map_err(look)?)
}

/// Makes it and what is missing above it. Their names are brought to the disk, too: what is durable in a directory
/// would go with the directory.
fn make(dir: &Path) -> io::Result<()> {
    let named = dir.ancestors().filter(|above| !above.as_os_str().is_empty());
    let missing: Vec<&Path> = named.take_while(|above| fs::symlink_metadata(above).is_err()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for above in missing.iter().rev().filter_map(|dir| dir.parent()) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        // One that this user may pass through and not open is somebody else's to look after.
        let _ = sync_dir(above);
    }
    Ok(())
}

fn check_private(dir: &Path, meta: &fs::Metadata) -> Result<()> {
    check_ours(dir, meta)?;
    if !meta.is_dir() {
        return refuse(dir, "it is no directory".to_owned());
    }
    if meta.mode() & 0o022 != 0 {
        return refuse(dir, format!("others can write to it (mode {:o})", meta.mode() & 0o7777));
    }
    Ok(())
}

fn check_ours(dir: &Path, meta: &fs::Metadata) -> Result<()> {
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != us {
        return refuse(dir, format!("it belongs to user {} and this is user {us}", meta.uid()));
    }
    Ok(())
}

fn refuse(dir: &Path, why: String) -> Result<()> {
    Err(Error::NotPrivate { path: dir.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(vars: &[(&str, &str)]) -> Result<Dirs> {
        let find = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        Dirs::resolve(find, 1000)
    }

    #[test]
    fn home_gives_the_defaults() {
        let dirs = resolve(&[("HOME", "/home/ann")]).unwrap();
        assert_eq!(dirs.store(), Path::new("/home/ann/.local/share/smolvm/store"));
        assert_eq!(dirs.instances(), Path::new("/home/ann/.local/state/smolvm/instances"));
        assert_eq!(dirs.cache, Path::new("/home/ann/.cache/smolvm"));
        assert_eq!(dirs.config, Path::new("/home/ann/.config/smolvm"));
        assert_eq!(dirs.runtime, Path::new("/tmp/smolvm-1000"));
    }

    #[test]
    fn each_variable_has_its_place_and_relative_ones_do_not_count() {
        let vars = [
            ("HOME", "/home/ann"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_STATE_HOME", "relative"),
            ("XDG_CACHE_HOME", ""),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ];
        let dirs = resolve(&vars).unwrap();
        assert_eq!(dirs.data, Path::new("/d/smolvm"));
        assert_eq!(dirs.state, Path::new("/home/ann/.local/state/smolvm"));
        assert_eq!(dirs.cache, Path::new("/home/ann/.cache/smolvm"));
        assert_eq!(dirs.runtime, Path::new("/run/user/1000/smolvm"));
    }

    #[test]
    fn smolvm_home_holds_everything() {
        let dirs = resolve(&[("HOME", "/home/ann"), ("SMOLVM_HOME", "/x"), ("XDG_DATA_HOME", "/d")]).unwrap();
        assert_eq!(dirs.store(), Path::new("/x/store"));
        for dir in [&dirs.cache, &dirs.state, &dirs.runtime, &dirs.config] {
            assert_eq!(dir.parent(), Some(Path::new("/x")));
        }
    }

    #[test]
    fn without_any_home_it_says_what_to_set() {
        let error = resolve(&[]).unwrap_err();
        assert!(error.to_string().contains("SMOLVM_HOME"), "{error}");
    }
}
