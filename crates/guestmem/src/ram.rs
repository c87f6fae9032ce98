//! The bytes themselves: one mapping, raw volatile copies.

#![allow(unsafe_code)] // The crate's reason to exist: raw access to shared, changing memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use host::Mapping;
use host::shared::Shared;

use crate::filed::Filed;
use crate::later::{Later, Piece};

pub(crate) struct Ram {
    map: Mapping,
    later: Later,
    filed: Mutex<Filed>,
}

/// Copies into fresh memory that nobody knows of.
pub(crate) fn copy_in(map: &Mapping, offset: usize, from: &[u8]) {
    assert!(offset.checked_add(from.len()).is_some_and(|end| end <= map.len()));
    // SAFETY: in bounds, checked above; only raw pointers ever refer to the mapping.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), map.base().add(offset).as_ptr(), from.len()) }
}

impl Ram {
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        Ok(Self { map: Mapping::anonymous(len)?, later: Later::default(), filed: Mutex::default() })
    }

    /// Has pieces of `file` mapped when they are touched.
    pub(crate) fn map_later(&self, file: File, pieces: &[Piece]) -> io::Result<()> {
        let mut filed = self.filed.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.iter().for_each(|piece| filed.add(piece.at..piece.at + piece.len));
        self.later.add(&self.map, file, pieces)
    }

    /// Gives whole pages back to the host; they read as zeros then. `before` is told once for all of it, whether a
    /// file lies behind any, before bytes change. `false`: nothing changed.
    pub(crate) fn give_back(&self, range: Range<usize>, before: impl FnOnce(bool)) -> bool {
        self.check(range.start, range.len());
        let mut filed = self.filed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_filed = filed.touches(&range);
        if is_filed && !filed.has_room() {
            return false;
        }
        before(is_filed);
        if !is_filed {
            return self.map.give_back(range.start, range.len()).is_ok();
        }
        let renewed = self.map.renew(range.start, range.len()).is_ok();
        if renewed {
            filed.cut(&range);
        }
        renewed
    }

    pub(crate) fn map_rest(&self) {
        self.later.map_rest(&self.map);
    }

    pub(crate) fn expect_reader(&self) {
        self.later.expect_reader();
    }

    pub(crate) fn reader_is_done(&self) {
        self.later.reader_is_done(&self.map);
    }

    /// See [`Later::note_touches`].
    pub(crate) fn note_touches(&self) -> io::Result<()> {
        self.later.note_touches(&self.map)
    }

    /// See [`Later::touched`].
    pub(crate) fn touched(&self) -> Vec<usize> {
        self.later.touched()
    }

    /// First byte, for saying where the memory is.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.map.base()
    }

    /// Host address of a page that is about to be used directly.
    #[inline]
    pub(crate) fn page(&self, offset: usize, len: usize) -> NonNull<u8> {
        self.later.touch(&self.map, offset, len);
        self.at(offset)
    }

    /// Host address of a byte offset; the caller has checked it against the size and touched it.
    #[inline]
    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.map.len());
        // SAFETY: within the mapping (or one past its end), checked above.
        unsafe { self.map.base().add(offset) }
    }

    /// Every access begins here.
    #[inline]
    fn check(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.map.len()));
        self.later.touch(&self.map, offset, len);
    }

    /// Copies out. The guest may write at the same time: bytes may be torn, never undefined; 1, 2, 4 or 8 of them
    /// are one access.
    #[inline]
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        let from = self.at(offset).as_ptr();
        // SAFETY: checked above; the source is memory that only raw pointers ever refer to, so no
        // Rust reference is invalidated by a concurrent guest write.
        unsafe {
            match to.len() {
                1 => to.copy_from_slice(&u8::load(from).to_ne_bytes()),
                2 => to.copy_from_slice(&u16::load(from.cast()).to_ne_bytes()),
                4 => to.copy_from_slice(&u32::load(from.cast()).to_ne_bytes()),
                8 => to.copy_from_slice(&u64::load(from.cast()).to_ne_bytes()),
                len => std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), len),
            }
        }
    }

    /// Copies in, as [`Ram::read`] copies out; the caller has passed the write gate.
    #[inline]
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let to = self.at(offset).as_ptr();
        // SAFETY: as in `read`.
        unsafe {
            match *from {
                [a] => u8::store(to, a),
                [a, b] => u16::store(to.cast(), u16::from_ne_bytes([a, b])),
                [a, b, c, d] => u32::store(to.cast(), u32::from_ne_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => {
                    u64::store(to.cast(), u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()),
            }
        }
    }

    /// Fills with zeros; the caller has passed the write gate.
    pub(crate) fn zero(&self, offset: usize, len: usize) {
        self.check(offset, len);
        // SAFETY: as in `read`.
        unsafe { std::ptr::write_bytes(self.at(offset).as_ptr(), 0, len) }
    }

    /// A naturally aligned atomic inside RAM.
    pub(crate) fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        self.check(offset, 2);
        assert!(offset.is_multiple_of(2));
        // SAFETY: in bounds and aligned; concurrent access is atomic or the guest's own race.
        unsafe { AtomicU16::from_ptr(self.at(offset).as_ptr().cast()) }.load(order)
    }

    pub(crate) fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.check(offset, 2);
        assert!(offset.is_multiple_of(2));
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(self.at(offset).as_ptr().cast()) }.store(value, order);
    }

    pub(crate) fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4));
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU32::from_ptr(self.at(offset).as_ptr().cast()) }.load(order)
    }

    pub(crate) fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4));
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU32::from_ptr(self.at(offset).as_ptr().cast()) }.store(value, order);
    }

    pub(crate) fn compare_exchange_u64(&self, offset: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8));
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU64::from_ptr(self.at(offset).as_ptr().cast()) }.compare_exchange(
            old,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
    }

    /// Whether a page is all zeros.
    pub(crate) fn is_zero(&self, offset: usize, len: usize) -> bool {
        self.check(offset, len);
        assert!(offset.is_multiple_of(8) && len.is_multiple_of(8));
        let words = self.at(offset).cast::<u64>();
        // SAFETY: in bounds and aligned (both asserted); volatile because the guest may write.
        (0..len / 8).all(|i| unsafe { words.add(i).read_volatile() } == 0)
    }
}
