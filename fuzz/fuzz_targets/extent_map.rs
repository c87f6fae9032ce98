//! Any bytes as an extent map: a problem, or a map whose extents are in bounds and whose places are all of its section.
#![no_main]

use artifact::{Digest, ExtentMap, PAGE_SIZE, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u16, bool, &[u8])| {
    let (pages, root, second, bytes) = input;
    let [len, root_len] = [pages, root].map(|pages| u64::from(pages) * PAGE_SIZE);
    let Ok(map) = ExtentMap::parse(1 + u32::from(second), bytes, len, root_len) else { return };
    assert_eq!(map.stored_pages(), u64::from(pages));
    for extent in &map.extents {
        let most = if extent.source == Source::Root { root } else { pages };
        assert!(extent.end() <= map.bound && extent.file_page + extent.pages <= u64::from(most));
        assert_eq!(map.find(extent.start), Some(extent));
    }
    assert_eq!(Digest::of(&map.encode()), Digest::of(bytes), "one map has one encoding");
});
