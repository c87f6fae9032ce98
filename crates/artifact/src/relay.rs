//! A section of pages laid in another order: some places first, the others after them, all in their old order
//! otherwise.
//!
//! Problem: the pages that a resume touches first lie all over the section, and reading them from a disk one by one
//! takes many times as long as reading as much in one go. Invariants: every place is there once, so the map says of
//! every page what it said before; extents are only cut where places part.

use crate::extents::{Extent, ExtentMap, PageSet, Source, plan_extents};

/// At most so many runs of places are moved to the front: each cuts extents, and an extent costs a mapping, in each
/// copy of a machine too.
const RUNS: usize = 32;
/// Other places moved with them to join runs, in thousandths.
const JOIN_PERMILLE: u32 = 500;

/// A map whose places were laid anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// The map.
    pub map: ExtentMap,
    /// What now lies from the section's beginning on: (old place, pages), one after the other.
    pub order: Vec<(u64, u64)>,
    /// How many pages the part at the front has.
    pub front: u64,
}

impl ExtentMap {
    /// The places of the section of pages that hold any page of `wanted`.
    pub fn places_of(&self, wanted: &PageSet) -> PageSet {
        self.places_in(wanted, Source::Pages, self.stored_pages())
    }

    /// The pages of the root image, of which it has `root_pages`, that hold any page of `wanted`.
    pub fn root_places_of(&self, wanted: &PageSet, root_pages: u64) -> PageSet {
        self.places_in(wanted, Source::Root, root_pages)
    }

    fn places_in(&self, wanted: &PageSet, source: Source, bound: u64) -> PageSet {
        let mut places = PageSet::new(bound);
        for (start, pages) in wanted.runs() {
            let first = self.extents.partition_point(|extent| extent.end() <= start);
            let inside = self.extents.iter().skip(first).take_while(|extent| extent.start < start + pages);
            for extent in inside.filter(|extent| extent.source == source) {
                let from = start.max(extent.start);
                let to = (start + pages).min(extent.end());
                places.insert_run(extent.file_page + (from - extent.start), to - from);
            }
        }
        places
    }

    /// Lays these places of the section of pages at its front, and with them what joins their runs. Of many runs
    /// the longest.
    pub fn lay_first(&self, places: &PageSet) -> Laid {
        let mut runs: Vec<(u64, u64)> =
            plan_extents(places, &[], RUNS, JOIN_PERMILLE).iter().map(|run| (run.start, run.pages)).collect();
        runs.sort_unstable_by_key(|(place, pages)| (std::cmp::Reverse(*pages), *place));
        runs.truncate(RUNS);
        let mut moved = PageSet::new(self.stored_pages());
        runs.iter().for_each(|(place, pages)| moved.insert_run(*place, *pages));
        let others = moved.words().iter().map(|word| !word).collect();
        let others = PageSet::from_words(others, moved.bound());
        let order: Vec<(u64, u64)> = moved.runs().chain(others.runs()).collect();
        let map = ExtentMap { bound: self.bound, extents: self.moved(&order) };
        Laid { map, order, front: moved.count() }
    }

    /// The extents with their places as `order` has them.
    fn moved(&self, order: &[(u64, u64)]) -> Vec<Extent> {
        let mut now = 0;
        let mut table: Vec<(u64, u64, u64)> = Vec::with_capacity(order.len());
        for &(old, pages) in order {
            table.push((old, pages, now));
            now += pages;
        }
        table.sort_unstable();
        let mut extents = Vec::with_capacity(self.extents.len() + order.len());
        for extent in &self.extents {
            if extent.source == Source::Root {
                extents.push(*extent);
                continue;
            }
            let end = extent.file_page + extent.pages;
            let first = table.partition_point(|(old, pages, _)| old + pages <= extent.file_page);
            for &(old, pages, new) in table.iter().skip(first).take_while(|(old, ..)| *old < end) {
                let (from, to) = (old.max(extent.file_page), (old + pages).min(end));
                let start = extent.start + (from - extent.file_page);
                extents.push(Extent::stored(start, to - from, new + (from - old)));
            }
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bound: u64, pages: &[u64]) -> PageSet {
        let mut set = PageSet::new(bound);
        assert!(pages.iter().all(|page| set.insert(*page)));
        set
    }

    /// Where a page's bytes lay before the section was laid anew.
    fn old_place(laid: &Laid, new: u64) -> u64 {
        let mut at = 0;
        for &(old, pages) in &laid.order {
            if new < at + pages {
                return old + (new - at);
            }
            at += pages;
        }
        panic!("place {new} is beyond the section");
    }

    #[test]
    fn every_page_has_the_bytes_that_it_had() {
        let extents = vec![
            Extent::stored(2, 10, 0),
            Extent::in_root(12, 4, 7),
            // Two that share their places.
            Extent::stored(20, 8, 10),
            Extent::stored(30, 8, 10),
            Extent::stored(50, 5, 18),
        ];
        let map = ExtentMap { bound: 64, extents };
        let wanted = set(64, &[5, 6, 13, 31, 52]);
        let places = map.places_of(&wanted);
        assert_eq!(places.runs().collect::<Vec<_>>(), [(3, 2), (11, 1), (20, 1)]);
        assert_eq!(map.root_places_of(&wanted, 16).runs().collect::<Vec<_>>(), [(8, 1)]);
        let laid = map.lay_first(&places);
        assert_eq!(laid.front, 4);
        for page in 0..64 {
            let (old, new) = (map.find(page), laid.map.find(page));
            assert_eq!(old.is_some(), new.is_some(), "page {page}");
            let (Some(old), Some(new)) = (old, new) else { continue };
            let place = new.file_page + (page - new.start);
            match old.source {
                Source::Root => assert_eq!(old, new),
                Source::Pages => {
                    assert_eq!(old_place(&laid, place), old.file_page + (page - old.start), "page {page}");
                    assert_eq!(place < laid.front, places.contains(old.file_page + (page - old.start)));
                }
            }
        }
        let bytes = laid.map.encode();
        let read = ExtentMap::parse(laid.map.version(), &bytes, laid.map.stored_pages() * 4096, 16 * 4096);
        assert_eq!(read.ok(), Some(laid.map));
    }

    #[test]
    fn many_runs_do_not_cut_the_map_to_pieces() {
        let map = ExtentMap { bound: 100_000, extents: vec![Extent::stored(0, 100_000, 0)] };
        let every_ninth: Vec<u64> = (0..100_000).step_by(9).collect();
        let laid = map.lay_first(&set(100_000, &every_ninth));
        assert!(laid.map.extents.len() <= 2 * RUNS + 1, "{} extents", laid.map.extents.len());
    }
}
