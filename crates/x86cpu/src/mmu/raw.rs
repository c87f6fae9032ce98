//! The only unsafe lines of the CPU: loads and stores through TLB entries, and the memory of these.
//!
//! Why it is sound: an entry's `host` is `GuestMemory::host_page` of the memory that [`super::Mmu`]
//! keeps alive; an address minus its tag, when it is small enough for the access's length, is an offset
//! in that page. Guest memory is only ever
//! referred to by raw pointers, so no Rust reference is invalidated; where vCPUs and devices race on the same
//! bytes, each access is the host's single instruction ([`host::shared`]).

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use host::Mapping;
use host::shared::Shared;

use super::tlb::{ENTRIES, Entry, Tlb};
use super::{Mmu, PAGE_MASK};
use crate::jit::JumpEntry;

const PAGE: usize = 4096;

/// What a [`Table`] is made of.
///
/// # Safety
/// Zero bytes are a value of the type.
pub(crate) unsafe trait Zeroed: Copy {}

// SAFETY: integers.
unsafe impl Zeroed for Entry {}
// SAFETY: integers.
unsafe impl Zeroed for (u64, u64, u32) {}
// SAFETY: integers.
unsafe impl Zeroed for JumpEntry {}

/// Entries that begin as zeros and never move, in memory of which only what is used becomes resident.
pub(crate) struct Table<T> {
    memory: Mapping,
    len: usize,
    entries: PhantomData<T>,
}

impl<T: Zeroed> Table<T> {
    /// `len` entries, all zeros.
    ///
    /// # Panics
    /// When the process has no address space left.
    pub(crate) fn new(len: usize) -> Self {
        Self::with(len, Mapping::anonymous)
    }

    /// The same, where translated code names it by a displacement if there is room.
    ///
    /// # Panics
    /// As [`Table::new`].
    pub(crate) fn within_reach(len: usize) -> Self {
        Self::with(len, |bytes| Mapping::anonymous_low(bytes).or_else(|_| Mapping::anonymous(bytes)))
    }

    fn with(len: usize, map: impl FnOnce(usize) -> std::io::Result<Mapping>) -> Self {
        let bytes = (len * size_of::<T>()).next_multiple_of(PAGE);
        let memory = map(bytes);
        let memory = memory.unwrap_or_else(|e| panic!("no address space for {bytes} bytes of tables: {e}"));
        Self { memory, len, entries: PhantomData }
    }

    /// Makes all entries zeros; none of them is resident then.
    pub(crate) fn give_back(&mut self) {
        if self.memory.give_back(0, self.memory.len()).is_err() {
            // SAFETY: the whole of an owned mapping, of which there is no other reference.
            unsafe { std::ptr::write_bytes(self.memory.base().as_ptr(), 0, self.memory.len()) };
        }
    }
}

impl<T: Zeroed> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is owned, page-aligned and at least that long; zeros are valid entries.
        unsafe { std::slice::from_raw_parts(self.memory.base().as_ptr().cast(), self.len) }
    }
}

impl<T: Zeroed> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.base().as_ptr().cast(), self.len) }
    }
}

/// What memory operands are made of.
pub(crate) trait Word: guestmem::Pod + Shared {
    const BYTES: u64 = size_of::<Self>() as u64;
}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}
impl Word for u128 {}

/// Atomic read-modify-write; gives the old value.
///
/// # Safety
/// `at` is valid for reads and writes of the word, and aligned to 16 if that is its size.
#[inline(always)]
unsafe fn update<T: Word>(at: *mut T, mut f: impl FnMut(T) -> T) -> T {
    // SAFETY: the caller's promise.
    unsafe {
        let mut old = T::load(at);
        loop {
            let found = T::compare_exchange(at, old, f(old));
            if found == old {
                return old;
            }
            old = found;
        }
    }
}

impl Mmu {
    #[inline(always)]
    fn entry(&self, lin: u64) -> &Entry {
        let slot = Tlb::slot(self.bank, lin);
        debug_assert!(slot < self.tlb.data.len());
        // SAFETY: `bank` is 0 or ENTRIES and `slot` adds less than ENTRIES; there are two banks.
        unsafe { self.tlb.data.get_unchecked(slot) }
    }

