//! Debian packages, without root: `apt-get download` and `dpkg-deb -x`.
//!
//! apt itself checks what it downloads against the signed index of the system's own sources, so no
//! host name is written here. The hashes that a recipe was tried with are listed; another one is used
//! all the same, with a warning that names it, because the archive moves on with every point release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{cache, say};
use crate::run;

/// A package that apt would install now.
pub struct Candidate {
    /// Binary package name.
    pub name: String,
    /// Debian version, e.g. `6.12.117-1~deb12u1`.
    pub version: String,
    /// SHA-256 of the archive, in hexadecimal, from the signed index.
    pub sha256: String,
}

impl Candidate {
    /// Asks apt for its candidate; refreshes the package lists first if there is none and we are root.
    pub fn find(name: &str) -> Result<Candidate> {
        if let Some(found) = query(name)? {
            return Ok(found);
        }
        if is_root() {
            say(&format!("apt knows no {name}: refreshing its lists"));
            run::status(Command::new("apt-get").args(["-q", "update"]))?;
        }
        query(name)?.with_context(|| {
            format!("apt knows no package {name}: run `apt-get update` as root (Debian 12 or later has it)")
        })
    }

    /// Says so when this archive is not one of those that the recipe was tried with.
    pub fn warn_if_new(&self, tried: &[(&str, &str)]) {
        if !tried.iter().any(|(_, sha256)| *sha256 == self.sha256) {
            say(&format!(
                "warning: {} {} has not been tried with this recipe (sha256 {}); going on",
                self.name, self.version, self.sha256
            ));
        }
    }

    /// Downloads the archive into the cache (once) and returns its path, its hash checked.
    pub fn download(&self, cache_dir: &Path) -> Result<PathBuf> {
        let dir = cache::get_or_make(cache_dir, &format!("deb-{}", self.name), self.key(), |dir| {
            say(&format!("downloading {} {}", self.name, self.version));
            let wanted = format!("{}={}", self.name, self.version);
            // As root apt warns that its download user cannot write here; it then downloads as root.
            run::logged(
                Command::new("apt-get").args(["-q", "download", &wanted]).current_dir(dir),
                &dir.join("apt.log"),
            )?;
            let deb = only_deb(dir)?;
            let sum = run::output(Command::new("sha256sum").arg(&deb))?;
            if sum.split_whitespace().next() != Some(self.sha256.as_str()) {
                bail!("{} is not what apt's index describes (sha256 {sum})", deb.display());
            }
            Ok(())
        })?;
        only_deb(&dir)
    }

    /// A short name for this archive: the start of its hash.
    pub fn key(&self) -> &str {
        self.sha256.get(..16).unwrap_or(&self.sha256)
    }

    /// Downloads and unpacks the archive into `to`.
    pub fn unpack(&self, cache_dir: &Path, to: &Path) -> Result<()> {
        let deb = self.download(cache_dir)?;
        run::status(Command::new("dpkg-deb").arg("-x").arg(deb).arg(to))
    }
}

/// Whether this process may install packages.
pub fn is_root() -> bool {
    run::output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

fn query(name: &str) -> Result<Option<Candidate>> {
    let policy = run::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", name]))
        .context("this needs Debian's apt")?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:")).map(str::trim);
    let Some(version) = version.filter(|version| *version != "(none)") else {
        return Ok(None);
    };
    let wanted = format!("{name}={version}");
    let records = run::output(Command::new("apt-cache").env("LC_ALL", "C").args(["show", &wanted]))?;
    let sha256 = records.lines().find_map(|line| line.strip_prefix("SHA256:"));
    // Without a hash the package is installed but in no list any more: it cannot be downloaded.
    Ok(sha256.map(|sha256| Candidate {
        name: name.to_string(),
        version: version.to_string(),
        sha256: sha256.trim().to_string(),
    }))
}

fn only_deb(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("no package was downloaded into {}", dir.display()))
}
