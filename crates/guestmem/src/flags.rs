//! Per-page flags and code generations. The tables are mapped lazily: pages that were never
//! written or decoded cost nothing.

#![allow(unsafe_code)] // Views of zeroed mappings as atomics.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use host::Mapping;

const DIRTY: u8 = 1;
const CODE: u8 = 2;

pub(crate) struct PageTable {
    flags: Mapping,
    generations: Mapping,
    count: usize,
    epoch: AtomicU32,
    code_epoch: AtomicU32,
}

impl PageTable {
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let round = |bytes: usize| bytes.next_multiple_of(4096);
        Ok(Self {
            flags: Mapping::anonymous(round(count))?,
            generations: Mapping::anonymous(round(count * 4))?,
            count,
            epoch: AtomicU32::new(0),
            code_epoch: AtomicU32::new(0),
        })
    }

    #[inline]
    fn flag(&self, page: usize) -> &AtomicU8 {
        assert!(page < self.count);
        // SAFETY: in bounds; zero bytes are valid atomics; only atomics ever refer to the table.
        unsafe { AtomicU8::from_ptr(self.flags.base().as_ptr().add(page)) }
    }

    #[inline]
    fn generation(&self, page: usize) -> &AtomicU32 {
        assert!(page < self.count);
        // SAFETY: as in `flag`; a mapping is page-aligned, so entries are aligned.
        unsafe { AtomicU32::from_ptr(self.generations.base().as_ptr().cast::<u32>().add(page)) }
    }

    /// Dirty already and not code: a write needs no bookkeeping.
    #[inline]
    pub(crate) fn is_quiet(&self, page: usize) -> bool {
        self.flag(page).load(Ordering::Relaxed) == DIRTY
    }

    #[inline]
    pub(crate) fn is_dirty(&self, page: usize) -> bool {
        self.flag(page).load(Ordering::Relaxed) & DIRTY != 0
    }

    pub(crate) fn mark_written(&self, page: usize) {
        let old = self.flag(page).swap(DIRTY, Ordering::AcqRel);
        if old & CODE != 0 {
            self.generation(page).fetch_add(1, Ordering::AcqRel);
            // After the generation: who sees this epoch sees that generation.
            self.code_epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn clear_dirty(&self) {
        for page in 0..self.count {
            // Untouched pages of the table stay untouched: read before writing.
            if self.is_dirty(page) {
                self.flag(page).fetch_and(!DIRTY, Ordering::AcqRel);
            }
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    #[inline]
    pub(crate) fn watch_code(&self, page: usize) -> u32 {
        if self.flag(page).load(Ordering::Acquire) & CODE == 0 {
            self.flag(page).fetch_or(CODE, Ordering::AcqRel);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        self.code_generation(page)
    }

    #[inline]
    pub(crate) fn code_generation(&self, page: usize) -> u32 {
        self.generation(page).load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn code_epoch(&self) -> u32 {
        self.code_epoch.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }
}
