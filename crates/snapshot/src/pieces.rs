//! A memory looked through by several threads, piece by piece.
//!
//! Problem: a snapshot is looked through twice (which pages hold anything, which of them are elsewhere already) before
//! the first byte is written; on one core that took a quarter of the time. Invariant: the pieces are the same however
//! many threads there are, so that the same memory gives the same file.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use artifact::PageSet;
use artifact::hash::usual_threads;

/// Pages in a piece: a multiple of 64, the pages of a [`PageSet`]'s word. 64 MiB: a run of pages that goes on into the
/// next piece is two runs.
pub(crate) const PIECE_PAGES: u64 = 16 * 1024;

/// Calls `look` with each piece of `pages` pages, from several threads and in any order; the results in the order of
/// the pieces. The first error ends it.
pub(crate) fn each_piece<T: Send>(
    pages: u64,
    look: impl Fn(Range<u64>) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let pieces = pages.div_ceil(PIECE_PAGES) as usize;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(pieces));
    let work = || {
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            let start = piece as u64 * PIECE_PAGES;
            let result = look(start..pages.min(start + PIECE_PAGES));
            if result.is_err() {
                next.store(pieces, Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push((piece, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..usual_threads().min(pieces) {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(piece, _)| *piece);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The runs of a set of pages as far as they lie in `piece`, which begins at a piece's boundary: (first, number).
pub(crate) fn runs_in(set: &PageSet, piece: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let words = set.words().get((piece.start / 64) as usize..).unwrap_or_default();
    let words = &words[..words.len().min((piece.end - piece.start).div_ceil(64) as usize)];
    let part = PageSet::from_words(words.to_vec(), piece.end - piece.start);
    let runs: Vec<(u64, u64)> = part.runs().map(|(first, pages)| (piece.start + first, pages)).collect();
    runs.into_iter()
}
