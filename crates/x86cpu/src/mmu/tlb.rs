//! The translation look-aside buffer.
//!
//! Problem: every load and store of the guest needs a translation; a hit must cost an index, a
//! compare and an add.
//!
//! Strategy: direct-mapped banks of [`ENTRIES`], one bank per privilege, so that a hit needs no
//! permission check: an entry has one tag per kind of access, and the tag is only there when the
//! access is allowed. An
//! access that crosses a page never hits.
//!
//! A tag is subtracted from the address: what remains is the offset in the page on a hit and at least
//! a page (less the access's length) on a miss, also for an entry without a tag, whose place holder
//! lies in a page that belongs to another slot ([`no_tag`]). Translated code does the same.
//!
//! Invariants: only RAM has entries; a write tag is there only when the page-table entry is dirty and
//! writable *and* guestmem's gate was passed for the page since the write epoch last moved; tags are
//! canonical. Entries without `GLOBAL` go when CR3 is loaded; the slots used are logged, so that a
//! flush costs what was used.

use super::raw::Table;
use super::{PAGE_MASK, PAGE_SHIFT};

/// Entries per bank. CPython with a few MiB of heap missed 1,024 entries every 370 instructions.
pub(super) const ENTRIES: usize = 4096;
/// User and supervisor.
pub(super) const BANKS: usize = 2;
const EXEC_ENTRIES: usize = 1024;
/// A tag that no fetch has.
const NO_TAG: u64 = u64::MAX;

/// The tag of a data slot that no address of the slot comes near: it lies in a page of another slot. Zero wherever
/// that is so (page 0 belongs to the first slot of a bank), so that a fresh table is fresh memory that nobody touched.
pub(super) const fn no_tag(slot: usize) -> u64 {
    if slot.is_multiple_of(ENTRIES) { (1 << 63) | (1 << PAGE_SHIFT) } else { 0 }
}

/// Bits of [`Entry::info`] below the page address.
pub(super) mod info {
    /// Survives a CR3 load.
    pub const GLOBAL: u64 = 1;
    /// Writing is allowed by the page tables and the dirty bit is set.
    pub const WRITABLE: u64 = 2;
    /// Part of a 2 MiB or 1 GiB page.
    pub const LARGE: u64 = 4;
    /// Part of a 1 GiB page.
    pub const HUGE: u64 = 8;
}

/// One translation for data.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Entry {
    /// Linear page when reading is allowed, else [`no_tag`].
    pub read: u64,
    /// Linear page when writing needs no further question, else [`no_tag`].
    pub write: u64,
    /// Host address of the page.
    pub host: u64,
    /// Guest-physical page and [`info`] bits.
    pub info: u64,
}

pub(super) const fn empty(slot: usize) -> Entry {
    Entry { read: no_tag(slot), write: no_tag(slot), host: 0, info: 0 }
}

/// The page that a stack was last in: a copy of an entry with a write tag, which goes when that tag would go. The
/// limits are what an offset in the page must be below, for accesses of at most 8 bytes, of 16, and so on; 0: there is
/// none. Translated code reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct StackPage {
    /// Linear.
    pub(crate) base: u64,
    /// Host address.
    pub(crate) host: u64,
    pub(crate) limits: [u64; STACK_LIMITS],
    /// As in an entry.
    pub(crate) info: u64,
}

/// Limits of a stack's page: of 8 to 256 bytes.
pub(crate) const STACK_LIMITS: usize = 6;

const NO_STACK: StackPage = StackPage { base: 0, host: 0, limits: [0; STACK_LIMITS], info: 0 };

/// Makes a table of zeros empty.
fn begin(data: &mut Table<Entry>) {
    for slot in [0, ENTRIES] {
        data[slot] = empty(slot);
    }
}

/// One translation for instruction fetch.
#[derive(Clone, Copy)]
struct ExecEntry {
    tag: u64,
    info: u64,
}

const EMPTY_EXEC: ExecEntry = ExecEntry { tag: NO_TAG, info: 0 };

pub(super) struct Tlb {
    /// `ENTRIES * BANKS`; it never moves, since translated code knows where it is.
    pub(super) data: Table<Entry>,
    exec: Box<[ExecEntry; EXEC_ENTRIES * BANKS]>,
    /// Slots filled with entries that are not global, since the last flush.
    local: Vec<u16>,
    /// The same for fetches.
    local_exec: Vec<u16>,
    /// Slots whose write tag was set, since write tags were last dropped.
    writers: Vec<u16>,
    /// 2 MiB regions (hashed) of which part is mapped by a large page, since the last full flush.
    large: [u64; LARGE_WORDS],
    /// A 1 GiB page was used since then: any address may be part of it.
    huge: bool,
    /// Anything was put since the last full flush. A vCPU that is being set up is flushed many times.
    filled: bool,
    /// By bank.
    pub(super) stack: [StackPage; BANKS],
    /// By bank: what was fetched from since the bank's epoch moved.
    pub(super) fetched: [Fetched; BANKS],
}

