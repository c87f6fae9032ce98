//! The list of hot blocks: what is written is what docs/formats/machine-file.md, 5.4, says, and nothing that a file says
//! can do harm.

use std::collections::BTreeSet;
use std::path::Path;

use artifact::{MachineFile, MachineFileWriter, SectionFlags, SectionHead, SectionKind};
use guestmem::GuestMemory;
use hv::{CodeMode, HotBlock};
use proptest::prelude::*;
use snapshot::{Error, HotBlocks, MOST_HOT};

const MEMORY: u64 = 4 << 20;
const USER: CodeMode = CodeMode::User64;
const SUPERVISOR: CodeMode = CodeMode::Supervisor64;

fn memory() -> GuestMemory {
    GuestMemory::new(MEMORY).unwrap()
}

fn hot(address: u64, mode: CodeMode, heat: u32) -> HotBlock {
    HotBlock { address, mode, heat }
}

/// A second reader, made from the page alone: class, mode, address of each place in the order of the file.
fn by_the_page(bytes: &[u8]) -> Vec<(u64, u64, u64)> {
    assert!(bytes.len().is_multiple_of(8) && bytes.len() <= 8 * 65_536);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let place = |n: u64| (n & 0x3f, n >> 6 & 0x3f, n >> 12);
    let places: Vec<_> = bytes.chunks(8).map(|bytes| place(number(bytes))).collect();
    let order = |p: &(u64, u64, u64)| (32 - p.0, p.2, p.1);
    assert!(places.iter().all(|p| p.0 <= 32 && p.1 <= 1));
    assert!(places.is_sorted_by_key(order));
    assert_eq!(places.iter().map(|p| (p.1, p.2)).collect::<BTreeSet<_>>().len(), places.len());
    places
}

/// What two vCPUs ran, and what was known before.
fn joined() -> HotBlocks {
    let ran = [
        hot(0x2345, USER, 0),
        hot(0x1000, USER, 9),
        hot(0x1000, SUPERVISOR, 3),
        hot(0x1fff, USER, u32::MAX),
        // Another vCPU's.
        hot(0x1000, USER, 7),
        hot(0x1fff, USER, 1),
    ];
    let before = [hot(0x1000, SUPERVISOR, 1000), hot(0x3000, USER, 6), hot(0x3001, USER, 1), hot(7, USER, 0)];
    HotBlocks::join(ran, &before)
}

#[test]
fn the_golden_section_is_what_the_page_says() {
    let golden = include_bytes!("golden/hot_blocks.bin");
    let expected =
        [(32, 1, 0x1fff), (9, 0, 0x1000), (5, 1, 0x1000), (2, 1, 0x3000), (0, 1, 0x2345), (0, 1, 0x3001)];
    assert_eq!(by_the_page(golden), expected);
    assert_eq!(joined().encode(), golden);
    let read = HotBlocks::decode(1, golden, &memory()).unwrap();
    let heats: Vec<_> = read.blocks().iter().map(|b| (b.address, b.mode, b.heat)).collect();
    let expected = [
        (0x1fff, USER, 1 << 31),
        (0x1000, SUPERVISOR, 256),
        (0x1000, USER, 16),
        (0x3000, USER, 2),
        (0x2345, USER, 0),
        (0x3001, USER, 0),
    ];
    assert_eq!(heats, expected);
}

#[test]
fn the_hottest_are_kept() {
    let ran = (0..70_000).map(|n| hot(n * 16, USER, (n as u32) / 1000));
    let blocks = HotBlocks::join(ran, &[]);
    let bytes = blocks.encode();
    assert_eq!(by_the_page(&bytes).len(), MOST_HOT);
    let coldest = blocks.blocks().iter().map(|b| b.heat).min();
    // Of the coldest, classes 0 to 2 with 4000 places, none is left, nor are 464 of class 3: heat 4 to 7.
    assert_eq!(coldest, Some(4));
    assert!(HotBlocks::decode(1, &bytes, &GuestMemory::new(MEMORY).unwrap()).is_ok());
}

