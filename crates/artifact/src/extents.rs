//! Which pages of a guest's memory (or of a disk) lie where in a section of raw pages.
//!
//! Problem: zero pages are not stored, so the stored ones form runs, and each run costs a mapping at every
//! resume (2.3 µs), tens of thousands of them in a machine that has been up for a while. Strategy: the
//! smallest gaps between runs are stored as zeros until few enough extents are left, or until the zeros cost
//! too much of the file ([`plan_extents`]). Invariants of an [`ExtentMap`]: extents ascend by page and don't
//! overlap; every page of the section is the place of one, in whatever order, or of several that are equal; a
//! place may also be in the root image, where the kernel of the guest took the page from.

use crate::error::Problem;
use crate::format::{Fields, PAGE_SIZE};

/// How many extents [`plan_extents`] should aim for: fewer than 100 mappings before the first instruction.
pub const USUAL_EXTENTS: usize = 96;

/// Zeros stored for that, in thousandths of the non-zero pages: 2%.
pub const USUAL_OVERHEAD_PERMILLE: u32 = 20;

/// The section that an extent's pages lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The section of pages beside the map.
    Pages,
    /// The root image that the memory's disk lies on.
    Root,
}

/// A run of pages and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first page's number (its address divided by 4096).
    pub start: u64,
    /// How many pages: 1 or more.
    pub pages: u64,
    /// Where they lie.
    pub source: Source,
    /// The first page's place in that section, in pages.
    pub file_page: u64,
}

impl Extent {
    /// A run in the section of pages.
    pub fn stored(start: u64, pages: u64, file_page: u64) -> Extent {
        Extent { start, pages, source: Source::Pages, file_page }
    }

    /// A run that the root image has, too.
    pub fn in_root(start: u64, pages: u64, root_page: u64) -> Extent {
        Extent { start, pages, source: Source::Root, file_page: root_page }
    }

    /// The page after the last one.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.pages)
    }
}

/// A set of page numbers below a bound: one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// An empty set of page numbers below `pages`.
    pub fn new(pages: u64) -> PageSet {
        PageSet { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// A set from its words: page n is bit n % 64 of word n / 64. Bits at or above the bound don't count.
    pub fn from_words(mut words: Vec<u64>, pages: u64) -> PageSet {
        words.resize(pages.div_ceil(64) as usize, 0);
        if let Some(last) = words.last_mut().filter(|_| !pages.is_multiple_of(64)) {
            *last &= (1 << (pages % 64)) - 1;
        }
        PageSet { words, pages }
    }

    /// Its words, as in [`PageSet::from_words`].
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds the pages of another set with the same bound.
    pub fn unite(&mut self, other: &PageSet) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// The bound.
    pub fn bound(&self) -> u64 {
        self.pages
    }

    /// Adds a page; `false` where it is not below the bound.
    pub fn insert(&mut self, page: u64) -> bool {
        let inside = page < self.pages;
        if let Some(word) = self.words.get_mut((page / 64) as usize).filter(|_| inside) {
            *word |= 1 << (page % 64);
        }
        inside
    }

    /// Adds a run of pages, a word at a time; what is not below the bound is left out.
    pub fn insert_run(&mut self, start: u64, pages: u64) {
        let end = start.saturating_add(pages).min(self.pages);
        let mut at = start;
        while at < end {
            let stop = (at / 64 * 64 + 64).min(end);
            let ones = u64::MAX >> (64 - (stop - at));
            if let Some(word) = self.words.get_mut((at / 64) as usize) {
                *word |= ones << (at % 64);
            }
            at = stop;
        }
    }

    /// Takes a run of pages out.
    pub fn remove_run(&mut self, start: u64, pages: u64) {
        let mut gone = PageSet::new(self.pages);
        gone.insert_run(start, pages);
        self.words.iter_mut().zip(&gone.words).for_each(|(word, gone)| *word &= !gone);
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        let word = self.words.get((page / 64) as usize).copied().unwrap_or(0);
        word >> (page % 64) & 1 == 1
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The runs of pages in it as (first, number), ascending.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next(from, true)?;
            let end = self.next(start, false).unwrap_or(self.pages);
            from = end;
            Some((start, end - start))
        })
    }

    /// The first page from `from` on that is in the set, or is not.
    fn next(&self, from: u64, present: bool) -> Option<u64> {
        let mut mask = u64::MAX << (from % 64);
        for (at, &word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            let wanted = if present { word } else { !word } & mask;
            if wanted != 0 {
                let page = at as u64 * 64 + u64::from(wanted.trailing_zeros());
                return (page < self.pages).then_some(page);
            }
            mask = u64::MAX;
        }
        None
    }
}

