//! Pages that a resume touches, laid together in a file, through the public surface.

use std::path::Path;

use artifact::{CopyCheck, MachineFile, MachineFileWriter, PageSet, SectionHead, SectionKind};
use guestmem::GuestMemory;
use snapshot::{Error, Pages, StillMemory, Touched, WorkingSet, map_memory, write_laid_out, write_memory};

const SIZE: u64 = 160 << 20;

fn fill(memory: &GuestMemory, page: u64) {
    memory.write(page << 12, &page.to_le_bytes().repeat(512)).unwrap();
}

fn root_page(number: u64) -> Vec<u8> {
    (0..4096u64).map(|i| (number * 37 + i * i + 11) as u8).collect()
}

/// A memory of more pages than one thread looks through at a time, with pages at the seams and some of the root image.
fn memory() -> GuestMemory {
    let memory = GuestMemory::new(SIZE).unwrap();
    let runs = [(0, 3), (16_380, 8), (20_000, 400), (32_767, 2), (40_000, 900)];
    runs.iter().flat_map(|(first, pages)| *first..first + pages).for_each(|page| fill(&memory, page));
    (0..64).for_each(|i| memory.write((25_000 + i) << 12, &root_page(i + 4)).unwrap());
    memory
}

/// A file of it.
fn write(memory: &GuestMemory, path: &Path) -> MachineFile {
    let base_path = path.with_extension("base");
    let mut base = MachineFileWriter::create(&base_path).unwrap();
    let image: Vec<u8> = (0..100).flat_map(root_page).collect();
    base.add_bytes(SectionHead::new(SectionKind::RootImage, 1), &image).unwrap();
    base.finish().unwrap();
    let base = MachineFile::open_path(&base_path).unwrap();
    let mut writer = MachineFileWriter::create(path).unwrap();
    writer.copy_section(&base, &base.sections()[0], CopyCheck::Trust).unwrap();
    let still = StillMemory::new(memory, &PageSet::new(SIZE >> 12), true, &std::env::temp_dir()).unwrap();
    write_memory(&mut writer, still, Pages::All, Some(&base)).unwrap();
    writer.finish().unwrap();
    MachineFile::open_path(path).unwrap()
}

fn laid_out(file: &MachineFile, pages: &[u64], waking: usize, path: &Path) -> MachineFile {
    let touched = Touched { pages: pages.to_vec(), waking };
    let mut writer = MachineFileWriter::create(path).unwrap();
    writer.copy_section(file, &file.sections()[0], CopyCheck::Trust).unwrap();
    write_laid_out(&mut writer, file, &touched).unwrap();
    writer.finish().unwrap();
    MachineFile::open_path(path).unwrap()
}

#[test]
fn touched_pages_lie_together_and_memory_is_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let memory = memory();
    let file = write(&memory, &dir.path().join("m"));
    // What a reader touches is noted, of the file and beside it, also when all of it is mapped.
    let reader = GuestMemory::new(SIZE).unwrap();
    map_memory(&file, None, &reader).unwrap();
    reader.note_touches().unwrap();
    let all: Vec<u64> = (20_100..20_300).chain(40_500..40_600).chain([16_383, 25_010, 39_000]).collect();
    for page in &all {
        assert_eq!(reader.read_le::<u64>(page << 12).unwrap(), memory.read_le::<u64>(page << 12).unwrap());
    }
    let touched: Vec<u64> = reader.touched().into_iter().map(|page| page as u64).collect();
    assert_eq!(touched, all);

    let laid = laid_out(&file, &touched, touched.len(), &dir.path().join("laid"));
    let back = GuestMemory::new(SIZE).unwrap();
    map_memory(&laid, None, &back).unwrap();
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    for page in 0..(SIZE >> 12) as usize {
        memory.read_page(page, &mut a);
        back.read_page(page, &mut b);
        assert!(a == b, "page {page}");
    }
    let pages = |file: &MachineFile| file.require(SectionKind::MemoryPages, 0).unwrap().clone();
    assert_eq!(pages(&laid).len, pages(&file).len);
    // One of the root image, which stays there, and 301 at the front; the first is needed while the machine wakes, and
    // after that no more of it.
    let set = WorkingSet::read(&laid).unwrap().unwrap();
    let (front, root) = (pages(&laid).offset, laid.sections()[0].offset + (14 << 12));
    assert_eq!(set.ranges(), [(root, 1 << 12), (front, 301 << 12), (root, 1 << 12)]);
    let mut front = vec![0; 301 << 12];
    std::os::unix::fs::FileExt::read_exact_at(laid.file(), &mut front, pages(&laid).offset).unwrap();
    for (page, bytes) in all.iter().filter(|page| ![25_010, 39_000].contains(*page)).zip(front.chunks(4096)) {
        assert_eq!(bytes, page.to_le_bytes().repeat(512), "page {page}");
    }
    assert!(WorkingSet::read(&file).unwrap().is_none());
    // All of it was just read, so it is in the host's memory.
    set.read_first(laid.file());
    set.read_rest(laid.file());
    assert!(!set.is_cold(laid.file()));
}

