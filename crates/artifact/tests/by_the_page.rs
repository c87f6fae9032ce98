//! A second reader, made from docs/formats/machine-file.md alone: it shares BLAKE3 with the crate and nothing else.
//! Where it and the golden file differ, page or crate is wrong.

use std::collections::BTreeMap;

const PAGE: u64 = 4096;

/// A section as the page describes it.
struct Entry {
    kind: u32,
    instance: u32,
    version: u32,
    name: String,
    bytes: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn page_up(at: u64) -> u64 {
    at.div_ceil(PAGE) * PAGE
}

fn zero(bytes: &[u8]) {
    assert!(bytes.iter().all(|&byte| byte == 0));
}

/// Sections 2 to 4 and 7 of the page.
fn read(file: &[u8]) -> Vec<Entry> {
    assert_eq!(file[..8], [0x89, 0x53, 0x4d, 0x4f, 0x4c, 0x56, 0x4d, 0x0a]);
    assert_eq!((u32_at(file, 8), u32_at(file, 12)), (1, 0));
    let (index_at, index_len) = (u64_at(file, 16), u64_at(file, 24));
    zero(&file[64..4096]);
    assert_eq!(page_up(index_at + index_len), file.len() as u64);
    let (index, padding) = file[index_at as usize..].split_at(index_len as usize);
    zero(padding);
    assert_eq!(file[32..64], *blake3::hash(index).as_bytes());

    assert_eq!(index[..8], *b"SMOLVMIX");
    let count = u32_at(index, 12) as u64;
    assert_eq!(u32_at(index, 8), 1);
    assert_eq!((u64_at(index, 16), u64_at(index, 24)), (file.len() as u64, index_len));
    assert_eq!(index_len, 128 * (1 + count));
    zero(&index[32..128]);

    let mut at = PAGE;
    let mut entries = Vec::new();
    for entry in index[128..].chunks(128) {
        let (offset, len) = (u64_at(entry, 16), u64_at(entry, 24));
        assert_eq!((u32_at(entry, 8), u32_at(entry, 12), offset, u64_at(entry, 32)), (0, 0, at, len));
        let bytes = file[at as usize..][..len as usize].to_vec();
        assert_eq!(entry[40..72], *blake3::hash(&bytes).as_bytes());
        at = page_up(offset + len);
        zero(&file[(offset + len) as usize..at as usize]);
        zero(&entry[76..80]);
        zero(&entry[112..128]);
        let name: Vec<u8> = entry[80..112].iter().copied().take_while(|&byte| byte != 0).collect();
        zero(&entry[80 + name.len()..112]);
        let name = String::from_utf8(name).unwrap();
        let (kind, instance, version) = (u32_at(entry, 0), u32_at(entry, 4), u32_at(entry, 72));
        entries.push(Entry { kind, instance, version, name, bytes });
    }
    assert_eq!(at, index_at);
    entries
}

/// Section 6 of the page: the pages that are stored.
fn memory(version: u32, map: &[u8], pages: &[u8], root: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    assert_eq!(map[..8], *b"SMOLVMEX");
    let (count, bound) = (u64_at(map, 8), u64_at(map, 16));
    assert_eq!(u64_at(map, 24) * PAGE, pages.len() as u64);
    assert_eq!(map.len() as u64, 32 + 24 * count);
    let mut memory = BTreeMap::new();
    let mut used = vec![0; pages.len() / PAGE as usize];
    for extent in map[32..].chunks(24) {
        let (start, number, place) = (u64_at(extent, 0), u64_at(extent, 8), u64_at(extent, 16));
        for page in 0..number {
            assert!(start + page < bound);
            let in_root = version == 2 && place >> 63 != 0;
            let (section, place) = if in_root { (root, place & !(1 << 63)) } else { (pages, place) };
            let at = ((place + page) * PAGE) as usize;
            assert!(memory.insert(start + page, section[at..at + PAGE as usize].to_vec()).is_none());
            if !in_root {
                used[(place + page) as usize] += 1;
            }
        }
    }
    let once = |n: &i32| if version == 1 { *n == 1 } else { *n >= 1 };
    assert!(used.iter().all(once));
    memory
}

#[test]
fn the_golden_file_is_what_the_page_says() {
    let entries = read(include_bytes!("golden/format1.bin"));
    let seen: Vec<_> = entries.iter().map(|e| (e.kind, e.instance, e.version, &*e.name)).collect();
    let expected = [
        (1, 0, 1, "spec"),
        (2, 0, 1, "kernel"),
        (4, 0, 1, "root-image"),
        (16, 0, 1, "memory-map"),
        (17, 0, 1, "memory-pages"),
        (18, 0, 1, "cpu0"),
        (18, 1, 1, "cpu1"),
    ];
    assert_eq!(seen, expected);
    assert_eq!(entries[0].bytes, b"name = \"small\"");
    assert_eq!((entries[1].bytes.len(), entries[2].bytes.len()), (5000, 0));
    assert_eq!((&*entries[5].bytes, &*entries[6].bytes), (&b"one"[..], &b"two"[..]));
    let memory = memory(entries[3].version, &entries[3].bytes, &entries[4].bytes, &entries[2].bytes);
    assert_eq!(memory.keys().copied().collect::<Vec<_>>(), [0, 10, 11]);
}

#[test]
fn the_golden_file_with_shared_pages_is_what_the_page_says() {
    let entries = read(include_bytes!("golden/shared.bin"));
    let seen: Vec<_> = entries.iter().map(|e| (e.kind, e.version)).collect();
    assert_eq!(seen, [(4, 1), (16, 2), (17, 1)]);
    let (root, pages) = (&entries[0].bytes, &entries[2].bytes);
    let memory = memory(2, &entries[1].bytes, pages, root);
    assert_eq!(memory.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 9, 10]);
    let page = |section: &[u8], n: usize| section[n * 4096..][..4096].to_vec();
    assert_eq!((&memory[&0], &memory[&2]), (&page(pages, 0), &page(pages, 0)));
    assert_eq!((&memory[&3], &memory[&9], &memory[&10]), (&page(pages, 1), &page(root, 1), &page(root, 2)));
}