/// Which extents to store so that every page of `nonzero` is in one.
///
/// The smallest gaps are closed first, the lower page first among equals, until `max_extents` are left or the
/// zeros stored would be more than `max_overhead_permille` thousandths of the non-zero pages. No extent crosses
/// a page number in `barriers` (ascending), where one region of memory ends and another begins.
/// The places in the file follow the page numbers.
pub fn plan_extents(
    nonzero: &PageSet,
    barriers: &[u64],
    max_extents: usize,
    max_overhead_permille: u32,
) -> Vec<Extent> {
    let runs = split_at_barriers(nonzero.runs(), barriers);
    let stored: u64 = runs.iter().map(|run| run.1).sum();
    let budget = u128::from(stored) * u128::from(max_overhead_permille) / 1000;
    let closed = close_gaps(&runs, barriers, max_extents, budget as u64);

    let mut extents: Vec<Extent> = Vec::new();
    let mut file_page = 0;
    for ((start, pages), closed) in runs.into_iter().zip(closed) {
        match extents.last_mut() {
            Some(last) if closed => {
                let gap = start - last.end();
                last.pages += gap + pages;
                file_page += gap + pages;
            }
            _ => {
                extents.push(Extent::stored(start, pages, file_page));
                file_page += pages;
            }
        }
    }
    extents
}

/// Cuts runs where a barrier (ascending) lies inside.
pub(crate) fn split_at_barriers(runs: impl Iterator<Item = (u64, u64)>, barriers: &[u64]) -> Vec<(u64, u64)> {
    let mut split = Vec::new();
    for (mut start, pages) in runs {
        let end = start + pages;
        let first = barriers.partition_point(|&barrier| barrier <= start);
        for &barrier in barriers.iter().skip(first).take_while(|&&barrier| barrier < end) {
            split.push((start, barrier - start));
            start = barrier;
        }
        split.push((start, end - start));
    }
    split
}

/// For each run whether the gap before it is to be closed.
fn close_gaps(runs: &[(u64, u64)], barriers: &[u64], max_extents: usize, mut budget: u64) -> Vec<bool> {
    let mut closed = vec![false; runs.len()];
    let mut too_many = runs.len().saturating_sub(max_extents.max(1));
    if too_many == 0 {
        return closed;
    }
    let mut gaps: Vec<(u64, usize)> = Vec::new();
    for (at, pair) in runs.windows(2).enumerate() {
        let &[(before, pages), (start, _)] = pair else { continue };
        let end = before + pages;
        let next = barriers.partition_point(|&barrier| barrier < end);
        if barriers.get(next).is_none_or(|&barrier| barrier > start) {
            gaps.push((start - end, at + 1));
        }
    }
    gaps.sort_unstable();
    for (gap, at) in gaps {
        if too_many == 0 || gap > budget {
            break;
        }
        closed[at] = true;
        budget -= gap;
        too_many -= 1;
    }
    closed
}

/// The content of a `MemoryMap` or `DiskDeltaMap` section; docs/formats/machine-file.md, section 6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentMap {
    /// How many pages the memory or disk has, stored or not.
    pub bound: u64,
    /// The stored ones, ascending.
    pub extents: Vec<Extent>,
}

impl ExtentMap {
    /// The newest encoding's version; earlier ones are read, too.
    pub const VERSION: u32 = 2;

    const MAGIC: [u8; 8] = *b"SMOLVMEX";
    const HEAD_LEN: usize = 32;
    const ENTRY_LEN: usize = 24;
    const PLACE: &str = "an extent map";
    /// Set in a place: it is in the root image.
    const IN_ROOT: u64 = 1 << 63;

    /// The lowest version of the encoding that can say this map, for the section's entry in the index: readers that
    /// know only version 1 then read all files that don't need more.
    pub fn version(&self) -> u32 {
        let owned: u64 = self.in_pages().map(|extent| extent.pages).sum();
        let plain = self.extents.iter().all(|extent| extent.source == Source::Pages);
        if plain && owned == self.stored_pages() { 1 } else { 2 }
    }

    pub(crate) fn in_pages(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter().filter(|extent| extent.source == Source::Pages)
    }

    /// How many pages the section of pages has.
    pub fn stored_pages(&self) -> u64 {
        self.in_pages().map(|extent| extent.file_page.saturating_add(extent.pages)).max().unwrap_or(0)
    }

    /// The stored pages.
    pub fn pages(&self) -> PageSet {
        let mut set = PageSet::new(self.bound);
        self.extents.iter().for_each(|extent| set.insert_run(extent.start, extent.pages));
        set
    }

    /// The parts of the extents that no extent of `above` covers, ascending.
    pub fn uncovered(&self, above: &ExtentMap) -> Vec<Extent> {
        let mut parts = Vec::with_capacity(self.extents.len() + above.extents.len());
        for extent in &self.extents {
            let mut start = extent.start;
            let first = above.extents.partition_point(|over| over.end() <= start);
            let place = |from: u64, to: u64| Extent {
                start: from,
                pages: to - from,
                source: extent.source,
                file_page: extent.file_page + (from - extent.start),
            };
            for over in above.extents.iter().skip(first).take_while(|over| over.start < extent.end()) {
                if over.start > start {
                    parts.push(place(start, over.start));
                }
                start = start.max(over.end());
            }
            if start < extent.end() {
                parts.push(place(start, extent.end()));
            }
        }
        parts
    }

