//! A section of pages laid in another order: some places first, in the order in which they are needed, the others
//! after them as they were.
//!
//! Problem: the pages that a resume touches first lie all over the section, and reading them from a disk one by one
//! takes many times as long as reading as much in one go. Invariants: every place is there once, so the map says of
//! every page what it said before; extents are only cut where places part.

use crate::extents::{Extent, ExtentMap, PageSet, Source, plan_extents, split_at_barriers};

/// At most so many runs of places are moved to the front: each cuts extents, and an extent costs a mapping, in each
/// copy of a machine too.
const RUNS: usize = 32;
/// Other places moved with them to join runs, in thousandths.
const JOIN_PERMILLE: u32 = 500;

/// Of the touched places of a run the share, counted from the first, that says when the run is needed: with the very
/// first, one page would bring a run of thousands forward that is read much later.
const NEEDED_AFTER: usize = 8;

/// Places of a section that were touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touches {
    /// (Place, how many pages of the memory were touched before), ascending by place, each place once.
    places: Vec<(u64, usize)>,
}

impl Touches {
    /// Takes places in the order of their touches.
    fn new(mut places: Vec<(u64, usize)>) -> Touches {
        // Of several touches the first counts.
        places.sort_unstable();
        places.dedup_by_key(|(place, _)| *place);
        Touches { places }
    }

    /// Without those below a place.
    pub fn from(mut self, first: u64) -> Touches {
        self.places.retain(|(place, _)| *place >= first);
        self
    }

    /// At most `most` runs of places with all of these in them that fit, and with others, at most `join_permille`
    /// thousandths, to join them. Of more the longest. In the order in which they are needed; cut where one of `cuts`,
    /// ascending, lies inside, so that each part comes when it is needed.
    pub fn runs(&self, most: usize, join_permille: u32, cuts: &[u64]) -> Vec<Needed> {
        let mut set = PageSet::new(self.places.last().map_or(0, |(place, _)| place + 1));
        self.places.iter().for_each(|(place, _)| set.insert_run(*place, 1));
        let mut runs = plan_extents(&set, &[], most, join_permille);
        runs.sort_unstable_by_key(|run| (std::cmp::Reverse(run.pages), run.start));
        runs.truncate(most);
        let parts = split_at_barriers(runs.iter().map(|run| (run.start, run.pages)), cuts);
        let mut parts: Vec<Needed> = parts.into_iter().filter_map(|part| self.needed(part)).collect();
        parts.sort_unstable_by_key(|part| (part.after, part.place));
        parts
    }

    /// `None`: never.
    fn needed(&self, (place, pages): (u64, u64)) -> Option<Needed> {
        let at = |place: u64| self.places.partition_point(|(touched, _)| *touched < place);
        let inside = self.places.get(at(place)..at(place + pages)).unwrap_or_default();
        let mut when: Vec<usize> = inside.iter().map(|(_, when)| *when).collect();
        when.sort_unstable();
        Some(Needed { place, pages, after: *when.get(when.len() / NEEDED_AFTER)? })
    }
}

/// A run of places and when it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    pub place: u64,
    pub pages: u64,
    /// How many pages of the memory are touched before.
    pub after: usize,
}

/// A map whose places were laid anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// The map.
    pub map: ExtentMap,
    /// What now lies from the section's beginning on: (old place, pages), one after the other.
    pub order: Vec<(u64, u64)>,
    /// The part at the front, in new places, from 0 on.
    pub front: Vec<Needed>,
}

impl Laid {
    /// How many pages the part at the front has.
    pub fn front_pages(&self) -> u64 {
        self.front.iter().map(|run| run.pages).sum()
    }
}

impl ExtentMap {
    /// The places in the section of pages of the `touched` pages, which are in the order of their first touch.
    pub fn places_of(&self, touched: &[u64]) -> Touches {
        self.places_in(touched, Source::Pages)
    }

    /// The same in the root image.
    pub fn root_places_of(&self, touched: &[u64]) -> Touches {
        self.places_in(touched, Source::Root)
    }

