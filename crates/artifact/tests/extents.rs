//! The plan of extents, and the map that stores it.

use artifact::{Extent, ExtentMap, PageSet, plan_extents};
use proptest::prelude::*;

fn set(pages: u64, members: impl IntoIterator<Item = u64>) -> PageSet {
    let mut set = PageSet::new(pages);
    members.into_iter().for_each(|page| assert!(set.insert(page)));
    set
}

fn runs(extents: &[Extent]) -> Vec<(u64, u64)> {
    extents.iter().map(|e| (e.start, e.pages)).collect()
}

#[test]
fn few_runs_stay_as_they_are() {
    let nonzero = set(200, [0, 1, 5, 63, 64, 65, 127, 128, 199]);
    let extents = plan_extents(&nonzero, &[], 96, 20);
    assert_eq!(runs(&extents), [(0, 2), (5, 1), (63, 3), (127, 2), (199, 1)]);
    let places: Vec<u64> = extents.iter().map(|e| e.file_page).collect();
    assert_eq!(places, [0, 2, 3, 6, 8]);
}

#[test]
fn the_smallest_gaps_are_closed_first() {
    // Gaps of 1, 3, 2 pages.
    let nonzero = set(100, [0, 2, 6, 9]);
    assert_eq!(runs(&plan_extents(&nonzero, &[], 3, 1000)), [(0, 3), (6, 1), (9, 1)]);
    assert_eq!(runs(&plan_extents(&nonzero, &[], 2, 1000)), [(0, 3), (6, 4)]);
    // 4 pages at 1000 permille: 4 zero pages are the limit, so the gap of 3 stays.
    assert_eq!(runs(&plan_extents(&nonzero, &[], 1, 1000)), [(0, 3), (6, 4)]);
    assert_eq!(runs(&plan_extents(&nonzero, &[], 1, 1500)), [(0, 10)]);
    assert_eq!(runs(&plan_extents(&nonzero, &[], 1, 0)).len(), 4);
}

#[test]
fn no_extent_crosses_a_barrier() {
    let nonzero = set(100, (10..20).chain([21, 23]));
    assert_eq!(runs(&plan_extents(&nonzero, &[15, 21], 1, 1000)), [(10, 5), (15, 5), (21, 3)]);
    assert_eq!(runs(&plan_extents(&nonzero, &[10, 24], 1, 1000)), [(10, 14)]);
    assert_eq!(runs(&plan_extents(&nonzero, &[20, 22], 1, 1000)), [(10, 10), (21, 1), (23, 1)]);
}

#[test]
fn nothing_is_nothing() {
    assert_eq!(plan_extents(&PageSet::new(0), &[], 96, 20), []);
    assert_eq!(plan_extents(&PageSet::new(1000), &[5], 96, 20), []);
    assert!(!PageSet::new(10).insert(10));
    let empty = ExtentMap { bound: 1000, extents: vec![] };
    assert_eq!(ExtentMap::parse(1, &empty.encode(), 0, 0).unwrap(), empty);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_covers_everything_within_its_budget(
        members in proptest::collection::btree_set(0u64..3000, 0..400),
        barriers in proptest::collection::btree_set(0u64..3000, 0..5),
        most in 1usize..150,
        permille in 0u32..500,
    ) {
        let nonzero = set(3000, members.iter().copied());
        let barriers: Vec<u64> = barriers.into_iter().collect();
        prop_assert_eq!(nonzero.count(), members.len() as u64);
        let extents = plan_extents(&nonzero, &barriers, most, permille);
        let map = ExtentMap { bound: 3000, extents };
        for page in 0..3000 {
            prop_assert!(!nonzero.contains(page) || map.find(page).is_some());
        }
        let extra = map.stored_pages() - nonzero.count();
        prop_assert!(extra <= nonzero.count() * u64::from(permille) / 1000);
        for extent in &map.extents {
            prop_assert!(!barriers.iter().any(|&b| extent.start < b && b < extent.end()));
            prop_assert!(nonzero.contains(extent.start) && nonzero.contains(extent.end() - 1));
        }
        // And it reads back: so its places tile the section.
        let parsed = ExtentMap::parse(map.version(), &map.encode(), map.stored_pages() * 4096, 0).unwrap();
        prop_assert_eq!((parsed.version(), &parsed), (1, &map));
    }

    #[test]
    fn a_damaged_map_never_panics_and_keeps_its_promises(
        at in 0usize..104, byte in any::<u8>(), cut in 0usize..104,
    ) {
        let (map, pages) = three();
        let mut bytes = map.encode();
        bytes[at] = byte;
        if let Ok(map) = ExtentMap::parse(1, &bytes, pages * 4096, 0) {
            prop_assert_eq!(map.stored_pages(), pages);
            prop_assert!(map.extents.iter().all(|e| e.end() <= map.bound && e.file_page + e.pages <= pages));
        }
        prop_assert!(ExtentMap::parse(1, &bytes[..cut], pages * 4096, 0).is_err());
    }
}

/// A map whose places are not in the order of the pages.
fn three() -> (ExtentMap, u64) {
    let extent = Extent::stored;
    let extents = vec![extent(0, 2, 7), extent(10, 3, 4), extent(20, 4, 0)];
    (ExtentMap { bound: 64, extents }, 9)
}

