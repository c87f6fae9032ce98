//! Files for the tests: a small machine file with every shape of section, and memory files to damage.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use artifact::{
    Extent, ExtentMap, MachineFile, MachineFileWriter, PageSet, Problem, SectionHead, SectionKind,
    VerifyOptions, plan_extents,
};

/// Bytes that look like nothing, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

/// A memory of 64 pages of which a few are not zero, and its map.
pub fn memory() -> (ExtentMap, Vec<u8>) {
    let mut nonzero = PageSet::new(64);
    for page in [0, 10, 11] {
        assert!(nonzero.insert(page));
    }
    let map = ExtentMap { bound: 64, extents: plan_extents(&nonzero, &[], 96, 20) };
    let pages = noise(7, map.stored_pages() as usize * 4096);
    (map, pages)
}

/// A snapshot in small: sections that end at a page, inside one, and that are empty.
pub fn write_small(path: &Path) -> MachineFile {
    let (map, pages) = memory();
    let mut writer = MachineFileWriter::create(path).unwrap();
    let head = |kind| SectionHead::new(kind, 1);
    writer.add_bytes(head(SectionKind::Spec), b"name = \"small\"").unwrap();
    writer.add_bytes(head(SectionKind::Kernel), &noise(1, 5000)).unwrap();
    writer.add_bytes(head(SectionKind::RootImage), &[]).unwrap();
    writer.add_bytes(head(SectionKind::MemoryMap), &map.encode()).unwrap();
    writer.add_bytes(head(SectionKind::MemoryPages), &pages).unwrap();
    writer.add_bytes(head(SectionKind::CpuState).instance(0).named("cpu0"), b"one").unwrap();
    writer.add_bytes(head(SectionKind::CpuState).instance(1).named("cpu1"), b"two").unwrap();
    let written = writer.finish().unwrap();
    let file = MachineFile::open_path(path).unwrap();
    assert_eq!((file.id(), file.len()), (written.id, written.len));
    file
}

/// The bytes of [`write_small`]'s file.
pub fn small_bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.smolmachine");
    write_small(&path);
    std::fs::read(path).unwrap()
}

/// A file whose memory map is of version 2.
pub fn shared_bytes() -> Vec<u8> {
    let extents = vec![Extent::stored(0, 2, 0), Extent::stored(2, 2, 0), Extent::in_root(9, 2, 1)];
    let map = ExtentMap { bound: 64, extents };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.smolmachine");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::RootImage, 1), &noise(3, 3 * 4096)).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::MemoryMap, map.version()), &map.encode()).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::MemoryPages, 1), &noise(4, 2 * 4096)).unwrap();
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// A file in memory.
pub fn memfile(bytes: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(bytes).unwrap();
    file
}

/// Opens and checks everything.
pub fn check(file: &File) -> Result<(), artifact::Error> {
    let file = MachineFile::open(file.try_clone().unwrap(), "test.smolmachine")?;
    file.verify_all(VerifyOptions { threads: 1, progress: None })
}

/// What is wrong with these bytes as a file.
pub fn problem(bytes: &[u8]) -> String {
    match check(&memfile(bytes)) {
        Ok(()) => panic!("accepted"),
        Err(error) => {
            assert!(!matches!(error.problem(), Problem::Misuse(_)), "{error}");
            error.to_string()
        }
    }
}

/// Writes one byte of a file.
pub fn poke(file: &File, at: u64, byte: u8) {
    file.write_all_at(&[byte], at).unwrap();
}