    /// Host address of a word at `lin` in the page of `tag`, when all of it is there.
    #[inline(always)]
    fn place<T: Word>(entry: &Entry, tag: u64, lin: u64) -> Option<*mut T> {
        let offset = lin.wrapping_sub(tag);
        (offset <= 4096 - T::BYTES).then(|| entry.host.wrapping_add(offset) as usize as *mut T)
    }

    /// Reads when the TLB allows it.
    #[inline(always)]
    pub(super) fn hit_read<T: Word>(&self, lin: u64) -> Option<T> {
        let entry = self.entry(lin);
        let at = Self::place::<T>(entry, entry.read, lin)?;
        // SAFETY: see the module's header; the read tag matches.
        Some(unsafe { T::load(at) })
    }

    /// Reads when writing is allowed, too.
    #[inline(always)]
    pub(super) fn hit_read_rmw<T: Word>(&self, lin: u64) -> Option<T> {
        let entry = self.entry(lin);
        let at = Self::place::<T>(entry, entry.write, lin)?;
        // SAFETY: see the module's header; the write tag matches.
        Some(unsafe { T::load(at) })
    }

    /// Writes when the TLB allows it.
    #[inline(always)]
    pub(super) fn hit_write<T: Word>(&self, lin: u64, value: T) -> bool {
        let entry = self.entry(lin);
        let Some(at) = Self::place::<T>(entry, entry.write, lin) else { return false };
        // SAFETY: see the module's header; the write tag matches, so the gate was passed.
        unsafe { T::store(at, value) };
        true
    }

    /// Atomic read-modify-write when the TLB allows it; gives the old value.
    #[inline(always)]
    pub(super) fn hit_update<T: Word>(&self, lin: u64, f: impl FnMut(T) -> T) -> Option<T> {
        let entry = self.entry(lin);
        let at = Self::place::<T>(entry, entry.write, lin)?;
        // SAFETY: see the module's header; the write tag matches. CMPXCHG16B, the only one of its size, has
        // looked at its alignment.
        Some(unsafe { update(at, f) })
    }

    /// Host address of a byte of a page that may be read (`write`: written), from the TLB alone.
    #[inline]
    fn host_of(&self, lin: u64, write: bool) -> Option<*mut u8> {
        let entry = self.entry(lin);
        let tag = if write { entry.write } else { entry.read };
        (tag == lin & PAGE_MASK).then(|| entry.host.wrapping_add(lin & !PAGE_MASK) as usize as *mut u8)
    }

    /// Copies `len` bytes forward within one page on either side; false when the TLB does not allow
    /// it, or when byte-by-byte order would give something else.
    pub(super) fn hit_copy(&self, dst: u64, src: u64, len: usize) -> bool {
        debug_assert!(within_page(dst, len) && within_page(src, len));
        let (Some(to), Some(from)) = (self.host_of(dst, true), self.host_of(src, false)) else {
            return false;
        };
        let ahead = (to as usize).wrapping_sub(from as usize);
        if ahead != 0 && ahead < len {
            return false;
        }
        // SAFETY: both tags match and neither range leaves its page; `copy` allows overlap.
        unsafe { std::ptr::copy(from, to, len) };
        true
    }

    /// Fills `len` bytes within one page with the first `elem` bytes of `pattern`, repeated.
    pub(super) fn hit_fill(&self, dst: u64, pattern: u64, elem: usize, len: usize) -> bool {
        debug_assert!(within_page(dst, len) && len.is_multiple_of(elem));
        let Some(to) = self.host_of(dst, true) else { return false };
        let bytes = pattern.to_le_bytes();
        if bytes[..elem].iter().all(|b| *b == bytes[0]) {
            // SAFETY: the write tag matches and the range does not leave the page.
            unsafe { std::ptr::write_bytes(to, bytes[0], len) };
            return true;
        }
        for at in (0..len).step_by(elem) {
            // SAFETY: as above; `at + elem <= len` because `len` is a multiple of `elem`.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(at), elem) };
        }
        true
    }

    /// Fills a TLB entry from guestmem's host address; false when the page is not RAM.
    pub(super) fn fill(&mut self, bank: usize, lin: u64, info: u64) -> bool {
        debug_assert!(bank == 0 || bank == ENTRIES);
        let Some(host) = self.memory.host_page(info & PAGE_MASK) else { return false };
        self.tlb.fill(bank, lin, host.as_ptr().expose_provenance() as u64, info);
        true
    }
}

fn within_page(lin: u64, len: usize) -> bool {
    (lin & !PAGE_MASK) as usize + len <= 4096
}