    /// The extent with a page in it.
    pub fn find(&self, page: u64) -> Option<&Extent> {
        let after = self.extents.partition_point(|extent| extent.start <= page);
        let extent = self.extents.get(after.checked_sub(1)?)?;
        (page < extent.end()).then_some(extent)
    }

    /// The section's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::HEAD_LEN + self.extents.len() * Self::ENTRY_LEN);
        bytes.extend_from_slice(&Self::MAGIC);
        bytes.extend_from_slice(&(self.extents.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.bound.to_le_bytes());
        bytes.extend_from_slice(&self.stored_pages().to_le_bytes());
        for extent in &self.extents {
            let place = match extent.source {
                Source::Pages => extent.file_page,
                Source::Root => extent.file_page | Self::IN_ROOT,
            };
            for field in [extent.start, extent.pages, place] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads the bytes of a section whose entry names this `version`, whose pages take `pages_len` bytes and whose root
    /// image has `root_len` (0: there is none), and checks every invariant, so that what it returns can be mapped as it
    /// is. Offsets in the problem count from the section's start.
    pub fn parse(version: u32, bytes: &[u8], pages_len: u64, root_len: u64) -> Result<ExtentMap, Problem> {
        if !(1..=Self::VERSION).contains(&version) {
            return Err(Problem::Unsupported { what: format!("version {version} of {}", Self::PLACE) });
        }
        let damaged = |at: u64, why: String| Err(Problem::damaged(Self::PLACE, at, why));
        let (head, entries) = bytes.split_at_checked(Self::HEAD_LEN).unwrap_or((bytes, &[]));
        let mut fields = Fields::new(head, Self::PLACE, 0);
        if fields.bytes()? != Self::MAGIC {
            return damaged(0, "it does not start with its magic".to_owned());
        }
        let (count, bound, stored) = (fields.u64()?, fields.u64()?, fields.u64()?);
        if count.checked_mul(Self::ENTRY_LEN as u64) != Some(entries.len() as u64) {
            return damaged(8, format!("{count} extents in {} bytes", entries.len()));
        }
        if stored.checked_mul(PAGE_SIZE) != Some(pages_len) {
            return damaged(24, format!("{stored} pages in {pages_len} bytes"));
        }
        let mut extents: Vec<Extent> = Vec::with_capacity(entries.len() / Self::ENTRY_LEN);
        let mut at = Self::HEAD_LEN as u64;
        for entry in entries.chunks_exact(Self::ENTRY_LEN) {
            let mut fields = Fields::new(entry, Self::PLACE, at);
            let (start, pages, place) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let extent = match place & Self::IN_ROOT {
                0 => Extent::stored(start, pages, place),
                _ => Extent::in_root(start, pages, place & !Self::IN_ROOT),
            };
            let previous_end = extents.last().map_or(0, Extent::end);
            let end = extent.start.checked_add(extent.pages);
            if extent.pages == 0 || extent.start < previous_end || end.is_none_or(|end| end > bound) {
                return damaged(at, "an extent is empty, out of order or out of bounds".to_owned());
            }
            extents.push(extent);
            at = at.saturating_add(Self::ENTRY_LEN as u64);
        }
        let map = ExtentMap { bound, extents };
        if version == 1 && map.version() != 1 {
            let why = "the extents' places are not those of a map of version 1";
            return damaged(Self::HEAD_LEN as u64, why.to_owned());
        }
        if !map.covers(stored) {
            let why = "the extents' places do not make up the section of pages";
            return damaged(Self::HEAD_LEN as u64, why.to_owned());
        }
        let root_pages = root_len / PAGE_SIZE;
        let beyond = |e: &Extent| e.file_page.checked_add(e.pages).is_none_or(|end| end > root_pages);
        if map.extents.iter().any(|e| e.source == Source::Root && beyond(e)) {
            let why = "an extent lies beyond the root image";
            return damaged(Self::HEAD_LEN as u64, why.to_owned());
        }
        Ok(map)
    }

    /// Whether the extents' places are the `stored` pages of the section of pages, all of them and no other.
    fn covers(&self, stored: u64) -> bool {
        let mut places: Vec<(u64, u64)> = self.in_pages().map(|e| (e.file_page, e.pages)).collect();
        places.sort_unstable();
        let mut end = 0;
        for (file_page, pages) in places {
            match file_page.checked_add(pages) {
                Some(next) if file_page <= end => end = next.max(end),
                _ => return false,
            }
        }
        end == stored
    }
}
