//! Removing objects that nobody needs, and what dead processes left.
//!
//! Order, for each object: the exclusive lock (nobody holds it, nobody begins to), then a fresh look at names
//! and references (both are written by somebody who holds the object), then the removal.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use artifact::Digest;
use artifact::temp::clean_leftovers;

use crate::error::{Error, Result};
use crate::list::Image;
use crate::pin::same_file;
use crate::root::Store;
use crate::tags::{Tag, check_name};

/// What [`Store::prune`] removes: by default every object without a name that nobody uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrunePolicy {
    /// Objects with names, too; the names go with them.
    pub named: bool,
    /// Only what was not used for so long.
    pub unused_for: Option<Duration>,
    /// However long it was unused: what was used longest ago goes until the objects together have at most so many
    /// bytes. What has a name (unless [`PrunePolicy::named`]) or is used stays in any case.
    pub max_size: Option<u64>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What [`Store::prune`] did.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The objects that are gone and their lengths in bytes.
    pub objects: Vec<(Digest, u64)>,
    /// Unfinished files of dead processes that are gone.
    pub temps: Vec<PathBuf>,
    /// Bytes of all objects that stay.
    pub left: u64,
}

impl Pruned {
    /// The sum of the objects' lengths.
    pub fn freed(&self) -> u64 {
        self.objects.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }

    fn has(&self, id: &Digest) -> bool {
        self.objects.iter().any(|(gone, _)| gone == id)
    }
}

/// What [`Store::remove`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The object that was meant.
    pub id: Digest,
    /// The names that are gone.
    pub names: Vec<String>,
    /// Whether the object is gone: not while another name stands for it, or somebody needs it.
    pub object: bool,
}

impl Store {
    /// Removes what the policy says and nobody uses, and leftovers.
    pub fn prune(&self, policy: PrunePolicy) -> Result<Pruned> {
        let mut images = self.images()?;
        // The longest unused first. What another object builds on outlives that one until the next prune, since a user
        // may still have that one's file.
        images.sort_by_key(|image| (image.parent.is_some(), image.last_used));
        for image in images.iter().filter(|image| image.parent.is_some()) {
            self.mend_reference(image)?;
        }
        let mut pruned = Pruned { left: images.iter().map(|image| image.len).sum(), ..Pruned::default() };
        let may_go = |image: &&Image| policy.named || image.names.is_empty();
        let old = |image: &&Image| {
            let unused = SystemTime::now().duration_since(image.last_used).unwrap_or_default();
            policy.unused_for.is_none_or(|least| unused >= least)
        };
        for image in images.iter().filter(may_go).filter(old) {
            self.prune_one(image, policy, &mut pruned)?;
        }
        if let Some(max) = policy.max_size {
            images.sort_by_key(|image| image.last_used);
            // What another one builds on may go once that one went.
            let mut before = usize::MAX;
            while pruned.left > max && before != pruned.objects.len() {
                before = pruned.objects.len();
                for image in images.iter().filter(may_go) {
                    if pruned.left > max && !pruned.has(&image.id) {
                        self.prune_one(image, policy, &mut pruned)?;
                    }
                }
            }
        }
        if !policy.dry_run {
            pruned.temps = self.gc_temps()?;
        }
        Ok(pruned)
    }

    fn prune_one(&self, image: &Image, policy: PrunePolicy, pruned: &mut Pruned) -> Result<()> {
        let gone: Vec<PathBuf> = pruned.objects.iter().map(|(id, _)| self.object_path(id)).collect();
        match self.remove_object(&image.id, policy.named, policy.dry_run, &gone) {
            Ok(true) => {
                pruned.objects.push((image.id, image.len));
                pruned.left = pruned.left.saturating_sub(image.len);
            }
            Ok(false) | Err(Error::InUse { .. } | Error::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A reference that a power failure took, of an object to the one that it builds on, is given anew; whether it
    /// was missing.
    pub(crate) fn mend_reference(&self, child: &Image) -> Result<bool> {
        let Some(parent) = child.parent else { return Ok(false) };
        let owner = self.object_path(&child.id);
        if self.is_referred(&parent, &owner) {
            return Ok(false);
        }
        match self.pin(&parent) {
            Ok(pin) => self.add_reference(&pin, &owner).map(|()| true),
            Err(Error::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a name, and its object where that was its last name and nobody uses it; or an object by id, with
    /// all its names. In the second case an object in use is an error.
    pub fn remove(&self, what: &str) -> Result<Removed> {
        let tag = if check_name(what).is_ok() { self.resolve(what)? } else { None };
        if let Some(Tag { id, name, .. }) = tag {
            self.untag(&name)?;
            let object = match self.remove_object(&id, false, false, &[]) {
                Err(Error::InUse { .. } | Error::Gone { .. }) => false,
                removed => removed?,
            };
            return Ok(Removed { id, names: vec![name], object });
        }
        let id = self.find(what)?;
        let names = self.names_of(&id)?;
        let object = self.remove_object(&id, true, false, &[])?;
        Ok(Removed { id, names, object })
    }

    /// Removes an object without a name that nobody uses; whether it is gone.
    pub fn remove_unnamed(&self, id: &Digest) -> Result<bool> {
        self.remove_object(id, false, false, &[])
    }

    /// Removes one object unless it is in use; `false` where it has a name and `named` does not say that this is
    /// no matter. References of what is among `gone` don't count.
    fn remove_object(&self, id: &Digest, named: bool, dry_run: bool, gone: &[PathBuf]) -> Result<bool> {
        let path = self.object_path(id);
        let fail = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::Gone { id: *id },
            _ => Error::io(&path, "remove it", error),
        };
        let file = File::open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::InUse { id: *id, user: "a running machine".to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        if !same_file(&file, &path).map_err(fail)? {
            return Err(Error::Gone { id: *id });
        }
        let names = self.names_of(id)?;
        if !named && !names.is_empty() {
            return Ok(false);
        }
        if let Some(owner) = self.references(id)?.iter().find(|owner| !gone.contains(owner)) {
            return Err(Error::InUse { id: *id, user: owner.display().to_string() });
        }
        if dry_run {
            return Ok(true);
        }
        for name in names {
            self.untag(&name)?;
        }
        self.drop_references(id);
        fs::remove_file(&path).map_err(fail)?;
        Ok(true)
    }

    fn names_of(&self, id: &Digest) -> Result<Vec<String>> {
        Ok(self.tags()?.into_iter().filter(|tag| tag.id == *id).map(|tag| tag.name).collect())
    }

    /// Removes unfinished files of dead processes, and records of objects that are gone; files whose move into the store
    /// was cut off have their modes again.
    pub fn gc_temps(&self) -> Result<Vec<PathBuf>> {
        self.clean_paths()?;
        let ended = self.end_cut_off_moves()?;
        let dir = self.part("tmp");
        match clean_leftovers(&dir) {
            Ok(removed) => Ok([removed, ended].concat()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ended),
            Err(error) => Err(Error::io(&dir, "clean it", error)),
        }
    }
}
