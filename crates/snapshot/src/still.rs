//! Guest memory as it was at one instant, while the guest goes on writing.
//!
//! Problem: writing a snapshot takes as long as there are pages, and the guest may stand still for
//! milliseconds only.
//!
//! Strategy: at the instant every page that may hold something is *pending*. Whoever writes such a
//! page first passes guestmem's gate, which tells [`Keep`]: the old bytes are copied aside, into
//! memory up to a limit, then into a file without a name. Reading the instant takes a pending page
//! from memory, a kept one from where it was put, and everything else is zeros. On an engine whose
//! writes pass no gate (KVM) the instant is read from what was copied while the machine ran (`ahead.rs`); or the
//! machine stands still until all is read, and nothing is ever kept.
//!
//! Invariants: a page's bit in `pending` changes under its stripe's lock only, and its bytes are
//! read from memory under that lock only while the bit is set; so a reader sees the instant's bytes
//! or finds them kept. Nothing that fails here reaches the guest: it fails the snapshot.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use artifact::PageSet;
use artifact::temp::{TempFile, TempStyle};
use guestmem::{GuestMemory, PAGE_SIZE, WriteObserver};

use crate::ahead::Copied;

const PAGE: usize = PAGE_SIZE as usize;
/// Locks; a page's is that of its word of 64 pages.
const STRIPES: usize = 64;
/// Old pages kept in memory; more go to a file.
const IN_MEMORY: u64 = 8192;

/// Guest memory at one instant.
pub struct StillMemory {
    source: Source,
    /// Pages that may hold anything but zeros.
    wanted: PageSet,
    /// Pages that were written since they were mapped from a file.
    dirty: PageSet,
}

/// Where the instant is.
enum Source {
    Held(Held),
    /// Copied while the machine ran.
    Copied(Box<Copied>),
}

/// In memory, and what is overwritten there is kept.
struct Held {
    memory: GuestMemory,
    keep: Arc<Keep>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.release();
    }
}

/// Keeps old bytes.
struct Keep {
    pending: Vec<AtomicU64>,
    /// Pages found to be zeros: they need no keeping.
    zeros: Vec<AtomicU64>,
    stripes: Vec<Mutex<HashMap<usize, Kept>>>,
    /// How many were kept.
    count: AtomicU64,
    dir: PathBuf,
    spill: Mutex<Option<TempFile>>,
    failed: OnceLock<io::Error>,
}

enum Kept {
    Bytes(Box<[u8; PAGE]>),
    /// In the file, at this offset.
    At(u64),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bit(words: &[AtomicU64], page: usize) -> bool {
    words.get(page / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 != 0)
}

fn words(len: usize) -> Vec<AtomicU64> {
    (0..len).map(|_| AtomicU64::new(0)).collect()
}

impl Keep {
    fn new(wanted: &PageSet, dir: &Path) -> Self {
        Self {
            pending: wanted.words().iter().map(|word| AtomicU64::new(*word)).collect(),
            zeros: words(wanted.words().len()),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            count: AtomicU64::new(0),
            dir: dir.to_owned(),
            spill: Mutex::default(),
            failed: OnceLock::new(),
        }
    }

    fn stripe(&self, page: usize) -> MutexGuard<'_, HashMap<usize, Kept>> {
        lock(&self.stripes[page / 64 % STRIPES])
    }

    fn clear_pending(&self, page: usize) {
        self.pending[page / 64].fetch_and(!(1 << (page % 64)), Ordering::AcqRel);
    }

    fn put(&self, bytes: &[u8; PAGE]) -> io::Result<Kept> {
        let at = self.count.fetch_add(1, Ordering::AcqRel);
        if at < IN_MEMORY {
            return Ok(Kept::Bytes(Box::new(*bytes)));
        }
        let mut spill = lock(&self.spill);
        let file = match &*spill {
            Some(file) => file,
            None => spill.insert(TempFile::create_in(&self.dir, 0o600, TempStyle::Auto)?),
        };
        let offset = (at - IN_MEMORY) * PAGE_SIZE;
        file.file().write_all_at(bytes, offset)?;
        Ok(Kept::At(offset))
    }

    fn get(&self, kept: &Kept, to: &mut [u8; PAGE]) -> io::Result<()> {
        match kept {
            Kept::Bytes(bytes) => to.copy_from_slice(&bytes[..]),
            Kept::At(offset) => {
                let spill = lock(&self.spill);
                spill.as_ref().ok_or(io::ErrorKind::NotFound)?.file().read_exact_at(to, *offset)?;
            }
        }
        Ok(())
    }
}

impl WriteObserver for Keep {
    fn before_first_write(&self, memory: &GuestMemory, page: usize) {
        // Cleared only after the bytes were read or kept.
        if !bit(&self.pending, page) {
            return;
        }
        let mut kept = self.stripe(page);
        if !bit(&self.pending, page) {
            return;
        }
        let mut bytes = [0; PAGE];
        memory.read_page(page, &mut bytes);
        match self.put(&bytes) {
            Ok(saved) => drop(kept.insert(page, saved)),
            Err(error) => drop(self.failed.set(error)),
        }
        self.clear_pending(page);
    }
}

