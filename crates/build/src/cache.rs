//! What earlier builds made, by what it was made from.
//!
//! Problem: configuring packages and running steps takes minutes, and most builds change neither.
//! Strategy: what a stage of a build made is an object of the store; a small file here, named by
//! the digest of everything that the stage depends on, says which. Invariants: an entry is only a
//! hint: one that is damaged, or whose object is gone (`smolvm prune` takes objects without a
//! name), is a miss; the objects of all entries together stay below [`KEEP`].
//! Next: `steps.rs`, `root.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use artifact::hash::Digest;
use image::tree::Time;
use instance::io_error;
use serde::{Deserialize, Serialize};
use store::{Pin, Store};

use crate::error::Error;

/// Changes with everything that makes a stage's result another one from the same inputs.
const VERSION: &str = concat!("smolvm-build-cache 1 ", env!("CARGO_PKG_VERSION"));
/// Most bytes of objects that are kept for later builds: 8 GiB.
const KEEP: u64 = 8 << 30;

/// The kinds of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A base whose root has its packages configured.
    Configured,
    /// The changed disk after a step.
    Disk,
    /// A base whose root has steps done, settled.
    Root,
}

/// The cache of one user.
pub(crate) struct Cache<'a> {
    dir: PathBuf,
    store: &'a Store,
    /// Whether to use what is there; what is made is kept in any case.
    use_it: bool,
}

/// A stage's result.
pub(crate) struct Hit {
    pub(crate) pin: Pin,
    pub(crate) epoch: Time,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// Identity in the store, hex.
    object: String,
    /// Seconds since 1970 that nothing in it is newer than.
    epoch: i64,
}

impl<'a> Cache<'a> {
    /// The cache below the user's cache directory.
    pub(crate) fn open(cache: &Path, store: &'a Store, use_it: bool) -> Result<Self, Error> {
        let dir = place(cache);
        fs::create_dir_all(&dir).map_err(io_error("make the directory", &dir))?;
        Ok(Self { dir, store, use_it })
    }

    /// The name of a stage's result: `inputs` is the digest of all but the steps.
    pub(crate) fn key(stage: Stage, inputs: &Digest, steps: &[String]) -> String {
        let mut text = format!("{VERSION}\n{stage:?}\n{inputs}\nfurnished={}\n", image::FURNISHED);
        for step in steps {
            // With its length: two steps never look like one.
            text.push_str(&format!("{} {step}\n", step.len()));
        }
        Digest::of(text.as_bytes()).to_string()
    }

    /// What an earlier build made, held for use.
    pub(crate) fn get(&self, key: &str) -> Option<Hit> {
        if !self.use_it {
            return None;
        }
        let path = self.dir.join(key);
        let entry = read(&path)?;
        match entry.object.parse().map(|id| self.store.pin(&id)) {
            Ok(Ok(pin)) => {
                // For `trim`: best effort.
                let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(Hit { pin, epoch: Time::from_secs(entry.epoch) })
            }
            _ => {
                let _ = fs::remove_file(&path); // a hint that leads nowhere
                None
            }
        }
    }

    /// Keeps a stage's result for later builds. Failing to is no failure of the build.
    pub(crate) fn put(&self, key: &str, pin: &Pin, epoch: Time) {
        let entry = Entry { object: pin.id().to_string(), epoch: epoch.secs };
        let (path, temp) = (self.dir.join(key), self.dir.join(format!("{key}.{}", std::process::id())));
        let text = serde_json::to_vec(&entry).unwrap_or_default();
        if fs::write(&temp, text).and_then(|()| fs::rename(&temp, &path)).is_err() {
            let _ = fs::remove_file(&temp);
        }
    }

    /// Whether some entry leads to this object.
    fn keeps(&self, id: &Digest) -> bool {
        let id = id.to_string();
        entries(&self.dir).iter().any(|(path, _)| read(path).is_some_and(|entry| entry.object == id))
    }

    /// Removes what a build left in the store and nobody will look for.
    pub(crate) fn discard(&self, ids: &[Digest]) {
        for id in ids.iter().filter(|id| !self.keeps(id)) {
            // In use or gone: `smolvm prune` sees to it.
            let _ = self.store.remove_unnamed(id);
        }
    }

    /// Gives up the results that were used longest ago, until the others are below [`KEEP`].
    pub(crate) fn trim(&self) {
        let mut kept = 0u64;
        for (path, _) in entries(&self.dir) {
            let Some(id) = read(&path).and_then(|entry| entry.object.parse().ok()) else {
                let _ = fs::remove_file(&path);
                continue;
            };
            let len = fs::metadata(self.store.object_path(&id)).map_or(0, |meta| meta.len());
            kept = kept.saturating_add(len);
            if kept > KEEP || len == 0 {
                let _ = fs::remove_file(&path);
                self.discard(&[id]);
            }
        }
    }
}

/// The objects that earlier builds are remembered by.
pub fn cached(cache: &Path) -> Vec<Digest> {
    entries(&place(cache)).iter().filter_map(|(path, _)| read(path)?.object.parse().ok()).collect()
}

/// Forgets what leads to objects that are gone: after the store was pruned.
pub fn forget_pruned(cache: &Path, store: &Store) {
    for (path, _) in entries(&place(cache)) {
        let id = read(&path).and_then(|entry| entry.object.parse().ok());
        if id.is_none_or(|id| !store.object_path(&id).exists()) {
            let _ = fs::remove_file(&path);
        }
    }
}

fn place(cache: &Path) -> PathBuf {
    cache.join("build")
}

fn read(path: &Path) -> Option<Entry> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Every entry, the last used first.
fn entries(dir: &Path) -> Vec<(PathBuf, SystemTime)> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut entries: Vec<_> =
        found.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.modified().ok()?))).collect();
    entries.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    entries
}