#[test]
fn what_cannot_be_meant_is_passed_over() {
    let word = |address: u64, mode: u64, class: u64| (address << 12 | mode << 6 | class).to_le_bytes();
    let bytes = [
        word(0x1000, 0, 1),
        word(0x1000, 0, 9), // twice
        word(MEMORY - 1, 1, 32),
        word(MEMORY, 1, 3),      // beyond the memory
        word(0xd000_0000, 1, 3), // where there is no memory
        word((1 << 52) - 1, 1, 3),
        word(0x2000, 2, 3), // a mode that there is not
        word(0x2000, 63, 3),
        word(0x2000, 0, 33), // a class that there is not
        [0xff; 8],
    ]
    .concat();
    let read = HotBlocks::decode(1, &bytes, &memory()).unwrap();
    assert_eq!(read.blocks(), [hot(MEMORY - 1, USER, 1 << 31), hot(0x1000, SUPERVISOR, 1)]);
    assert!(matches!(HotBlocks::decode(1, &bytes[1..], &memory()), Err(Error::Malformed { .. })));
    let most = [0u8; 8 * MOST_HOT];
    assert_eq!(HotBlocks::decode(1, &most, &memory()).unwrap().blocks().len(), 1);
    assert!(matches!(HotBlocks::decode(1, &[0; 8 * MOST_HOT + 8], &memory()), Err(Error::Malformed { .. })));
    assert!(matches!(
        HotBlocks::decode(2, &bytes, &memory()),
        Err(Error::Version { found: 2, reads: 1, .. })
    ));
}

/// A file whose one section has these bytes.
fn file(path: &Path, version: u32, bytes: &[u8]) -> MachineFile {
    let mut writer = MachineFileWriter::create(path).unwrap();
    let head = SectionHead::new(SectionKind::HotBlocks, version);
    writer.add_bytes(SectionHead { flags: SectionFlags::IGNORABLE, ..head }, bytes).unwrap();
    writer.finish().unwrap();
    MachineFile::open_path(path).unwrap()
}

#[test]
fn a_file_without_a_list_that_can_be_read_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.smolmachine");
    let good = joined().encode();
    assert_eq!(HotBlocks::read(&file(&path, 1, &good), &memory()).encode(), good);
    assert_eq!(HotBlocks::read(&file(&path, 2, &good), &memory()), HotBlocks::default());
    assert_eq!(HotBlocks::read(&file(&path, 1, &good[1..]), &memory()), HotBlocks::default());
    assert_eq!(HotBlocks::read(&file(&path, 1, &vec![0; 8 * MOST_HOT + 8]), &memory()), HotBlocks::default());
    // Damaged since it was written.
    let opened = file(&path, 1, &good);
    let at = opened.section(SectionKind::HotBlocks).unwrap().offset;
    let write = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&write, &[0xee], at).unwrap();
    assert_eq!(HotBlocks::read(&opened, &memory()), HotBlocks::default());
}

#[test]
fn it_is_written_so_that_other_readers_pass_over_it_and_only_where_there_is_something() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.smolmachine");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    HotBlocks::default().write(&mut writer).unwrap();
    joined().write(&mut writer).unwrap();
    writer.finish().unwrap();
    let file = MachineFile::open_path(&path).unwrap();
    assert_eq!(file.sections().len(), 1);
    let section = file.section(SectionKind::HotBlocks).unwrap();
    assert_eq!((section.flags, section.version, &*section.name), (SectionFlags::IGNORABLE, 1, "hot-blocks"));
}

proptest! {
    /// Any bytes: an error, or places in memory, each once, hottest first; and what was read is written and read again.
    #[test]
    fn any_bytes_are_refused_or_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..512), small: bool) {
        let mut bytes = bytes;
        if small {
            // Addresses that may be in the memory.
            for word in bytes.chunks_mut(8) {
                word.iter_mut().skip(4).for_each(|byte| *byte = 0);
            }
        }
        let memory = memory();
        match HotBlocks::decode(1, &bytes, &memory) {
            Err(_) => prop_assert!(!bytes.len().is_multiple_of(8)),
            Ok(read) => {
                prop_assert!(read.blocks().len() <= bytes.len() / 8);
                prop_assert!(read.blocks().iter().all(|b| memory.is_ram(b.address, 1)));
                let again = HotBlocks::join(read.blocks().to_vec(), &[]);
                let encoded = again.encode();
                prop_assert_eq!(by_the_page(&encoded).len(), read.blocks().len());
                prop_assert_eq!(HotBlocks::decode(1, &encoded, &memory).unwrap(), read);
            }
        }
    }
}
