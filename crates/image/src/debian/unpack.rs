//! Packages into one tree, as dpkg would have unpacked them in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::configure::Aside;
use super::package::{Package, listed_path};
use super::request::check_lock;
use super::{Cache, DebianError, configure, database};
use crate::archive::{Entry, EntryKind};
use crate::content::{Content, Spool};
use crate::lock::PackageLock;
use crate::tree::{Item, Limits, Meta, NodeId, OnSymlink, Time, Tree, TreeError};

/// Archives read at once. Decompression is the work; a builder's machine has two cores to spare.
const THREADS: usize = 2;

/// Directories that a merged /usr has as links into it, in every Debian since 12.
const MERGED: [&str; 3] = ["bin", "sbin", "lib"];
/// The same for other word sizes, where a package has files there.
const MERGED_IF_USED: [&str; 4] = ["lib32", "lib64", "libo32", "libx32"];

/// A root whose packages are unpacked and not yet configured.
pub struct DebianRoot {
    pub tree: Tree,
    /// To be run by `/bin/sh` as root inside the machine, once.
    pub configure_script: String,
    /// The newest time in any package: nothing in a finished root needs to be newer.
    pub epoch: Time,
    /// What was odd, one line each; to be shown to the user.
    pub warnings: Vec<String>,
}

/// Unpacks `packages`, in that order, from the cache. `on_package` hears each name, from
/// several threads.
///
/// # Errors
/// [`DebianError`]: a package that is not in the cache, differs from the lock, or is damaged.
pub fn unpack(
    packages: &[PackageLock],
    cache: &Cache,
    spool: &Spool,
    limits: Limits,
    on_package: &(dyn Fn(&str) + Sync),
) -> Result<DebianRoot, DebianError> {
    packages.iter().try_for_each(check_lock)?;
    let packages = read_all(packages, cache, spool, on_package)?;
    let epoch = packages.iter().map(Package::newest).max();
    let epoch = Time::from_secs(epoch.unwrap_or_default().secs);
    let mut layers = Layers {
        tree: Tree::new(limits),
        owners: HashMap::new(),
        lost: vec![Vec::new(); packages.len()],
        aside: Aside::default(),
        warnings: Vec::new(),
    };
    let foundation = layers.foundation(&packages, epoch);
    foundation.map_err(|source| tree_error("(foundation)", source))?;
    for at in 0..packages.len() {
        layers.package(&packages, at).map_err(|source| tree_error(&packages[at].name, source))?;
    }
    let Layers { mut tree, lost, aside, warnings, .. } = layers;
    database::write(&mut tree, &packages, &lost, epoch).map_err(|source| tree_error("(database)", source))?;
    Ok(DebianRoot {
        configure_script: configure::configure_script(&packages, &aside, epoch),
        tree,
        epoch,
        warnings,
    })
}

