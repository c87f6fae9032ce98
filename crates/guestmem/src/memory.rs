//! [`GuestMemory`]: layout, bounds, the write gate.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use crate::flags::PageTable;
use crate::later::Piece;
use crate::ram::Ram;

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;
/// First guest-physical address that is never RAM (devices live above it).
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// First guest-physical address after the hole, where RAM goes on.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// An access that guest memory refuses.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Part of the range is not RAM.
    #[error("guest-physical range {gpa:#x}+{len:#x} is not RAM")]
    NotRam { gpa: u64, len: u64 },
}

/// Told of the first write to each page while it is installed, before it happens (copy-on-write
/// snapshots).
pub trait WriteObserver: Send + Sync {
    /// `page`: index into RAM in ascending address order (see [`GuestMemory::page_index`]).
    /// The page's bytes are still the old ones, unless another writer was told of it already: two
    /// that write a page at the same time may both be told, and either may be first.
    fn before_first_write(&self, memory: &GuestMemory, page: usize);
}

/// Guest RAM, shared by everything that touches it. Cloning is cheap.
#[derive(Clone)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

struct Inner {
    ram: Ram,
    pages: PageTable,
    size: u64,
    observer: RwLock<Option<Arc<dyn WriteObserver>>>,
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Guest bytes never reach a log.
        write!(f, "GuestMemory({} MiB)", self.inner.size >> 20)
    }
}

