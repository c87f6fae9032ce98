//! Any bytes as an extent map: a problem, or a map whose extents are in bounds and tile their section.
#![no_main]

use artifact::{Digest, ExtentMap, PAGE_SIZE};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (pages, bytes) = input;
    let Ok(map) = ExtentMap::parse(bytes, u64::from(pages) * PAGE_SIZE) else { return };
    assert_eq!(map.stored_pages(), u64::from(pages));
    for extent in &map.extents {
        assert!(extent.end() <= map.bound && extent.file_page + extent.pages <= u64::from(pages));
        assert_eq!(map.find(extent.start), Some(extent));
    }
    assert_eq!(Digest::of(&map.encode()), Digest::of(bytes), "one map has one encoding");
});