#[test]
fn memory_that_is_used_while_it_is_read_ahead_is_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let memory = memory();
    let file = write(&memory, &dir.path().join("m"));
    let touched: Vec<u64> = (40_500..40_600).chain(20_100..20_300).chain([16_383]).collect();
    let laid = laid_out(&file, &touched, 100, &dir.path().join("laid"));
    let set = WorkingSet::read(&laid).unwrap().unwrap();
    let back = GuestMemory::new(SIZE).unwrap();
    map_memory(&laid, None, &back).unwrap();
    // What is touched and written meanwhile stays.
    set.read_first(laid.file());
    back.expect_reader();
    back.write_le(20_150 << 12, 7u64).unwrap();
    memory.write_le(20_150 << 12, 7u64).unwrap();
    set.read_rest(laid.file());
    back.reader_is_done();
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    for page in 0..(SIZE >> 12) as usize {
        memory.read_page(page, &mut a);
        back.read_page(page, &mut b);
        assert!(a == b, "page {page}");
    }
}

#[test]
fn a_working_set_beyond_its_sections_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&memory(), &dir.path().join("m"));
    let stored = file.require(SectionKind::MemoryPages, 0).unwrap().len >> 12;
    let with = |first: u64, runs: &[(u64, u64)], more: &[u8]| {
        let path = dir.path().join("w");
        let mut writer = MachineFileWriter::create(&path).unwrap();
        for section in file.sections() {
            writer.copy_section(&file, section, CopyCheck::Trust).unwrap();
        }
        let words = [first].into_iter().chain(runs.iter().flat_map(|(place, pages)| [*place, *pages]));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).chain(more.iter().copied()).collect();
        writer.add_bytes(SectionHead::new(SectionKind::WorkingSet, 2), &bytes).unwrap();
        writer.finish().unwrap();
        WorkingSet::read(&MachineFile::open_path(&path).unwrap())
    };
    let root = 1 << 63;
    assert_eq!(with(1, &[(0, stored), (root | 90, 10)], &[]).unwrap().unwrap().ranges().len(), 2);
    // Pages may be there twice, but not more of them than the file has.
    assert_eq!(
        with(2, &[(0, stored), (0, 60), (root | 90, 10), (5, 30)], &[]).unwrap().unwrap().ranges().len(),
        4
    );
    assert!(matches!(
        with(2, &[(0, stored), (0, 60), (root | 90, 10), (5, 31)], &[]),
        Err(Error::Malformed { .. })
    ));
    for bad in
        [(0, stored + 1), (stored, 1), (3, 0), (u64::MAX >> 1, 2), (root | 90, 11), (root | 1, u64::MAX)]
    {
        assert!(matches!(with(0, &[(0, 1), bad], &[]), Err(Error::Malformed { .. })), "{bad:?}");
    }
    assert!(matches!(with(0, &[(0, 1)], &[1]), Err(Error::Malformed { .. })));
    assert!(matches!(with(2, &[(0, 1)], &[]), Err(Error::Malformed { .. })));
    // More runs than anybody writes.
    assert!(matches!(with(0, &vec![(0, 1); 1025], &[]), Err(Error::File(_))));
}