impl GuestMemory {
    /// Zeroed RAM of `size` bytes, rounded up to whole pages: from address 0 to
    /// [`MMIO_HOLE_START`], the rest from [`MMIO_HOLE_END`].
    ///
    /// # Errors
    /// The host's, when there is no address space.
    pub fn new(size: u64) -> io::Result<Self> {
        let size = size.checked_next_multiple_of(PAGE_SIZE).filter(|s| *s > 0);
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let pages = PageTable::new(len / PAGE_SIZE as usize)?;
        let inner = Inner { ram: Ram::new(len)?, pages, size, observer: RwLock::new(None) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// RAM in bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// RAM ranges as (guest-physical start, bytes, host address), ascending: one or two. For those who go around
    /// this type: everything that waits to be mapped is mapped first.
    pub fn regions(&self) -> Vec<(u64, u64, NonNull<u8>)> {
        self.inner.ram.map_rest();
        let low = self.inner.size.min(MMIO_HOLE_START);
        let mut out = vec![(0, low, self.inner.ram.page(0, 1))];
        if self.inner.size > low {
            out.push((MMIO_HOLE_END, self.inner.size - low, self.inner.ram.page(low as usize, 1)));
        }
        out
    }

    /// Where RAM begins in this process; not for access.
    pub fn place(&self) -> usize {
        self.inner.ram.base().as_ptr() as usize
    }

    /// Whole pages of RAM.
    pub fn page_count(&self) -> usize {
        (self.inner.size / PAGE_SIZE) as usize
    }

    /// Offset into RAM of `[gpa, gpa + len)`, when all of it is RAM in one piece.
    #[inline]
    pub(crate) fn offset(&self, gpa: u64, len: u64) -> Option<usize> {
        let (at, limit) = if gpa < MMIO_HOLE_START {
            (gpa, self.inner.size.min(MMIO_HOLE_START))
        } else if gpa >= MMIO_HOLE_END {
            (gpa - (MMIO_HOLE_END - MMIO_HOLE_START), self.inner.size)
        } else {
            return None;
        };
        let end = at.checked_add(len)?;
        (end <= limit).then_some(at as usize)
    }

    /// Index of the page that holds `gpa`; `None` when it is not RAM.
    #[inline]
    pub fn page_index(&self, gpa: u64) -> Option<usize> {
        self.offset(gpa, 1).map(|o| o / PAGE_SIZE as usize)
    }

    /// Guest-physical address of a page index below [`GuestMemory::page_count`].
    #[inline]
    pub fn page_gpa(&self, page: usize) -> u64 {
        let at = page as u64 * PAGE_SIZE;
        if at < MMIO_HOLE_START { at } else { at + (MMIO_HOLE_END - MMIO_HOLE_START) }
    }

    /// Host address of the page that holds `gpa`, for the soft CPU's TLB. Reading through it is
    /// the caller's unsafe business (volatile or atomic; the guest may write at the same time);
    /// writing needs [`GuestMemory::before_write`] first, each time or once per write epoch.
    /// Valid as long as any clone of `self` lives.
    #[inline]
    pub fn host_page(&self, gpa: u64) -> Option<NonNull<u8>> {
        let at = self.offset(gpa & !(PAGE_SIZE - 1), PAGE_SIZE)?;
        Some(self.inner.ram.page(at, PAGE_SIZE as usize))
    }

    #[inline]
    pub(crate) fn ram(&self) -> &Ram {
        &self.inner.ram
    }

    /// The gate that every writer passes, before the bytes change. Returns whether the permission
    /// may be kept until the write epoch moves (no code was decoded from the page).
    #[inline]
    pub fn before_write(&self, page: usize) {
        if !self.inner.pages.is_quiet(page) {
            self.first_write(page);
        }
    }

    #[cold]
    fn first_write(&self, page: usize) {
        if self.inner.pages.is_wanted(page) {
            let observer = self.inner.observer.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(observer) = observer.as_ref() {
                observer.before_first_write(self, page);
            }
        }
        self.inner.pages.mark_written(page);
    }

    /// [`GuestMemory::before_write`] for every page of an offset range.
    #[inline]
    pub(crate) fn before_write_range(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let page = PAGE_SIZE as usize;
        for p in offset / page..=(offset + len - 1) / page {
            self.before_write(p);
        }
    }

    /// From now on `observer` is told of the first write to each page: what was kept of write
    /// permissions is taken back. vCPUs and devices must stand still during the call, and only
    /// then; it costs a look at one byte for each page.
    ///
    /// # Errors
    /// Gives the observer back when one is installed already.
    pub fn hold(&self, observer: Arc<dyn WriteObserver>) -> Result<(), Arc<dyn WriteObserver>> {
        let mut installed = self.inner.observer.write().unwrap_or_else(PoisonError::into_inner);
        if installed.is_some() {
            return Err(observer);
        }
        *installed = Some(observer);
        self.inner.pages.hold_dirty();
        Ok(())
    }

    /// Takes the observer out; writers go on without it at any time.
    pub fn release(&self) {
        *self.inner.observer.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.inner.pages.release();
    }

    /// Gives the whole pages in `[gpa, gpa + len)` back to the host, for a guest that does not care for their bytes
    /// any more (free page reporting): they read as zeros then and cost nothing until they are written. Returns how
    /// many bytes went: none when the range is not RAM, or while an observer wants to see what the pages held.
    pub fn give_back(&self, gpa: u64, len: u64) -> u64 {
        let end = gpa.saturating_add(len) & !(PAGE_SIZE - 1);
        let first = gpa.checked_next_multiple_of(PAGE_SIZE).filter(|first| end > *first);
        let Some((first, at)) = first.and_then(|first| Some((first, self.offset(first, end - first)?)))
        else {
            return 0;
        };
        let range = at..at + (end - first) as usize;
        // Held over the change: nobody begins to observe half-way.
        let observer = self.inner.observer.read().unwrap_or_else(PoisonError::into_inner);
        if observer.is_some() {
            return 0;
        }
        let pages = range.start / PAGE_SIZE as usize..range.end / PAGE_SIZE as usize;
        let gone = self.inner.ram.give_back(range, |filed| {
            // A page that nobody wrote and no file is behind is zeros already, and stays clean.
            pages.filter(|page| filed || self.is_dirty(*page)).for_each(|page| self.mark_dirty(page));
        });
        if gone { end - first } else { 0 }
    }

    /// The pages that [`GuestMemory::is_dirty`], a bit each: bit n % 64 of word n / 64.
    pub fn dirty_bits(&self) -> Vec<u64> {
        self.inner.pages.dirty_bits()
    }

    /// Whether the page was written since [`GuestMemory::clear_dirty`] (or since it was mapped).
    pub fn is_dirty(&self, page: usize) -> bool {
        self.inner.pages.is_dirty(page)
    }

    /// Marks a page as written by somebody who did not pass the gate (KVM's dirty log).
    pub fn mark_dirty(&self, page: usize) {
        self.inner.pages.mark_written(page);
    }

    /// [`GuestMemory::mark_dirty`] for each page whose bit is set: bit n % 64 of word n / 64. Bits beyond the memory
    /// don't count.
    pub fn mark_dirty_bits(&self, words: &[u64]) {
        let count = self.page_count();
        for (at, word) in words.iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                let page = at * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                if page < count && !self.inner.pages.is_quiet(page) {
                    self.mark_dirty(page);
                }
            }
        }
    }

    /// Forgets all dirt and moves the write epoch.
    pub fn clear_dirty(&self) {
        self.inner.pages.clear_dirty();
    }

    /// Somebody decoded instructions from this page: the next write to it will change
    /// [`GuestMemory::code_generation`]. Moves the write epoch when the page was not watched yet.
    /// Returns the generation that the decoded bytes belong to; call it *before* reading them.
    #[inline]
    pub fn watch_code(&self, page: usize) -> u32 {
        self.inner.pages.watch_code(page)
    }