#[test]
fn places_in_another_order_are_right_and_lies_are_refused() {
    let (map, pages) = three();
    let bytes = map.encode();
    assert_eq!(ExtentMap::parse(1, &bytes, pages * 4096, 0).unwrap(), map);
    assert_eq!(map.find(12).map(|e| e.file_page), Some(4));
    assert_eq!((map.find(13), map.find(9), map.find(24)), (None, None, None));
    let lie = |entry: usize, field: usize, value: u64| {
        let mut bytes = bytes.clone();
        bytes[32 + entry * 24 + field * 8..][..8].copy_from_slice(&value.to_le_bytes());
        ExtentMap::parse(1, &bytes, pages * 4096, 0).unwrap_err().to_string()
    };
    for (entry, field, value) in
        [(0, 0, 11), (1, 0, 1), (2, 0, u64::MAX), (2, 1, u64::MAX), (0, 1, 0), (2, 2, 1), (1, 2, u64::MAX)]
    {
        assert!(lie(entry, field, value).contains("an extent map"), "{entry} {field} {value}");
    }
    assert!(ExtentMap::parse(1, &bytes, (pages + 1) * 4096, 0).is_err());
}

#[test]
fn pages_may_share_a_place_or_lie_in_the_root_image() {
    let extents = vec![
        Extent::stored(0, 4, 0),
        Extent::stored(4, 4, 0),
        Extent::stored(8, 2, 2),
        Extent::in_root(20, 5, 3),
        Extent::stored(30, 1, 4),
    ];
    let map = ExtentMap { bound: 64, extents };
    assert_eq!((map.version(), map.stored_pages(), map.pages().count()), (2, 5, 16));
    let bytes = map.encode();
    let parse = |version, bytes: &[u8], stored: u64, root: u64| {
        ExtentMap::parse(version, bytes, stored * 4096, root).map_err(|problem| problem.to_string())
    };
    assert_eq!(parse(2, &bytes, 5, 8 * 4096), Ok(map.clone()));
    // What lies above hides a part of the root image's, too.
    let above = ExtentMap { bound: 64, extents: vec![Extent::stored(21, 2, 0)] };
    assert!(map.uncovered(&above).contains(&Extent::in_root(23, 2, 6)));
    // An earlier reader's version, a root image that is shorter or not there, a page that is no extent's place.
    assert!(parse(1, &bytes, 5, 8 * 4096).unwrap_err().contains("version 1"));
    assert!(parse(2, &bytes, 5, 8 * 4096 - 1).unwrap_err().contains("beyond the root image"));
    assert!(parse(2, &bytes, 5, 0).unwrap_err().contains("beyond the root image"));
    assert!(parse(2, &bytes, 6, 8 * 4096).is_err());
    assert!(parse(3, &bytes, 5, 8 * 4096).unwrap_err().contains("version 3"));
    let mut far = bytes.clone();
    far[32 + 3 * 24 + 16..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(parse(2, &far, 5, u64::MAX).is_err());
}

#[test]
fn sets_are_made_of_words_and_runs() {
    let mut set = PageSet::new(200);
    set.insert_run(10, 5);
    set.insert_run(60, 70);
    set.insert_run(190, 100);
    let members = (10..15).chain(60..130).chain(190..200);
    assert_eq!(set, self::set(200, members));
    assert_eq!(PageSet::from_words(set.words().to_vec(), 200), set);
    assert_eq!(PageSet::from_words(vec![u64::MAX; 9], 70), self::set(70, 0..70));
    let mut other = PageSet::new(200);
    other.insert_run(14, 2);
    other.unite(&set);
    assert_eq!(other, self::set(200, (10..16).chain(60..130).chain(190..200)));
}

#[test]
fn what_lies_above_hides_what_lies_below() {
    let extent = Extent::stored;
    let map = |extents: Vec<Extent>| ExtentMap { bound: 100, extents };
    let below = map(vec![extent(0, 10, 0), extent(20, 10, 10), extent(40, 10, 20), extent(60, 1, 30)]);
    let above = map(vec![extent(0, 2, 0), extent(4, 1, 2), extent(8, 20, 3), extent(45, 30, 23)]);
    let parts = [extent(2, 2, 2), extent(5, 3, 5), extent(28, 2, 18), extent(40, 5, 20)];
    assert_eq!(below.uncovered(&above), parts);
    assert_eq!(below.uncovered(&map(vec![])), below.extents);
    assert_eq!(map(vec![]).uncovered(&above), []);
    // Against the sets, for every pattern of eight pages over three extents.
    for pattern in 0..256u64 {
        let pages = set(100, (0..8).filter(|bit| pattern >> bit & 1 != 0).map(|bit| bit * 8));
        let above = map(plan_extents(&pages, &[], 96, 0));
        let mut all = PageSet::new(100);
        for part in below.uncovered(&above) {
            let under = below.find(part.start).unwrap();
            assert_eq!(part.start - under.start, part.file_page - under.file_page);
            all.insert_run(part.start, part.pages);
        }
        for page in 0..100 {
            let shown = below.find(page).is_some() && !pages.contains(page);
            assert_eq!(all.contains(page), shown, "{pattern:b} {page}");
        }
    }
}
