//! Pages of memory that need no place of their own in the file.
//!
//! Problem: much of a guest's memory is page cache: the very pages of the root image, which lies in the same file; and
//! what a kernel freed at its start is one page over and over. Strategy: runs of at least [`LEAST_ROOT`] pages that
//! the root image has in the same order are mapped from there; of a run of equal pages an eighth is stored and mapped
//! again and again. Invariants: equality is compared, never taken from a hash; a run costs a mapping, so there
//! are at most [`MOST`], the longest; none crosses a barrier. The guest decides what its memory holds, so nothing here
//! may take longer for any content: one candidate in the root image for a page, each page looked at once.
//! Next: `memory.rs`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use artifact::{Extent, MachineFile, PageSet, SectionKind};
use guestmem::PAGE_SIZE;

use crate::pieces::{each_piece, runs_in};
use crate::still::StillMemory;

const PAGE: usize = PAGE_SIZE as usize;
/// The shortest run that is mapped from the root image: 64 KiB.
const LEAST_ROOT: u64 = 16;
/// The shortest run of equal pages that is shortened, and by what.
const LEAST_EQUAL: u64 = 64;
const SHORTENED: u64 = 8;
/// The most runs.
const MOST: usize = 128;
/// Larger root images are not looked through: each snapshot would wait for it.
const LARGEST_ROOT: u64 = 2 << 30;
/// Bytes of the root image read at a time.
const PIECE: usize = 1 << 20;

/// The root image's pages by a hash of their content.
pub(crate) struct RootPages {
    file: File,
    offset: u64,
    pages: u64,
    by_hash: HashMap<u64, u64>,
}

impl RootPages {
    /// Reads the root image of `base`; `None` where there is none or it is too large.
    pub(crate) fn of(base: &MachineFile) -> io::Result<Option<Self>> {
        let Some(section) = base.section(SectionKind::RootImage).filter(|s| s.len <= LARGEST_ROOT) else {
            return Ok(None);
        };
        let pages = section.len / PAGE_SIZE;
        let (file, offset) = (base.file().try_clone()?, section.offset);
        let hashes = each_piece(pages, |piece| {
            let mut hashes = Vec::with_capacity((piece.end - piece.start) as usize);
            let mut buffer = vec![0; PIECE];
            let (mut at, end) = (piece.start * PAGE_SIZE, piece.end * PAGE_SIZE);
            while at < end {
                let (part, _) = buffer.split_at_mut(PIECE.min((end - at) as usize));
                file.read_exact_at(part, offset + at)?;
                hashes.extend(part.as_chunks::<PAGE>().0.iter().map(hash));
                at += part.len() as u64;
            }
            Ok(hashes)
        })?;
        let mut by_hash = HashMap::with_capacity(pages as usize);
        for (page, hash) in (0..).zip(hashes.into_iter().flatten()) {
            by_hash.entry(hash).or_insert(page);
        }
        Ok(Some(Self { file, offset, pages, by_hash }))
    }

    /// The first page that may be equal.
    fn candidate(&self, page: &[u8; PAGE]) -> Option<u64> {
        self.by_hash.get(&hash(page)).copied()
    }

    /// Whether page `at` is equal.
    fn has(&self, at: u64, page: &[u8; PAGE]) -> bool {
        let mut bytes = [0; PAGE];
        let place = self.offset + at * PAGE_SIZE;
        at < self.pages && self.file.read_exact_at(&mut bytes, place).is_ok() && bytes == *page
    }
}

