//! Copy-on-write over a base, in clusters.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::api::{Disk, MAX_SIZE, check_range};
use crate::bits::Bits;
use crate::delta::{CLUSTER, Delta, DeltaError, Frozen};
use crate::file::punch;
use crate::private::Private;
use crate::still::Held;

/// A disk of which only the changes are this instance's own.
///
/// Flush does nothing: the private file goes with the instance, and what makes it durable is a
/// snapshot.
pub struct Overlay {
    base: Arc<dyn Disk>,
    /// What was changed before this instance, the topmost layer first.
    pub(crate) frozen: Vec<Frozen>,
    pub(crate) size: u64,
    own: RwLock<Own>,
}

/// What this instance changed. A cluster is in at most one of the sets.
pub(crate) struct Own {
    /// Cluster `n` is at byte `n * CLUSTER`, the rest are holes.
    pub(crate) file: Private,
    pub(crate) data: Bits,
    pub(crate) zero: Bits,
    /// What is kept for a [`crate::StillDisk`].
    pub(crate) held: Option<Held>,
}

/// What an overlay holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayStats {
    /// Bytes of the private file in use.
    pub private_bytes: u64,
    /// Bytes that read as zeros because of a discard or write-zeroes of this instance.
    pub zeroed_bytes: u64,
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Private,
    Zero,
    /// Offset in the file of kept clusters.
    Kept(u64),
    /// A layer, and the offset in its section.
    Frozen(usize, u64),
    Base,
}

impl Source {
    /// Whether `next` is where the run that began with `self` goes on after `n` clusters.
    fn goes_on(self, next: Self, n: u64) -> bool {
        match (self, next) {
            (Self::Frozen(layer, a), Self::Frozen(other, b)) => layer == other && a + n * CLUSTER == b,
            (Self::Kept(a), Self::Kept(b)) => a + n * CLUSTER == b,
            (a, b) => a == b,
        }
    }
}