/// Which pages (hashed) instructions were fetched from: dropping any other translation leaves
/// remembered jumps right.
#[derive(Clone, Copy)]
pub(super) struct Fetched {
    small: [u64; 64],
    large: [u64; LARGE_WORDS],
    huge: bool,
    /// Only global pages so far.
    pub(super) all_global: bool,
}

const NOTHING_FETCHED: Fetched =
    Fetched { small: [0; 64], large: [0; LARGE_WORDS], huge: false, all_global: true };

fn small_bit(lin: u64) -> (usize, u64) {
    let page = (lin >> 12) ^ (lin >> 24);
    ((page >> 6) as usize & 63, 1 << (page & 63))
}

impl Fetched {
    fn note(&mut self, lin: u64, info: u64) {
        self.all_global &= info & info::GLOBAL != 0;
        self.huge |= info & info::HUGE != 0;
        if info & info::LARGE != 0 {
            let (word, bit) = large_bit(lin);
            self.large[word] |= bit;
        } else {
            let (word, bit) = small_bit(lin);
            self.small[word] |= bit;
        }
    }

    /// Whether the page of `lin` may be among them, also as part of a larger one.
    pub(super) fn may_hold(&self, lin: u64) -> bool {
        let ((s, small), (l, large)) = (small_bit(lin), large_bit(lin));
        self.huge || self.small[s] & small != 0 || self.large[l] & large != 0
    }

    pub(super) fn clear(&mut self) {
        *self = NOTHING_FETCHED;
    }
}

/// Beyond, a log is not worth keeping: everything is looked at.
const LOG_LIMIT: usize = ENTRIES;

/// Words of a filter of 2 MiB regions: half of them for each half of the addresses, since kernels use large pages and
/// programs mostly none.
const LARGE_WORDS: usize = 32;

fn large_bit(lin: u64) -> (usize, u64) {
    let region = (lin >> 21) ^ (lin >> 31);
    ((region >> 6) as usize & 15 | (lin >> 59) as usize & 16, 1 << (region & 63))
}

impl Tlb {
    pub(super) fn new() -> Self {
        let mut data = Table::within_reach(ENTRIES * BANKS);
        begin(&mut data);
        Self {
            data,
            exec: Box::new([EMPTY_EXEC; EXEC_ENTRIES * BANKS]),
            local: Vec::with_capacity(LOG_LIMIT),
            local_exec: Vec::with_capacity(EXEC_ENTRIES),
            writers: Vec::with_capacity(LOG_LIMIT),
            large: [0; LARGE_WORDS],
            huge: false,
            filled: false,
            stack: [NO_STACK; BANKS],
            fetched: [NOTHING_FETCHED; BANKS],
        }
    }

    /// Slot of a linear address in the bank that starts at `bank`.
    #[inline(always)]
    pub(super) fn slot(bank: usize, lin: u64) -> usize {
        bank + ((lin >> PAGE_SHIFT) as usize & (ENTRIES - 1))
    }

    #[inline(always)]
    fn exec_slot(bank: usize, lin: u64) -> usize {
        let page = lin >> PAGE_SHIFT;
        bank / ENTRIES * EXEC_ENTRIES + ((page ^ (page >> 10)) as usize & (EXEC_ENTRIES - 1))
    }

    /// Puts a translation for data; without a write tag.
    pub(super) fn fill(&mut self, bank: usize, lin: u64, host: u64, info: u64) {
        let slot = Self::slot(bank, lin);
        self.filled = true;
        self.data[slot] = Entry { read: lin & PAGE_MASK, write: no_tag(slot), host, info };
        if info & info::GLOBAL == 0 && self.local.len() < LOG_LIMIT {
            self.local.push(slot as u16);
        }
        self.note_large(lin, info);
    }

    fn note_large(&mut self, lin: u64, info: u64) {
        if info & info::LARGE != 0 {
            let (word, bit) = large_bit(lin);
            self.large[word] |= bit;
            self.huge |= info & info::HUGE != 0;
        }
    }

    /// Lets writes to a page hit, when its entry is still the one of `lin` and writable.
    pub(super) fn grant_write(&mut self, bank: usize, lin: u64) {
        let slot = Self::slot(bank, lin);
        let entry = &mut self.data[slot];
        if entry.read == lin & PAGE_MASK && entry.info & info::WRITABLE != 0 {
            entry.write = entry.read;
            if self.writers.len() < LOG_LIMIT {
                self.writers.push(slot as u16);
            }
        }
    }

    /// The translation of a page for fetching: guest-physical page and [`info`] bits.
    pub(super) fn exec(&mut self, bank: usize, lin: u64) -> Option<u64> {
        let entry = &self.exec[Self::exec_slot(bank, lin)];
        let info = (entry.tag == lin & PAGE_MASK).then_some(entry.info)?;
        self.fetched[bank / ENTRIES].note(lin, info);
        Some(info)
    }

    pub(super) fn fill_exec(&mut self, bank: usize, lin: u64, info: u64) {
        self.filled = true;
        let slot = Self::exec_slot(bank, lin);
        self.exec[slot] = ExecEntry { tag: lin & PAGE_MASK, info };
        if info & info::GLOBAL == 0 && self.local_exec.len() < EXEC_ENTRIES {
            self.local_exec.push(slot as u16);
        }
        self.note_large(lin, info);
        self.fetched[bank / ENTRIES].note(lin, info);
    }