/// Quick, and good enough to find a candidate. Four lanes: one would wait for each multiplication.
fn hash(page: &[u8; PAGE]) -> u64 {
    let mut lanes = [0u64; 4];
    for words in page.as_chunks::<8>().0.as_chunks::<4>().0 {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    lanes.into_iter().fold(0, mix)
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// A run that is not stored, or not whole.
#[derive(Clone, Copy, Debug)]
enum Run {
    /// In the root image from this page on.
    Root { start: u64, pages: u64, place: u64 },
    /// Equal pages, of which the first `stored` are stored.
    Equal { start: u64, pages: u64, stored: u64 },
}

impl Run {
    fn start(&self) -> u64 {
        match *self {
            Run::Root { start, .. } | Run::Equal { start, .. } => start,
        }
    }

    fn pages(&self) -> u64 {
        match *self {
            Run::Root { pages, .. } | Run::Equal { pages, .. } => pages,
        }
    }

    /// The pages that are not stored for it.
    fn spared(&self) -> (u64, u64) {
        match *self {
            Run::Root { start, pages, .. } => (start, pages),
            Run::Equal { start, pages, stored } => (start + stored, pages - stored),
        }
    }
}

/// What is shared of a memory's pages.
#[derive(Default)]
pub(crate) struct Shared {
    runs: Vec<Run>,
}

impl Shared {
    /// Looks through the pages in `store`.
    pub(crate) fn find(
        still: &StillMemory,
        store: &PageSet,
        barriers: &[u64],
        root: Option<&RootPages>,
    ) -> io::Result<Self> {
        let found = each_piece(store.bound(), |piece| {
            let mut finder = Finder { root, ..Finder::default() };
            let (mut page, mut before) = ([0; PAGE], [0; PAGE]);
            for (start, pages) in runs_in(store, piece) {
                finder.stop(start);
                for at in start..start + pages {
                    if barriers.contains(&at) {
                        finder.stop(at);
                    }
                    std::mem::swap(&mut page, &mut before);
                    still.peek_page(at as usize, &mut page)?;
                    finder.next(at, &page, &before);
                }
                finder.stop(start + pages);
            }
            Ok(finder.runs)
        })?;
        Ok(Self { runs: longest(found.concat()) })
    }

    /// The pages of `store` that have to be stored.
    pub(crate) fn rest(&self, store: &PageSet) -> PageSet {
        let mut spared = PageSet::new(store.bound());
        self.runs.iter().map(Run::spared).for_each(|(start, pages)| spared.insert_run(start, pages));
        let words = store.words().iter().zip(spared.words()).map(|(word, spared)| word & !spared);
        PageSet::from_words(words.collect(), store.bound())
    }

    /// Where no stored extent may go on: at `barriers` and where a run is.
    pub(crate) fn barriers(&self, barriers: &[u64]) -> Vec<u64> {
        let mut all: Vec<u64> =
            self.runs.iter().map(|run| run.spared().0).chain(barriers.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// The stored extents and the shared ones, ascending.
    pub(crate) fn lay(&self, stored: &[Extent]) -> Vec<Extent> {
        let mut extents = stored.to_vec();
        for run in &self.runs {
            match *run {
                Run::Root { start, pages, place } => extents.push(Extent::in_root(start, pages, place)),
                Run::Equal { start, pages, stored: first } => {
                    // Stored pages side by side without a barrier between them are in one extent.
                    let after = stored.partition_point(|extent| extent.start <= start);
                    let Some(extent) = after.checked_sub(1).and_then(|at| stored.get(at)) else { continue };
                    let place = extent.file_page + (start - extent.start);
                    let again = (start + first..start + pages).step_by(first as usize);
                    extents.extend(again.map(|at| Extent::stored(at, first.min(start + pages - at), place)));
                }
            }
        }
        extents.sort_unstable_by_key(|extent| extent.start);
        extents
    }
}

/// Goes through pages in order and notes runs.
#[derive(Default)]
struct Finder<'a> {
    root: Option<&'a RootPages>,
    /// The run in the root image that goes on: its first page, and where that lies there.
    in_root: Option<(u64, u64)>,
    /// The first of the equal pages that go on.
    equal: Option<u64>,
    runs: Vec<Run>,
}

impl Finder<'_> {
    /// Nothing goes on at page `at`.
    fn stop(&mut self, at: u64) {
        self.stop_root(at);
        self.stop_equal(at);
    }

    fn stop_root(&mut self, at: u64) {
        if let Some((start, place)) = self.in_root.take()
            && at - start >= LEAST_ROOT
        {
            self.runs.push(Run::Root { start, pages: at - start, place });
        }
    }

    fn stop_equal(&mut self, at: u64) {
        if let Some(start) = self.equal.take()
            && at - start >= LEAST_EQUAL
        {
            let pages = at - start;
            self.runs.push(Run::Equal { start, pages, stored: pages.div_ceil(SHORTENED) });
        }
    }

    fn next(&mut self, at: u64, page: &[u8; PAGE], before: &[u8; PAGE]) {
        if self.equal.is_none() || page != before {
            self.stop_equal(at);
            self.equal = Some(at);
        }
        let Some(root) = self.root else { return };
        if let Some((start, place)) = self.in_root
            && root.has(place + (at - start), page)
        {
            return;
        }
        self.stop_root(at);
        self.in_root = root.candidate(page).filter(|place| root.has(*place, page)).map(|place| (at, place));
    }
}

/// The longest runs, apart from each other.
fn longest(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_by_key(|run| std::cmp::Reverse(run.pages()));
    let mut taken: Vec<Run> = Vec::new();
    for run in runs {
        if taken.len() == MOST {
            break;
        }
        let (start, end) = (run.start(), run.start() + run.pages());
        if taken.iter().all(|other| other.start() + other.pages() <= start || end <= other.start()) {
            taken.push(run);
        }
    }
    taken
}
