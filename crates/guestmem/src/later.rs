//! Parts of RAM that a file holds and that are not mapped yet.
//!
//! Problem: a snapshot's pages come in some hundred pieces, a mapping costs microseconds, and a machine that is
//! brought back touches few of them with its first instructions.
//!
//! Strategy: the pieces are noted, and each is mapped when somebody touches a page of it. (Mapping the others
//! meanwhile from another thread was measured: it holds the kernel's lock on the address space so much that the first
//! instruction came later, not earlier.) Whoever hands out a host address asks [`Later::touch`] first. A bit for
//! each page says that it was asked for before, and once nothing waits any more all of it is one load.
//!
//! Invariants: nobody has the host address of a page in a piece that waits, so nobody sees it change; a piece is
//! mapped under the lock, so who touches it meanwhile waits until it is there.

#![allow(unsafe_code)] // A view of a zeroed mapping as atomics.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use host::Mapping;

const PAGE: usize = crate::memory::PAGE_SIZE as usize;

/// A piece: where in RAM, how long, where in the file; in bytes, all whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) at: usize,
    pub(crate) len: usize,
    pub(crate) file_offset: u64,
}

/// A piece and which of the files it is in.
#[derive(Clone, Copy)]
struct Waiting {
    piece: Piece,
    file: usize,
}

#[derive(Default)]
pub(crate) struct Later {
    /// Whether any piece waits, or what is touched is noted.
    waiting: AtomicBool,
    /// A bit for each page: it does not wait.
    seen: OnceLock<Seen>,
    state: Mutex<State>,
}

/// A bit for each page, in a mapping of which only what was looked at is resident.
struct Seen(Mapping);

impl Seen {
    fn new(pages: usize) -> io::Result<Self> {
        Ok(Self(Mapping::anonymous(pages.div_ceil(8).next_multiple_of(PAGE))?))
    }

    fn bit(&self, page: usize) -> (&AtomicU64, u64) {
        let at = page / 64 * 8;
        assert!(at < self.0.len());
        // SAFETY: in bounds and, in a mapping, aligned; zero bytes are valid atomics, and only atomics refer to it.
        let word = unsafe { AtomicU64::from_ptr(self.0.base().as_ptr().add(at).cast()) };
        (word, 1 << (page % 64))
    }
}

#[derive(Default)]
struct State {
    files: Vec<File>,
    /// Ascending by place; a mapped one has length 0.
    pieces: Vec<Waiting>,
    left: usize,
    /// Somebody reads the files in the order in which their pages are needed.
    reader: bool,
    /// What is touched is noted, when nothing waits any more, too: pages in the order of their first touch.
    noted: Option<Vec<usize>>,
}

impl Later {
    /// From now on every page that is touched is noted. Before anybody uses the memory.
    ///
    /// # Errors
    /// The host's, when there is no address space.
    pub(crate) fn note_touches(&self, map: &Mapping) -> io::Result<()> {
        if self.seen.get().is_none() {
            let _ = self.seen.set(Seen::new(map.len() / PAGE)?);
        }
        self.lock().noted.get_or_insert_default();
        self.waiting.store(true, Ordering::Release);
        Ok(())
    }

    /// Notes pieces, apart from each other and from those of other files. Before anybody uses the memory.
    ///
    /// # Errors
    /// The host's, when there is no address space.
    pub(crate) fn add(&self, map: &Mapping, file: File, pieces: &[Piece]) -> io::Result<()> {
        if self.seen.get().is_none() {
            let _ = self.seen.set(Seen::new(map.len() / PAGE)?);
        }
        let mut state = self.lock();
        let number = state.files.len();
        state.files.push(file);
        state.pieces.extend(pieces.iter().map(|piece| Waiting { piece: *piece, file: number }));
        state.pieces.sort_unstable_by_key(|waiting| waiting.piece.at);
        state.left += pieces.len();
        self.waiting.store(state.left > 0 || state.noted.is_some(), Ordering::Release);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`crate::GuestMemory::expect_reader`].
    pub(crate) fn expect_reader(&self) {
        self.lock().reader = true;
    }