/// Reads every package, several at a time; the result is in the order of `locks`.
fn read_all(
    locks: &[PackageLock],
    cache: &Cache,
    spool: &Spool,
    on_package: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Package>, DebianError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(locks.len()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(locks.len()) {
            scope.spawn(|| {
                while let Some((at, lock)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    locks.get(at).map(|lock| (at, lock))
                } {
                    on_package(&lock.name);
                    let read = Package::read(lock, cache, spool);
                    if read.is_err() {
                        next.store(locks.len(), Ordering::Relaxed); // no use in going on
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, read));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, read)| read).collect()
}

struct Layers {
    tree: Tree,
    /// Which package each file came with, and under which path, by where it really is: with a
    /// merged /usr, two paths name one place.
    owners: HashMap<(NodeId, Vec<u8>), (usize, Vec<u8>)>,
    lost: Vec<Vec<Vec<u8>>>,
    aside: Aside,
    warnings: Vec<String>,
}

impl Layers {
    /// What stands before the first package: the merged /usr, links that base-files would make
    /// when nothing is below them yet, and names for this host.
    fn foundation(&mut self, packages: &[Package], epoch: Time) -> Result<(), TreeError> {
        let dir = |mode| Meta { mtime: epoch, ..Meta::root_owned(mode) };
        let used = |name: &&str| {
            let mut entries = packages.iter().flat_map(|package| &package.entries);
            entries.any(|(entry, _)| {
                let path = listed_path(&entry.path);
                path.strip_prefix(b"/")
                    .and_then(|path| path.strip_prefix(name.as_bytes()))
                    .is_some_and(|rest| rest.first() == Some(&b'/'))
            })
        };
        let merged = MERGED_IF_USED.into_iter().filter(used);
        for path in ["etc", "run", "usr", "var"] {
            self.put(path, Item::Dir, dir(0o755))?;
        }
        for name in MERGED.into_iter().chain(merged) {
            let target = format!("usr/{name}");
            self.put(&target, Item::Dir, dir(0o755))?;
            self.put(name, Item::Symlink(target.as_bytes().into()), dir(0o777))?;
        }
        self.put("run/lock", Item::Dir, dir(0o1777))?;
        self.put("var/run", Item::Symlink(b"/run"[..].into()), dir(0o777))?;
        self.put("var/lock", Item::Symlink(b"/run/lock"[..].into()), dir(0o777))?;
        // The scripts are run by it, and the package that owns the name makes it in a script.
        self.put("usr/bin/sh", Item::Symlink(b"dash"[..].into()), dir(0o777))?;
        let hosts = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        self.put("etc/hosts", Item::File(Content::bytes(&hosts[..])), dir(0o644))
    }

    fn put(&mut self, path: &str, item: Item, meta: Meta) -> Result<(), TreeError> {
        self.tree.insert(path, item, meta, OnSymlink::Keep)?;
        Ok(())
    }

    fn package(&mut self, packages: &[Package], at: usize) -> Result<(), TreeError> {
        for (entry, content) in &packages[at].entries {
            if entry.kind == EntryKind::Dir {
                self.place(entry, &entry.path, content.as_ref())?;
                continue;
            }
            match self.contest(packages, at, entry) {
                Contest::Lost => self.lost[at].push(listed_path(&entry.path)),
                Contest::Diverted(path) => {
                    let aside = self.aside.add(path);
                    self.place(entry, aside.as_bytes(), content.as_ref())?;
                }
                Contest::Diverts(path) => {
                    let aside = self.aside.add(path);
                    self.tree.link(aside, &entry.path)?;
                    self.own(at, entry, content.as_ref())?;
                }
                Contest::Won => self.own(at, entry, content.as_ref())?,
            }
        }
        Ok(())
    }

    fn own(&mut self, at: usize, entry: &Entry, content: Option<&Content>) -> Result<(), TreeError> {
        self.place(entry, &entry.path, content)?;
        if let Some((dir, name)) = self.tree.locate(&entry.path) {
            let owner = (at, listed_path(&entry.path));
            self.owners.insert((dir, name.to_vec()), owner);
        }
        Ok(())
    }

    fn place(&mut self, entry: &Entry, path: &[u8], content: Option<&Content>) -> Result<(), TreeError> {
        let item = match &entry.kind {
            EntryKind::Dir => Item::Dir,
            EntryKind::File => Item::File(content.cloned().unwrap_or_else(Content::empty)),
            EntryKind::HardLink(target) => return self.tree.link(path, target).map(drop),
            EntryKind::Symlink(target) => Item::Symlink(target[..].into()),
            EntryKind::CharDevice(device) => Item::CharDevice(*device),
            EntryKind::BlockDevice(device) => Item::BlockDevice(*device),
            EntryKind::Fifo => Item::Fifo,
        };
        let meta = entry.meta.clone();
        self.tree.insert(path, item, meta, OnSymlink::Keep).map(drop)
    }

    /// What becomes of a file whose place another package's file may have already.
    fn contest(&mut self, packages: &[Package], at: usize, entry: &Entry) -> Contest {
        let Some((dir, name)) = self.tree.locate(&entry.path) else {
            return Contest::Won;
        };
        let owner = self.owners.get(&(dir, name.to_vec())).cloned();
        let Some((owner, path)) = owner.filter(|(owner, _)| *owner != at) else {
            return Contest::Won;
        };
        let (new, old) = (&packages[at], &packages[owner]);
        let replaces = |a: &Package, b: &Package| a.control.names_in("Replaces").any(|name| name == b.name);
        if replaces(new, old) {
            self.lost[owner].push(path);
            return Contest::Won;
        }
        if replaces(old, new) {
            return Contest::Lost;
        }
        if new.diverts() {
            return Contest::Diverts(path);
        }
        if old.diverts() {
            return Contest::Diverted(listed_path(&entry.path));
        }
        self.warnings.push(format!(
            "{} and {} both have {}; the first one's is gone",
            old.name,
            new.name,
            String::from_utf8_lossy(&path)
        ));
        self.lost[owner].push(path);
        Contest::Won
    }
}

/// How two packages with one file settle it.
enum Contest {
    /// The new file takes the place.
    Won,
    /// The old one replaces it.
    Lost,
    /// The new package's script will move the file that is listed under this path.
    Diverts(Vec<u8>),
    /// The old package's script will move the new file, which is listed under this path.
    Diverted(Vec<u8>),
}

fn tree_error(package: &str, source: TreeError) -> DebianError {
    DebianError::Tree { package: package.to_owned(), source }
}
