//! What every machine file that opens must keep.

use std::fs::File;
use std::io::Write;

use artifact::{ExtentMap, MachineFile, PAGE_SIZE, SectionKind, VerifyOptions};

/// Opens the bytes as a file in memory and checks what it promises.
pub fn probe(bytes: &[u8]) {
    let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let mut memory = File::from(fd);
    memory.write_all(bytes).expect("room for it");
    let Ok(file) = MachineFile::open(memory, "fuzz") else { return };
    let mut at = PAGE_SIZE;
    for section in file.sections() {
        assert_eq!(section.offset, at);
        at = section.end().next_multiple_of(PAGE_SIZE);
        assert!(at < file.len());
        if let Ok(bytes) = file.read_section(section, u64::MAX) {
            assert_eq!(bytes.len() as u64, section.len);
        }
    }
    let _ = file.verify_all(VerifyOptions { threads: 1, progress: None });
    let map = file.read_required(SectionKind::MemoryMap, 0, u64::MAX);
    let version = file.section(SectionKind::MemoryMap).map_or(0, |section| section.version);
    let root = file.section(SectionKind::RootImage).map_or(0, |section| section.len);
    let pages = file.require(SectionKind::MemoryPages, 0);
    if let (Ok(map), Ok(pages)) = (map, pages)
        && let Ok(map) = ExtentMap::parse(version, &map, pages.len, root)
    {
        assert_eq!(map.stored_pages() * PAGE_SIZE, pages.len);
    }
}