impl Overlay {
    /// An overlay over an untouched base; `private` is an empty file that nobody else uses, there or to be made.
    ///
    /// # Errors
    /// `InvalidInput` for a base that is empty or larger than [`MAX_SIZE`].
    pub fn new(base: Arc<dyn Disk>, private: impl Into<Private>) -> io::Result<Self> {
        let size = base.size();
        if size == 0 || size > MAX_SIZE {
            let what =
                format!("cannot lay changes over a disk of {size} bytes: 1 byte to 4 TiB are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let clusters = size.div_ceil(CLUSTER);
        let file = private.into();
        let own = Own { file, data: Bits::new(clusters), zero: Bits::new(clusters), held: None };
        Ok(Self { base, frozen: Vec::new(), size, own: RwLock::new(own) })
    }

    /// An overlay over a base and what snapshots changed of it, the lowest first: the layers of a
    /// resumed machine.
    ///
    /// # Errors
    /// `InvalidData` with a [`DeltaError`] when a map does not fit, else as [`Overlay::new`].
    pub fn from_deltas(
        base: Arc<dyn Disk>,
        deltas: Vec<Delta>,
        private: impl Into<Private>,
    ) -> io::Result<Self> {
        let mut overlay = Self::new(base, private)?;
        let invalid = |e: DeltaError| io::Error::new(io::ErrorKind::InvalidData, e);
        for delta in deltas.into_iter().rev() {
            overlay.frozen.push(Frozen::new(delta.map, delta.section, overlay.size).map_err(invalid)?);
        }
        Ok(overlay)
    }

    /// The changes of this instance go to a file to be made in `dir`. Before anything is written.
    pub fn keep_in(&self, dir: &Path) {
        let own = &mut *self.write();
        if own.data.count() == 0 {
            own.file = Private::later(dir);
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Own> {
        self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Own> {
        self.own.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this instance changed so far.
    pub fn stats(&self) -> OverlayStats {
        let own = self.read();
        OverlayStats { private_bytes: own.data.count() * CLUSTER, zeroed_bytes: own.zero.count() * CLUSTER }
    }

    fn source(&self, own: &Own, at: Time, cluster: u64) -> Source {
        let (data, zero) = own.sets(at);
        if data.has(cluster) {
            return match own.kept(at, cluster) {
                Some(offset) => Source::Kept(offset),
                None => Source::Private,
            };
        }
        if zero.has(cluster) {
            return Source::Zero;
        }
        for (layer, frozen) in self.frozen.iter().enumerate() {
            match frozen.find(cluster) {
                Some(Some(offset)) => return Source::Frozen(layer, offset),
                Some(None) => return Source::Zero,
                None => {}
            }
        }
        Source::Base
    }

    /// Reads a range that is inside the disk, run by run of clusters with one source.
    pub(crate) fn read_layers(&self, own: &Own, time: Time, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset + to.len() as u64;
        let mut at = offset;
        while at < end {
            let first = at / CLUSTER;
            let source = self.source(own, time, first);
            let mut last = first + 1;
            while last * CLUSTER < end && source.goes_on(self.source(own, time, last), last - first) {
                last += 1;
            }
            let stop = (last * CLUSTER).min(end);
            let piece = &mut to[(at - offset) as usize..(stop - offset) as usize];
            match source {
                Source::Private => own.file.get()?.read_exact_at(piece, at)?,
                Source::Zero => piece.fill(0),
                Source::Kept(start) => own.read_kept(start + at % CLUSTER, piece)?,
                Source::Frozen(layer, start) => self.frozen[layer].read_at(start + at % CLUSTER, piece)?,
                Source::Base => self.base.read_at(at, piece)?,
            }
            at = stop;
        }
        Ok(())
    }

    /// Bytes of a cluster that are on the disk: all, but for the last of an odd-sized disk.
    fn cluster_len(&self, cluster: u64) -> usize {
        (self.size - cluster * CLUSTER).min(CLUSTER) as usize
    }

    /// Writes into one cluster, completing it from below where it is not this instance's yet.
    fn write_part(&self, own: &mut Own, offset: u64, from: &[u8]) -> io::Result<()> {
        let cluster = offset / CLUSTER;
        own.keep(cluster..cluster + 1);
        if own.data.has(cluster) {
            return own.file.get()?.write_all_at(from, offset);
        }
        let mut whole = [0; CLUSTER as usize];
        let start = cluster * CLUSTER;
        let len = self.cluster_len(cluster);
        self.read_layers(own, Time::Now, start, &mut whole[..len])?;
        let at = (offset - start) as usize;
        whole[at..at + from.len()].copy_from_slice(from);
        // Always a whole cluster: every later read of it is inside the file.
        own.file.get()?.write_all_at(&whole, start)?;
        own.mark_data(cluster..cluster + 1);
        Ok(())
    }

    /// Splits `[offset, offset + len)` into a partial head, whole clusters, and a partial tail.
    /// (The last cluster of an odd-sized disk counts as partial.)
    fn split(offset: u64, len: u64) -> [std::ops::Range<u64>; 3] {
        let end = offset + len;
        let first = offset.next_multiple_of(CLUSTER).min(end);
        let last = (end - end % CLUSTER).max(first);
        [offset..first, first..last, last..end]
    }

    /// Turns whole clusters into zeros that are stored nowhere.
    fn drop_clusters(own: &mut Own, range: std::ops::Range<u64>) -> io::Result<()> {
        let mut at = range.start / CLUSTER;
        let end = range.end / CLUSTER;
        own.keep(at..end);
        // Marked first: should the hole fail, the guest sees zeros all the same.
        let mut holes = Vec::new();
        while at < end {
            if own.data.has(at) {
                own.data.put(at, false);
                match holes.last_mut() {
                    Some((_, last)) if *last == at => *last += 1,
                    _ => holes.push((at, at + 1)),
                }
            }
            own.zero.put(at, true);
            at += 1;
        }
        for (first, last) in holes {
            punch(own.file.get()?, first * CLUSTER, (last - first) * CLUSTER)?;
        }
        Ok(())
    }
}

/// Which contents are meant: the disk's present ones, or those that a [`crate::StillDisk`] keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    Now,
    Held,
}

impl Own {
    fn mark_data(&mut self, clusters: std::ops::Range<u64>) {
        for cluster in clusters {
            self.data.put(cluster, true);
            self.zero.put(cluster, false);
        }
    }
}

impl Disk for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, to.len() as u64)?;
        self.read_layers(&self.read(), Time::Now, offset, to)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, from.len() as u64)?;
        let own = &mut *self.write();
        let bytes = |r: &std::ops::Range<u64>| &from[(r.start - offset) as usize..(r.end - offset) as usize];
        let [head, whole, tail] = Self::split(offset, from.len() as u64);
        // A write inside one cluster is all head, or all tail when it starts on a boundary.
        if !head.is_empty() {
            self.write_part(own, head.start, bytes(&head))?;
        }
        if !whole.is_empty() {
            own.keep(whole.start / CLUSTER..whole.end / CLUSTER);
            own.file.get()?.write_all_at(bytes(&whole), whole.start)?;
            own.mark_data(whole.start / CLUSTER..whole.end / CLUSTER);
        }
        if !tail.is_empty() {
            self.write_part(own, tail.start, bytes(&tail))?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size, offset, len)?;
        let [_, whole, _] = Self::split(offset, len);
        Self::drop_clusters(&mut self.write(), whole)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size, offset, len)?;
        let own = &mut *self.write();
        let [head, whole, tail] = Self::split(offset, len);
        for part in [head, tail] {
            let zeros = [0; CLUSTER as usize];
            if !part.is_empty() {
                self.write_part(own, part.start, &zeros[..(part.end - part.start) as usize])?;
            }
        }
        Self::drop_clusters(own, whole)
    }
}
