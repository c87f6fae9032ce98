//! The store itself: where its parts lie.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use artifact::Digest;
use artifact::temp::{TempFile, TempStyle, sync_dir};

use crate::dirs::ensure_private;
use crate::error::{Error, Result};

/// A user's store. Several processes use one at the same time.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    temp: TempStyle,
}

impl Store {
    /// The store in `root` ([`crate::Dirs::store`]), which is made, for this user only, where there is none.
    /// One that belongs to another user, or that others can write to, is refused.
    pub fn open(root: &Path) -> Result<Store> {
        ensure_private(root)?;
        Ok(Store { root: root.to_owned(), temp: TempStyle::Auto })
    }

    /// With another way of keeping unfinished files.
    pub fn with_temp_style(self, temp: TempStyle) -> Store {
        Store { temp, ..self }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an object lies if it is there. To use it, take a [`crate::Pin`].
    pub fn object_path(&self, id: &Digest) -> PathBuf {
        self.part("objects").join(id.to_string())
    }

    /// A part of the store, which may not exist yet.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A part of the store, which exists afterwards.
    pub(crate) fn made_part(&self, name: &str) -> Result<PathBuf> {
        let path = self.part(name);
        ensure_private(&path)?;
        Ok(path)
    }

    /// The entries of a part, none where it does not exist. Names that are no text of ours are passed over.
    pub(crate) fn names_in(&self, part: &str) -> Result<Vec<String>> {
        let dir = self.part(part);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&dir, "read the directory", error)),
        };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The ids of all objects.
    pub fn ids(&self) -> Result<Vec<Digest>> {
        let names = self.names_in("objects")?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    pub(crate) fn temp_style(&self) -> TempStyle {
        self.temp
    }

    /// An unfinished file on the store's file system.
    pub(crate) fn temp_file(&self, mode: u32) -> Result<TempFile> {
        let dir = self.made_part("tmp")?;
        let temp = TempFile::create_in(&dir, mode, self.temp);
        temp.map_err(|error| Error::io(&dir, "make a file in it", error))
    }

    /// Writes a small file of the store whole or not at all.
    pub(crate) fn put(&self, part: &str, name: &str, bytes: &[u8], durable: bool) -> Result<()> {
        let dir = self.made_part(part)?;
        let path = dir.join(name);
        let temp = self.temp_file(0o600)?;
        let written = (|| {
            temp.file().write_all(bytes)?;
            if durable {
                temp.file().sync_all()?;
            }
            temp.replace(&path)?;
            if durable { sync_dir(&dir) } else { Ok(()) }
        })();
        written.map_err(|error| Error::io(&path, "write it", error))
    }
}
