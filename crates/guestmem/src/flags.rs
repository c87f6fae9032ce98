//! Per-page flags and code generations. The tables are mapped lazily: pages that were never
//! written or decoded cost nothing.

#![allow(unsafe_code)] // Views of zeroed mappings as atomics.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use host::Mapping;

const DIRTY: u8 = 1;
const CODE: u8 = 2;
/// Dirty, but its bytes are still wanted: the next write is told to the observer first.
const HELD: u8 = 4;
/// A flag in each of eight bytes.
const EACH: u64 = 0x0101_0101_0101_0101;

pub(crate) struct PageTable {
    flags: Mapping,
    generations: Mapping,
    /// A bit for each vCPU that may keep a write permission for the page.
    claims: Mapping,
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
            claims: Mapping::anonymous(round(count * 2))?,
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

    #[inline]
    fn claim(&self, page: usize) -> &AtomicU16 {
        assert!(page < self.count);
        // SAFETY: as in `flag`; a mapping is page-aligned, so entries are aligned.
        unsafe { AtomicU16::from_ptr(self.claims.base().as_ptr().cast::<u16>().add(page)) }
    }

    /// Dirty already and not code: a write needs no bookkeeping. Not before an earlier [`PageTable::claim_write`] is
    /// seen by who watches code.
    #[inline]
    pub(crate) fn is_quiet(&self, page: usize) -> bool {
        self.flag(page).load(Ordering::SeqCst) == DIRTY
    }

    /// Whether the claim is new.
    #[inline]
    pub(crate) fn claim_write(&self, page: usize, writer: u32) -> bool {
        let bit = 1 << (writer & 15);
        self.claim(page).load(Ordering::Relaxed) & bit == 0
            && self.claim(page).fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    pub(crate) fn drop_claim(&self, page: usize, writer: u32) {
        self.claim(page).fetch_and(!(1 << (writer & 15)), Ordering::SeqCst);
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

    /// Whether a write has to be told to an observer: the page is clean, or held.
    #[inline]
    pub(crate) fn is_wanted(&self, page: usize) -> bool {
        self.flag(page).load(Ordering::Acquire) & (DIRTY | HELD) != DIRTY
    }

    /// The flags of pages 8n to 8n + 7.
    fn eight(&self, n: usize) -> &AtomicU64 {
        assert!(n * 8 < self.count);
        // SAFETY: the table is rounded up to whole pages, so all eight bytes are inside; aligned;
        // only atomics ever refer to it (of two sizes, each access whole).
        unsafe { AtomicU64::from_ptr(self.flags.base().as_ptr().cast::<u64>().add(n)) }
    }

    /// Holds every dirty page and takes back kept write permissions. Nothing may write meanwhile.
    /// Costs a look at a byte for each page, a write for eight where one is dirty.
    pub(crate) fn hold_dirty(&self) {
        for n in 0..self.count.div_ceil(8) {
            let dirty = self.eight(n).load(Ordering::Relaxed) & (EACH * u64::from(DIRTY));
            if dirty != 0 {
                self.eight(n).fetch_or(dirty * u64::from(HELD), Ordering::AcqRel);
            }
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Undoes [`PageTable::hold_dirty`] where nobody wrote since.
    pub(crate) fn release(&self) {
        for n in 0..self.count.div_ceil(8) {
            let held = EACH * u64::from(HELD);
            if self.eight(n).load(Ordering::Relaxed) & held != 0 {
                self.eight(n).fetch_and(!held, Ordering::AcqRel);
            }
        }
    }

    /// The dirty pages, a bit each.
    pub(crate) fn dirty_bits(&self) -> Vec<u64> {
        let mut bits = vec![0u64; self.count.div_ceil(64)];
        for n in 0..self.count.div_ceil(8) {
            let dirty = self.eight(n).load(Ordering::Relaxed) & (EACH * u64::from(DIRTY));
            if dirty != 0 {
                // Byte i's lowest bit goes to bit i: the product's top byte gathers them.
                let byte = dirty.wrapping_mul(0x0102_0408_1020_4080) >> 56;
                bits[n / 8] |= byte << (n % 8 * 8);
            }
        }
        bits
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
        let generation = self.code_generation(page);
        if self.flag(page).load(Ordering::Acquire) & CODE == 0 {
            self.flag(page).fetch_or(CODE, Ordering::AcqRel);
            self.move_epoch();
        }
        generation
    }

    /// The generation, whether the page was not watched yet, and who claims to write it.
    pub(crate) fn watch_claimed_code(&self, page: usize) -> (u32, bool, u16) {
        // Before the flag: a writer that passes the gate from here on makes it another generation.
        let generation = self.code_generation(page);
        let new = self.flag(page).load(Ordering::SeqCst) & CODE == 0
            && self.flag(page).fetch_or(CODE, Ordering::SeqCst) & CODE == 0;
        (generation, new, self.claim(page).load(Ordering::SeqCst))
    }

    pub(crate) fn move_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
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
        self.epoch.load(Ordering::SeqCst)
    }
}