    /// See [`crate::GuestMemory::reader_is_done`].
    pub(crate) fn reader_is_done(&self, map: &Mapping) {
        let mut state = self.lock();
        state.reader = false;
        // Where the host refuses, it reads page by page what nobody expected to be touched.
        let _ = map.read_around(0, map.len(), true);
    }

    /// To be called before anything looks at `[offset, offset + len)`.
    #[inline(always)]
    pub(crate) fn touch(&self, map: &Mapping, offset: usize, len: usize) {
        if self.waiting.load(Ordering::Acquire) {
            self.touch_pages(map, offset, len);
        }
    }

    fn touch_pages(&self, map: &Mapping, offset: usize, len: usize) {
        let Some(seen) = self.seen.get() else { return };
        for page in offset / PAGE..=(offset + len.max(1) - 1) / PAGE {
            let (word, bit) = seen.bit(page);
            if word.load(Ordering::Acquire) & bit == 0 {
                self.map_page(map, page, || word.fetch_or(bit, Ordering::Release) & bit == 0);
            }
        }
    }

    /// The pages that were asked for since they are noted, in the order of their first touch; else, ascending, those
    /// that were while pieces waited.
    pub(crate) fn touched(&self) -> Vec<usize> {
        if let Some(noted) = &self.lock().noted {
            return noted.clone();
        }
        let Some(seen) = self.seen.get() else { return Vec::new() };
        let words = (0..seen.0.len() / 8).map(|n| (n, seen.bit(n * 64).0.load(Ordering::Acquire)));
        let pages =
            |(n, word): (usize, u64)| (0..64).filter(move |i| word >> i & 1 != 0).map(move |i| n * 64 + i);
        words.filter(|(_, word)| *word != 0).flat_map(pages).collect()
    }

    /// Maps the piece with this page. `first` says, once it is there, whether nobody asked for the page before.
    #[cold]
    fn map_page(&self, map: &Mapping, page: usize, first: impl FnOnce() -> bool) {
        let mut state = self.lock();
        let after = state.pieces.partition_point(|waiting| waiting.piece.at <= page * PAGE);
        if let Some(at) = after.checked_sub(1)
            && state.pieces.get(at).is_some_and(|w| page * PAGE - w.piece.at < w.piece.len)
        {
            self.map_one(&mut state, map, at);
        }
        if first()
            && let Some(noted) = &mut state.noted
        {
            noted.push(page);
        }
    }

    /// Maps all that waits.
    pub(crate) fn map_rest(&self, map: &Mapping) {
        let mut state = self.lock();
        for at in 0..state.pieces.len() {
            self.map_one(&mut state, map, at);
        }
    }

    /// Maps one piece unless it is. Where the host has no mapping left, its bytes are copied.
    fn map_one(&self, state: &mut State, map: &Mapping, at: usize) {
        let Some(Waiting { piece, file }) = state.pieces.get_mut(at) else { return };
        let Some(file) = state.files.get(*file).filter(|_| piece.len > 0) else { return };
        if map.map_file_private(piece.at, piece.len, file, piece.file_offset).is_err() {
            copy(map, file, *piece);
        } else if state.reader {
            // Without it more is read than is needed now.
            let _ = map.read_around(piece.at, piece.len, false);
        }
        piece.len = 0;
        state.left -= 1;
        if state.left == 0 {
            *state = State { noted: state.noted.take(), reader: state.reader, ..State::default() };
            self.waiting.store(state.noted.is_some(), Ordering::Release);
        }
    }
}

/// Reads a piece into fresh memory.
///
/// # Panics
/// When the store's own file cannot be read: the guest's memory is lost, as it is when a mapped page cannot be
/// read (SIGBUS), and going on would hand it zeros.
fn copy(map: &Mapping, file: &File, piece: Piece) {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < piece.len {
        let part = &mut buffer[..(piece.len - done).min(1 << 20)];
        let read = file.read_exact_at(part, piece.file_offset + done as u64);
        read.unwrap_or_else(|e| panic!("reading the machine's memory from its file failed: {e}"));
        crate::ram::copy_in(map, piece.at + done, part);
        done += part.len();
    }
}
