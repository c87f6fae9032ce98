//! Copy-on-write over a base, in clusters.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::api::{Disk, MAX_SIZE, check_range};
use crate::bits::Bits;
use crate::delta::{CLUSTER, DeltaError, DeltaMap, ExtentKind, Frozen};
use crate::file::{FileDisk, punch};

/// Clusters that a delta is copied by: 256 KiB.
const COPY: u64 = 64;

/// A disk of which only the changes are this instance's own.
///
/// Flush does nothing: the private file goes with the instance, and what makes it durable is a
/// snapshot.
pub struct Overlay {
    base: Arc<dyn Disk>,
    frozen: Option<Frozen>,
    size: u64,
    own: RwLock<Own>,
}

/// What this instance changed. A cluster is in at most one of the sets.
struct Own {
    /// Cluster `n` is at byte `n * CLUSTER`, the rest are holes.
    file: File,
    data: Bits,
    zero: Bits,
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
    /// Offset in the frozen section.
    Frozen(u64),
    Base,
}

impl Source {
    /// Whether `next` is where the run that began with `self` goes on after `n` clusters.
    fn goes_on(self, next: Self, n: u64) -> bool {
        match (self, next) {
            (Self::Frozen(a), Self::Frozen(b)) => a + n * CLUSTER == b,
            (a, b) => a == b,
        }
    }
}