    /// Forgets the stacks' pages of which this holds: page and [`info`] bits.
    fn drop_stacks(&mut self, goes: impl Fn(&StackPage) -> bool) {
        self.stack.iter_mut().filter(|page| goes(page)).for_each(|page| *page = NO_STACK);
    }

    /// Drops everything.
    pub(super) fn flush_all(&mut self) {
        self.drop_stacks(|_| true);
        if !std::mem::take(&mut self.filled) {
            return;
        }
        for (slot, entry) in self.data.iter_mut().enumerate() {
            *entry = empty(slot);
        }
        self.forget_others();
    }

    /// [`Tlb::flush_all`], the memory that it took, too.
    pub(super) fn give_back(&mut self) {
        self.drop_stacks(|_| true);
        if std::mem::take(&mut self.filled) {
            self.data.give_back();
            begin(&mut self.data);
            self.forget_others();
        }
    }

    /// What else there is to empty when the table is.
    fn forget_others(&mut self) {
        self.exec.fill(EMPTY_EXEC);
        self.local.clear();
        self.local_exec.clear();
        self.writers.clear();
        self.large = [0; LARGE_WORDS];
        self.huge = false;
    }

    /// Drops what is not global (a CR3 load).
    pub(super) fn flush_local(&mut self) {
        self.drop_stacks(|page| page.info & info::GLOBAL == 0);
        if self.local.len() < LOG_LIMIT {
            for slot in self.local.drain(..) {
                let entry = &mut self.data[usize::from(slot)];
                if entry.info & info::GLOBAL == 0 {
                    *entry = empty(usize::from(slot));
                }
            }
        } else {
            self.local.clear();
            for (slot, entry) in self.data.iter_mut().enumerate() {
                if entry.info & info::GLOBAL == 0 {
                    *entry = empty(slot);
                }
            }
        }
        if self.local_exec.len() < EXEC_ENTRIES {
            for slot in self.local_exec.drain(..) {
                let entry = &mut self.exec[usize::from(slot)];
                if entry.info & info::GLOBAL == 0 {
                    *entry = EMPTY_EXEC;
                }
            }
        } else {
            self.local_exec.clear();
            self.exec.iter_mut().filter(|e| e.info & info::GLOBAL == 0).for_each(|entry| *entry = EMPTY_EXEC);
        }
    }

    /// Drops the translation of one linear address, also when it is part of a larger page
    /// (SDM vol. 3, 4.10.4.1: INVLPG).
    pub(super) fn flush_page(&mut self, lin: u64) {
        let (word, bit) = large_bit(lin);
        if self.huge || self.large[word] & bit != 0 {
            self.flush_large(lin);
        }
        self.drop_stacks(|page| page.base == lin & PAGE_MASK);
        for bank in [0, ENTRIES] {
            let slot = Self::slot(bank, lin);
            if self.data[slot].read == lin & PAGE_MASK {
                self.data[slot] = empty(slot);
            }
            let entry = &mut self.exec[Self::exec_slot(bank, lin)];
            if entry.tag == lin & PAGE_MASK {
                *entry = EMPTY_EXEC;
            }
        }
    }

    #[cold]
    fn flush_large(&mut self, lin: u64) {
        let same = |tag: u64, bits: u64| {
            let shift = if bits & info::HUGE != 0 { 30 } else { 21 };
            bits & info::LARGE != 0 && tag >> shift == lin >> shift
        };
        self.drop_stacks(|page| same(page.base, page.info));
        for (slot, entry) in self.data.iter_mut().enumerate() {
            if same(entry.read, entry.info) {
                *entry = empty(slot);
            }
        }
        for entry in self.exec.iter_mut().filter(|e| same(e.tag, e.info)) {
            *entry = EMPTY_EXEC;
        }
    }

    /// Drops all write tags (the write epoch moved).
    pub(super) fn drop_writers(&mut self) {
        self.drop_stacks(|_| true);
        if self.writers.len() < LOG_LIMIT {
            for slot in self.writers.drain(..) {
                self.data[usize::from(slot)].write = no_tag(usize::from(slot));
            }
        } else {
            self.writers.clear();
            for (slot, entry) in self.data.iter_mut().enumerate() {
                entry.write = no_tag(slot);
            }
        }
    }

    /// Drops the write tags of one guest-physical page.
    pub(super) fn drop_writers_of(&mut self, gpa: u64) {
        if self.writers.len() >= LOG_LIMIT {
            self.drop_writers();
            return;
        }
        self.drop_stacks(|page| page.info & PAGE_MASK == gpa & PAGE_MASK);
        let data = &mut self.data;
        self.writers.retain(|slot| {
            let entry = &mut data[usize::from(*slot)];
            let hit = entry.info & PAGE_MASK == gpa & PAGE_MASK;
            if hit {
                entry.write = no_tag(usize::from(*slot));
            }
            !hit
        });
    }
}
