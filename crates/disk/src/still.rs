//! A disk as it was at one instant, while the guest goes on writing.
//!
//! Problem: writing a snapshot takes as long as there are changes, and the guest may stand still for
//! milliseconds only.
//!
//! Strategy: at the instant the two sets of changed clusters are copied. From then on, whoever is
//! about to overwrite (or punch) a private cluster of that instant first copies its old bytes to a
//! file without a name. Reading the instant takes a cluster from there, else from where it still is.
//!
//! Invariants: lower layers never change, so only private clusters are kept; what was streamed
//! already is not kept any more; a failure to keep something fails the snapshot, never the guest.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bits::Bits;
use crate::delta::{CLUSTER, DeltaMap, ExtentKind};
use crate::overlay::{Overlay, Own, Time};
use crate::private::private_file;

/// Clusters that a delta is copied by: 256 KiB.
const COPY: u64 = 64;

/// What an overlay keeps while a [`StillDisk`] exists.
pub(crate) struct Held {
    data: Bits,
    zero: Bits,
    dir: PathBuf,
    /// Made when the first cluster is kept.
    file: Option<File>,
    /// Which clusters were kept, and where.
    kept: HashMap<u64, u64>,
    /// Clusters below were streamed.
    passed: AtomicU64,
    failed: Option<io::Error>,
}

impl Held {
    fn wants(&self, cluster: u64) -> bool {
        self.data.has(cluster)
            && cluster >= self.passed.load(Ordering::Acquire)
            && self.failed.is_none()
            && !self.kept.contains_key(&cluster)
    }

    fn keep(&mut self, from: &File, cluster: u64) -> io::Result<()> {
        let mut bytes = [0; CLUSTER as usize];
        from.read_exact_at(&mut bytes, cluster * CLUSTER)?;
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(private_file(&self.dir)?),
        };
        let at = self.kept.len() as u64 * CLUSTER;
        file.write_all_at(&bytes, at)?;
        self.kept.insert(cluster, at);
        Ok(())
    }
}

impl Own {
    /// The changed clusters of a time.
    pub(crate) fn sets(&self, time: Time) -> (&Bits, &Bits) {
        match (time, &self.held) {
            (Time::Held, Some(held)) => (&held.data, &held.zero),
            _ => (&self.data, &self.zero),
        }
    }

    /// Where the kept bytes of a cluster are, when they were kept.
    pub(crate) fn kept(&self, time: Time, cluster: u64) -> Option<u64> {
        let held = self.held.as_ref().filter(|_| time == Time::Held)?;
        held.kept.get(&cluster).copied()
    }

    pub(crate) fn read_kept(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let file = self.held.as_ref().and_then(|held| held.file.as_ref());
        file.ok_or(io::ErrorKind::NotFound)?.read_exact_at(to, offset)
    }

    /// To be called before private clusters change.
    pub(crate) fn keep(&mut self, clusters: std::ops::Range<u64>) {
        let Some(held) = &mut self.held else { return };
        for cluster in clusters {
            if held.wants(cluster)
                && let Err(error) = self.file.get().and_then(|file| held.keep(file, cluster))
            {
                held.failed = Some(error);
            }
        }
    }
}

/// An overlay's changes as they were when this was made; the overlay is written on meanwhile. One at
/// a time.
pub struct StillDisk {
    overlay: Arc<Overlay>,
}

impl StillDisk {
    /// Costs a copy of two bits for each cluster. Old bytes are kept in nameless files in `dir`.
    ///
    /// # Errors
    /// `ResourceBusy` when there is one already.
    pub fn new(overlay: &Arc<Overlay>, dir: &Path) -> io::Result<Self> {
        let own = &mut *overlay.write();
        if own.held.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        own.held = Some(Held {
            data: own.data.clone(),
            zero: own.zero.clone(),
            dir: dir.to_owned(),
            file: None,
            kept: HashMap::new(),
            passed: AtomicU64::new(0),
            failed: None,
        });
        Ok(Self { overlay: overlay.clone() })
    }

    /// How many layers lie between the base and this instance's own changes.
    pub fn layers(&self) -> usize {
        self.overlay.frozen.len()
    }

    /// Streams the bytes of everything that changed with respect to the base and the lowest `below`
    /// layers into `sink`, ascending, and returns the map that goes with them. Changed clusters that
    /// hold only zeros are not stored. Once: what was streamed is not kept any longer.
    ///
    /// # Errors
    /// The host's while reading or keeping, or the sink's.
    pub fn write_delta(
        self,
        below: usize,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<DeltaMap> {
        let overlay = &*self.overlay;
        let mut map = DeltaMap { disk_size: overlay.size, extents: Vec::new() };
        let mut buffer = vec![0; (COPY * CLUSTER) as usize];
        let mut at = 0;
        let depth = overlay.frozen.len().saturating_sub(below);
        let mut changes = Changes { layers: vec![Some(0); 2 + depth] };
        loop {
            // Given back before the sink works: the guest's writes wait for a read at most.
            let own = overlay.read();
            if let Some(held) = &own.held
                && let Some(error) = &held.failed
            {
                return Err(io::Error::new(error.kind(), format!("keeping the disk's old bytes: {error}")));
            }
            let Some(first) = changes.next(overlay, &own, at) else { break };
            let mut count = 1;
            while count < COPY && changes.is_changed(overlay, &own, first + count) {
                count += 1;
            }
            at = first + count;
            let len = (count * CLUSTER).min(overlay.size - first * CLUSTER) as usize;
            let run = &mut buffer[..(count * CLUSTER) as usize];
            overlay.read_layers(&own, Time::Held, first * CLUSTER, &mut run[..len])?;
            run[len..].fill(0); // the end of an odd-sized disk
            if let Some(held) = &own.held {
                held.passed.store(at, Ordering::Release);
            }
            drop(own);
            copy_run(first, run, &mut map, &mut sink)?;
        }
        Ok(map)
    }
}

impl Drop for StillDisk {
    fn drop(&mut self) {
        self.overlay.write().held = None;
    }
}

/// Walks the changed clusters of all layers together. Each layer is asked again only when its
/// answer was passed, so that a table is scanned once, however little it holds.
struct Changes {
    /// This instance's two sets, then frozen layers from the top.
    layers: Vec<Option<u64>>,
}

impl Changes {
    /// The first cluster from `from` on that a layer changed; `from` never falls.
    fn next(&mut self, overlay: &Overlay, own: &Own, from: u64) -> Option<u64> {
        let (data, zero) = own.sets(Time::Held);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            if layer.is_some_and(|found| found <= from) {
                *layer = match i {
                    0 => data.next(from),
                    1 => zero.next(from),
                    _ => overlay.frozen.get(i - 2).and_then(|f| f.next(from)),
                };
            }
        }
        self.layers.iter().copied().flatten().min()
    }

    fn is_changed(&self, overlay: &Overlay, own: &Own, cluster: u64) -> bool {
        let (data, zero) = own.sets(Time::Held);
        let frozen = overlay.frozen.iter().take(self.layers.len() - 2);
        data.has(cluster) || zero.has(cluster) || frozen.into_iter().any(|f| f.find(cluster).is_some())
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