impl Overlay {
    /// An overlay over an untouched base; `private` is an empty file that nobody else uses.
    ///
    /// # Errors
    /// `InvalidInput` for a base that is empty or larger than [`MAX_SIZE`].
    pub fn new(base: Arc<dyn Disk>, private: File) -> io::Result<Self> {
        let size = base.size();
        if size == 0 || size > MAX_SIZE {
            let what =
                format!("cannot lay changes over a disk of {size} bytes: 1 byte to 4 TiB are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let clusters = size.div_ceil(CLUSTER);
        let own = Own { file: private, data: Bits::new(clusters), zero: Bits::new(clusters) };
        Ok(Self { base, frozen: None, size, own: RwLock::new(own) })
    }

    /// An overlay over a base and what a snapshot changed of it: the three layers of a resumed
    /// machine. `section` holds the map's data, and may be `None` when there is none.
    ///
    /// # Errors
    /// `InvalidData` with a [`DeltaError`] when the map does not fit, else as [`Overlay::new`].
    pub fn from_delta(
        base: Arc<dyn Disk>,
        map: DeltaMap,
        section: Option<FileDisk>,
        private: File,
    ) -> io::Result<Self> {
        let mut overlay = Self::new(base, private)?;
        let invalid = |e: DeltaError| io::Error::new(io::ErrorKind::InvalidData, e);
        overlay.frozen = Some(Frozen::new(map, section, overlay.size).map_err(invalid)?);
        Ok(overlay)
    }

    fn read(&self) -> RwLockReadGuard<'_, Own> {
        self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Own> {
        self.own.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this instance changed so far.
    pub fn stats(&self) -> OverlayStats {
        let own = self.read();
        OverlayStats { private_bytes: own.data.count() * CLUSTER, zeroed_bytes: own.zero.count() * CLUSTER }
    }

    fn source(&self, own: &Own, cluster: u64) -> Source {
        if own.data.has(cluster) {
            return Source::Private;
        }
        if own.zero.has(cluster) {
            return Source::Zero;
        }
        match self.frozen.as_ref().and_then(|f| f.find(cluster)) {
            Some(Some(at)) => Source::Frozen(at),
            Some(None) => Source::Zero,
            None => Source::Base,
        }
    }

    /// Reads a range that is inside the disk, run by run of clusters with one source.
    fn read_layers(&self, own: &Own, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset + to.len() as u64;
        let mut at = offset;
        while at < end {
            let first = at / CLUSTER;
            let source = self.source(own, first);
            let mut last = first + 1;
            while last * CLUSTER < end && source.goes_on(self.source(own, last), last - first) {
                last += 1;
            }
            let stop = (last * CLUSTER).min(end);
            let piece = &mut to[(at - offset) as usize..(stop - offset) as usize];
            match source {
                Source::Private => own.file.read_exact_at(piece, at)?,
                Source::Zero => piece.fill(0),
                Source::Frozen(start) => self.read_frozen(start + at % CLUSTER, piece)?,
                Source::Base => self.base.read_at(at, piece)?,
            }
            at = stop;
        }
        Ok(())
    }

    fn read_frozen(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.frozen.as_ref().map_or(Ok(()), |f| f.read_at(offset, to))
    }

    /// Bytes of a cluster that are on the disk: all, but for the last of an odd-sized disk.
    fn cluster_len(&self, cluster: u64) -> usize {
        (self.size - cluster * CLUSTER).min(CLUSTER) as usize
    }

    /// Writes into one cluster, completing it from below where it is not this instance's yet.
    fn write_part(&self, own: &mut Own, offset: u64, from: &[u8]) -> io::Result<()> {
        let cluster = offset / CLUSTER;
        if own.data.has(cluster) {
            return own.file.write_all_at(from, offset);
        }
        let mut whole = [0; CLUSTER as usize];
        let start = cluster * CLUSTER;
        let len = self.cluster_len(cluster);
        self.read_layers(own, start, &mut whole[..len])?;
        let at = (offset - start) as usize;
        whole[at..at + from.len()].copy_from_slice(from);
        // Always a whole cluster: every later read of it is inside the file.
        own.file.write_all_at(&whole, start)?;
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
            punch(&own.file, first * CLUSTER, (last - first) * CLUSTER)?;
        }
        Ok(())
    }

    /// Streams the bytes of everything that changed with respect to the base (the frozen delta
    /// below included) into `sink`, ascending, and returns the map that goes with them. Changed
    /// clusters that hold only zeros are not stored. Writes by the guest must stand meanwhile.
    ///
    /// # Errors
    /// The host's while reading, or the sink's.
    pub fn write_delta(&self, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<DeltaMap> {
        let own = self.read();
        let mut map = DeltaMap { disk_size: self.size, extents: Vec::new() };
        let mut buffer = vec![0; (COPY * CLUSTER) as usize];
        let mut at = 0;
        let mut changes = Changes { layers: [Some(0); 3] };
        while let Some(first) = changes.next(self, &own, at) {
            let mut count = 1;
            while count < COPY && self.source(&own, first + count) != Source::Base {
                count += 1;
            }
            at = first + count;
            let len = (count * CLUSTER).min(self.size - first * CLUSTER) as usize;
            let run = &mut buffer[..(count * CLUSTER) as usize];
            self.read_layers(&own, first * CLUSTER, &mut run[..len])?;
            run[len..].fill(0); // the end of an odd-sized disk
            copy_run(first, run, &mut map, &mut sink)?;
        }
        Ok(map)
    }
}

/// Walks the changed clusters of all layers together. Each layer is asked again only when its
/// answer was passed, so that a table is scanned once, however little it holds.
struct Changes {
    layers: [Option<u64>; 3],
}

impl Changes {
    /// The first cluster from `from` on that is not the base's; `from` never falls.
    fn next(&mut self, overlay: &Overlay, own: &Own, from: u64) -> Option<u64> {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            if layer.is_some_and(|found| found <= from) {
                *layer = match i {
                    0 => own.data.next(from),
                    1 => own.zero.next(from),
                    _ => overlay.frozen.as_ref().and_then(|f| f.next(from)),
                };
            }
        }
        self.layers.into_iter().flatten().min()
    }
}

/// Enters a run of changed clusters in the map and gives the bytes of those that are not zeros to
/// the sink, as many at a time as lie together.
fn copy_run(
    first: u64,
    run: &[u8],
    map: &mut DeltaMap,
    sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut start = 0;
    let mut end = 0;
    for (cluster, bytes) in (first..).zip(run.chunks_exact(CLUSTER as usize)) {
        let zero = is_zero(bytes);
        map.push(cluster, if zero { ExtentKind::Zero } else { ExtentKind::Data });
        if zero && start < end {
            sink(&run[start..end])?;
        }
        end += bytes.len();
        if zero {
            start = end;
        }
    }
    if start < end { sink(&run[start..end]) } else { Ok(()) }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
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
        self.read_layers(&self.read(), offset, to)
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
            own.file.write_all_at(bytes(&whole), whole.start)?;
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