impl Held {
    fn is_zero(&self, page: usize) -> io::Result<bool> {
        let kept = self.keep.stripe(page);
        if bit(&self.keep.pending, page) {
            let zero = self.memory.page_is_zero(page);
            if zero {
                self.keep.zeros[page / 64].fetch_or(1 << (page % 64), Ordering::AcqRel);
                self.keep.clear_pending(page);
            }
            return Ok(zero);
        }
        let mut bytes = [0; PAGE];
        self.take(&kept, page, &mut bytes)?;
        Ok(bytes.iter().all(|b| *b == 0))
    }

    /// A page's bytes; `read` is called where they come from memory, before it may be written again.
    fn page(&self, page: usize, to: &mut [u8; PAGE], read: impl FnOnce(&Keep)) -> io::Result<()> {
        let kept = self.keep.stripe(page);
        if bit(&self.keep.pending, page) {
            self.memory.read_page(page, to);
            read(&self.keep);
            return Ok(());
        }
        self.take(&kept, page, to)
    }

    /// The bytes of a page that is not pending.
    fn take(&self, kept: &HashMap<usize, Kept>, page: usize, to: &mut [u8; PAGE]) -> io::Result<()> {
        if bit(&self.keep.zeros, page) {
            to.fill(0);
            return Ok(());
        }
        match (kept.get(&page), self.keep.failed.get()) {
            (Some(kept), _) => self.keep.get(kept, to),
            (None, Some(error)) => {
                Err(io::Error::new(error.kind(), format!("keeping the memory's old bytes: {error}")))
            }
            (None, None) => Err(io::Error::other("a page of the snapshot was read twice")),
        }
    }
}

impl StillMemory {
    /// The instant is now: vCPUs and devices stand still. `origin`: the pages that were mapped from
    /// files. `known`: whether memory's dirty pages are all that were written. The guest may go on before everything is
    /// read where its writes pass guestmem's gate. Old bytes beyond a limit are kept in a nameless file in `dir`.
    ///
    /// # Errors
    /// `ResourceBusy` when an instant of this memory is being read already.
    pub fn new(memory: &GuestMemory, origin: &PageSet, known: bool, dir: &Path) -> io::Result<Self> {
        let count = memory.page_count() as u64;
        let (dirty, wanted) = if known {
            let dirty = PageSet::from_words(memory.dirty_bits(), count);
            let mut wanted = dirty.clone();
            wanted.unite(origin);
            (dirty, wanted)
        } else {
            let all = PageSet::from_words(vec![u64::MAX; count.div_ceil(64) as usize], count);
            (all.clone(), all)
        };
        let keep = Arc::new(Keep::new(&wanted, dir));
        memory.hold(keep.clone()).map_err(|_| io::ErrorKind::ResourceBusy)?;
        Ok(Self { source: Source::Held(Held { memory: memory.clone(), keep }), wanted, dirty })
    }

    /// Of memory that was copied; the guest may go on.
    pub(crate) fn copied(copied: Copied, dirty: PageSet, origin: &PageSet) -> Self {
        let mut wanted = dirty.clone();
        wanted.unite(origin);
        Self { source: Source::Copied(Box::new(copied)), wanted, dirty }
    }

    /// Pages that may hold anything but zeros.
    pub fn wanted(&self) -> &PageSet {
        &self.wanted
    }

    /// Pages written since they were mapped from a file (or since the machine was made); on an
    /// engine that does not know: all.
    pub fn dirty(&self) -> &PageSet {
        &self.dirty
    }

    /// Whether a page held only zeros.
    ///
    /// # Errors
    /// The host's, when old bytes could not be kept.
    pub fn is_zero(&self, page: usize) -> io::Result<bool> {
        match &self.source {
            _ if !self.wanted.contains(page as u64) => Ok(true),
            Source::Held(held) => held.is_zero(page),
            Source::Copied(_) => {
                let mut bytes = [0; PAGE];
                self.peek_page(page, &mut bytes)?;
                Ok(bytes.iter().all(|b| *b == 0))
            }
        }
    }

    /// A page's bytes. Each page can be read once: it is not kept any longer than that.
    ///
    /// # Errors
    /// The host's, when old bytes could not be kept.
    pub fn read_page(&self, page: usize, to: &mut [u8; PAGE]) -> io::Result<()> {
        self.page(page, to, |keep| keep.clear_pending(page))
    }

    /// [`StillMemory::read_page`] before that: it can still be read.
    ///
    /// # Errors
    /// The host's, when old bytes could not be kept.
    pub fn peek_page(&self, page: usize, to: &mut [u8; PAGE]) -> io::Result<()> {
        self.page(page, to, |_| ())
    }

    fn page(&self, page: usize, to: &mut [u8; PAGE], read: impl FnOnce(&Keep)) -> io::Result<()> {
        match &self.source {
            _ if !self.wanted.contains(page as u64) => to.fill(0),
            Source::Held(held) => held.page(page, to, read)?,
            Source::Copied(copied) => copied.page(page, self.dirty.contains(page as u64), to),
        }
        Ok(())
    }

    /// How many pages were copied aside so far because the guest wrote them.
    pub fn kept_pages(&self) -> u64 {
        match &self.source {
            Source::Held(held) => held.keep.count.load(Ordering::Acquire),
            Source::Copied(_) => 0,
        }
    }

    /// Pages that the memory has.
    pub fn page_count(&self) -> usize {
        match &self.source {
            Source::Held(held) => held.memory.page_count(),
            Source::Copied(copied) => copied.page_count(),
        }
    }
}