    /// [`GuestMemory::watch_code`] among writers that [`GuestMemory::claim_write`]: without moving the write epoch.
    /// Returns the generation, whether the page was not watched yet, and a bit for each writer that may keep a write
    /// permission for it: the bytes count from when those have dropped theirs (see
    /// [`GuestMemory::move_write_epoch`]), and the generation's word is only good from then on.
    pub fn watch_claimed_code(&self, page: usize) -> (u32, bool, u16) {
        self.inner.pages.watch_claimed_code(page)
    }

    /// Writer `writer` (below 16) says, *before* it passes the gate, that it may write the page or keep a write
    /// permission for it, up to [`GuestMemory::drop_claim`]. Returns whether it had not said so before.
    #[inline]
    pub fn claim_write(&self, page: usize, writer: u32) -> bool {
        self.inner.pages.claim_write(page, writer)
    }

    /// Takes back [`GuestMemory::claim_write`], after the last write under it.
    pub fn drop_claim(&self, page: usize, writer: u32) {
        self.inner.pages.drop_claim(page, writer);
    }

    /// Makes everybody drop kept write permissions, at their next look at the write epoch.
    pub fn move_write_epoch(&self) {
        self.inner.pages.move_epoch();
    }

    /// Changes whenever a watched page is written.
    #[inline]
    pub fn code_generation(&self, page: usize) -> u32 {
        self.inner.pages.code_generation(page)
    }

    /// Moves whenever the code generation of any page changed: while it stands still, everything
    /// that was found valid stays valid.
    #[inline]
    pub fn code_epoch(&self) -> u32 {
        self.inner.pages.code_epoch()
    }

    /// Moves whenever kept write permissions must be dropped.
    #[inline]
    pub fn write_epoch(&self) -> u32 {
        self.inner.pages.epoch()
    }

    /// From now on [`GuestMemory::touched`] knows every page that is touched through this: before anybody uses the
    /// memory. (Who took the addresses of all of it, KVM, touches pages unseen.)
    ///
    /// # Errors
    /// The host's.
    pub fn note_touches(&self) -> io::Result<()> {
        self.inner.ram.note_touches()
    }

    /// The pages that were touched since [`GuestMemory::note_touches`], in the order of their first touch; without it,
    /// while pieces of a file waited to be mapped, ascending.
    pub fn touched(&self) -> Vec<usize> {
        let mut pages = self.inner.ram.touched();
        pages.retain(|page| *page < self.page_count());
        pages
    }

    /// Until [`GuestMemory::reader_is_done`] somebody has the host read the files that were brought here, in the order in
    /// which their pages are needed. Who touches a page that is not there yet has the host read this page only meanwhile,
    /// and not what lies around it as well (up to the whole read-ahead window of the device, MiB of some), for which it
    /// would wait, and which comes anyway. Before anybody uses the memory.
    pub fn expect_reader(&self) {
        self.inner.ram.expect_reader();
    }

    /// See [`GuestMemory::expect_reader`].
    pub fn reader_is_done(&self) {
        self.inner.ram.reader_is_done();
    }

    /// Maps what `other`, to which the same pieces were brought, had to map so far.
    pub fn touch_as(&self, other: &GuestMemory) {
        for page in other.touched().into_iter().filter(|page| *page < self.page_count()) {
            self.inner.ram.page(page * PAGE_SIZE as usize, PAGE_SIZE as usize);
        }
    }

    /// Brings pieces of `file` to life, private and copy-on-write: how a snapshot's pages come back. Each is
    /// (guest-physical address, bytes, place in the file), ascending, in whole pages of RAM. They count as clean, and
    /// are mapped when they are first touched. Once for each file, with pieces apart from those of others, before
    /// anybody uses the memory.
    ///
    /// # Errors
    /// `InvalidInput` when a piece is not RAM, unaligned or out of order; else the host's.
    pub fn map_file_later(
        &self,
        file: &File,
        pieces: impl IntoIterator<Item = (u64, u64, u64)>,
    ) -> io::Result<()> {
        let mut next = 0;
        let mut piece = |(gpa, len, file_offset): (u64, u64, u64)| {
            let at = self.offset(gpa, len)?;
            let aligned = [at as u64, len, file_offset].iter().all(|n| n.is_multiple_of(PAGE_SIZE));
            let good = aligned && len > 0 && at >= next;
            next = at + len as usize;
            good.then_some(Piece { at, len: len as usize, file_offset })
        };
        let pieces: Option<Vec<Piece>> = pieces.into_iter().map(&mut piece).collect();
        self.inner.ram.map_later(file.try_clone()?, &pieces.ok_or(io::ErrorKind::InvalidInput)?)
    }
}