    fn places_in(&self, touched: &[u64], source: Source) -> Touches {
        let place = |(when, &page): (usize, &u64)| {
            let extent = self.find(page).filter(|extent| extent.source == source)?;
            Some((extent.file_page + (page - extent.start), when))
        };
        Touches::new(touched.iter().enumerate().filter_map(place).collect())
    }

    /// Lays these places of the section of pages at its front, in the order in which they are needed, and with them
    /// what joins their runs. Of many runs the longest.
    pub fn lay_first(&self, places: &Touches) -> Laid {
        // A cut where an extent begins makes none more.
        let mut cuts: Vec<u64> = self.in_pages().map(|extent| extent.file_page).collect();
        cuts.sort_unstable();
        let runs = places.runs(RUNS, JOIN_PERMILLE, &cuts);
        let mut others = PageSet::new(self.stored_pages());
        others.insert_run(0, self.stored_pages());
        runs.iter().for_each(|run| others.remove_run(run.place, run.pages));
        let order: Vec<(u64, u64)> =
            runs.iter().map(|run| (run.place, run.pages)).chain(others.runs()).collect();
        let map = ExtentMap { bound: self.bound, extents: self.moved(&order) };
        let mut end = 0;
        let laid = |run: Needed| {
            end += run.pages;
            Needed { place: end - run.pages, ..run }
        };
        Laid { map, order, front: runs.into_iter().map(laid).collect() }
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
        let wanted = [52, 5, 13, 6, 31];
        let places = map.places_of(&wanted);
        assert_eq!(places.places, [(3, 1), (4, 3), (11, 4), (20, 0)]);
        assert_eq!(map.root_places_of(&wanted).places, [(8, 2)]);
        let laid = map.lay_first(&places);
        assert_eq!(laid.front_pages(), 4);
        assert_eq!(laid.order, [(20, 1), (3, 2), (11, 1), (0, 3), (5, 6), (12, 8), (21, 2)]);
        for page in 0..64 {
            let (old, new) = (map.find(page), laid.map.find(page));
            assert_eq!(old.is_some(), new.is_some(), "page {page}");
            let (Some(old), Some(new)) = (old, new) else { continue };
            let place = new.file_page + (page - new.start);
            match old.source {
                Source::Root => assert_eq!(old, new),
                Source::Pages => {
                    assert_eq!(old_place(&laid, place), old.file_page + (page - old.start), "page {page}");
                    let touched = [3, 4, 11, 20].contains(&(old.file_page + (page - old.start)));
                    assert_eq!(place < laid.front_pages(), touched);
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
        let laid = map.lay_first(&map.places_of(&every_ninth));
        assert!(laid.map.extents.len() <= 2 * RUNS + 1, "{} extents", laid.map.extents.len());
    }

    #[test]
    fn what_is_needed_first_lies_first_and_one_page_brings_no_large_run_forward() {
        let map = ExtentMap { bound: 1000, extents: vec![Extent::stored(0, 1000, 0)] };
        // One page of the large run, then a small one, then the rest of the large one.
        let touched: Vec<u64> = [150].into_iter().chain(700..710).chain(100..150).chain(151..200).collect();
        let laid = map.lay_first(&map.places_of(&touched));
        assert_eq!(laid.order[..2], [(700, 10), (100, 100)]);
        let needed = |place, pages, after| Needed { place, pages, after };
        assert_eq!(laid.front, [needed(0, 10, 2), needed(10, 100, 22)]);
    }

    #[test]
    fn a_small_extent_beside_a_large_one_comes_when_it_is_needed() {
        let map =
            ExtentMap { bound: 300, extents: vec![Extent::stored(0, 100, 0), Extent::stored(200, 5, 100)] };
        let touched: Vec<u64> = (200..205).chain(0..100).collect();
        let laid = map.lay_first(&map.places_of(&touched));
        assert_eq!(laid.order, [(100, 5), (0, 100)]);
        assert_eq!(laid.map.extents, [Extent::stored(0, 100, 5), Extent::stored(200, 5, 0)]);
    }
}
