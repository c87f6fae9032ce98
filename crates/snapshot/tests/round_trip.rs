//! Saved state and memory through the public surface.

use std::path::Path;

use arch::x86_64::state::{Events, LapicState, MpState, Msrs, Segment, TableReg, VcpuState};
use artifact::{CopyCheck, MachineFile, MachineFileWriter, PageSet, SectionHead, SectionKind, Source};
use guestmem::GuestMemory;
use hv::{ClockState, CpuidLeaf, EngineKind};
use snapshot::{
    Error, MachineState, MemoryStats, Origin, Pages, PartState, STATE_VERSION, StillMemory, StoredPages,
    map_memory, stored_pages, write_memory,
};

fn vcpu() -> VcpuState {
    let segment = Segment { selector: 0x10, base: 1, limit: 2, attr: 3 };
    VcpuState {
        gpr: std::array::from_fn(|i| i as u64),
        rip: 0x1000,
        rflags: 2,
        seg: [segment; 6],
        tr: segment,
        ldtr: segment,
        gdtr: TableReg { base: 4, limit: 5 },
        idtr: TableReg { base: 6, limit: 7 },
        cr0: 1,
        cr2: 2,
        cr3: 3,
        cr4: 4,
        cr8: 5,
        dr: [0; 6],
        fxsave: vec![9; 512],
        msrs: Msrs { efer: 0x500, ..Msrs::default() },
        tsc: 77,
        lapic: LapicState { regs: vec![8; 1024], deadline_ticks: Some(99) },
        events: Events { exception: Some((14, Some(2))), ..Events::default() },
        mp_state: MpState::Halted,
    }
}

fn state() -> MachineState {
    MachineState {
        template_version: 1,
        cpuid: vec![CpuidLeaf { leaf: 1, subleaf: None, eax: 2, ebx: 3, ecx: 4, edx: 5 }],
        tsc_khz: 1_000_000,
        clock: ClockState { kvmclock_ns: 12345 },
        frozen_realtime_ns: 1,
        engine: EngineKind::Soft,
        vcpus: vec![vcpu()],
    }
}

#[test]
fn state_survives_and_its_encoding_is_pinned() {
    let bytes = state().encode().unwrap();
    assert_eq!(MachineState::decode(STATE_VERSION, &bytes).unwrap(), state());
    // A change here is a change of the format: see src/tripwires.rs.
    let digest = artifact::hash::Digest::of(&bytes).to_string();
    assert_eq!((bytes.len(), &digest[..16]), (1653, "3f379fb18fe82e84"));
}

#[test]
fn parts_survive() {
    let parts = vec![PartState::new("serial", &(1u8, "x")).unwrap()];
    let bytes = PartState::encode_all(&parts).unwrap();
    let back = PartState::decode_all(STATE_VERSION, &bytes).unwrap();
    assert_eq!(back, parts);
    assert_eq!(back[0].get::<(u8, String)>().unwrap(), (1, "x".to_owned()));
    for len in 0..bytes.len() {
        assert!(PartState::decode_all(STATE_VERSION, &bytes[..len]).is_err());
    }
}

#[test]
fn damaged_state_is_refused_and_never_panics() {
    let bytes = state().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(MachineState::decode(STATE_VERSION, &bytes[..len]).is_err());
    }
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0xff;
        let _ = MachineState::decode(STATE_VERSION, &bad);
    }
    assert!(matches!(MachineState::decode(2, &bytes), Err(Error::Version { .. })));
}

fn still(memory: &GuestMemory, origin: &Origin) -> StillMemory {
    let mut pages = PageSet::new(memory.page_count() as u64);
    pages.unite(&origin.parent.pages());
    pages.unite(&origin.above.pages());
    StillMemory::new(memory, &pages, true, &std::env::temp_dir()).unwrap()
}

fn write_all(writer: &mut MachineFileWriter, memory: &GuestMemory) -> MemoryStats {
    write_memory(writer, still(memory, &Origin::default()), Pages::All, None).unwrap()
}

fn fill(memory: &GuestMemory, page: u64, byte: u8) {
    memory.write(page << 12, &[byte; 4096]).unwrap();
}

fn same(a: &GuestMemory, b: &GuestMemory) {
    let (mut x, mut y) = ([0; 4096], [0; 4096]);
    for page in 0..a.page_count() {
        a.read_page(page, &mut x);
        b.read_page(page, &mut y);
        assert!(x == y, "page {page}");
    }
}

#[test]
fn the_instant_is_written_although_the_guest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let memory = GuestMemory::new(64 << 20).unwrap();
    let model = GuestMemory::new(64 << 20).unwrap();
    for page in (0..16_384).filter(|page| page % 3 != 0) {
        for memory in [&memory, &model] {
            fill(memory, page, (page % 250) as u8 + 1);
        }
    }
    let still = still(&memory, &Origin::default());
    assert!(StillMemory::new(&memory, &PageSet::new(16_384), true, dir.path()).is_err(), "one at a time");
    // By every way of writing, from two threads, beyond what is kept in memory, while it is read.
    let path = dir.path().join("m.smolmachine");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    std::thread::scope(|scope| {
        for step in [3u64, 5] {
            let memory = &memory;
            scope.spawn(move || {
                for page in (0..16_384).rev().filter(|page| page % step != 1) {
                    memory.store_u32(page << 12, 0xffff_ffff).unwrap();
                    memory.fill_zero((page << 12) + 100, 7).unwrap();
                    let _ = memory.compare_exchange_u64((page << 12) + 8, 0, 77).unwrap();
                }
            });
        }
        let stats = write_memory(&mut writer, still, Pages::All, None).unwrap();
        assert_eq!(stats.nonzero_pages, 10_922);
    });
    writer.finish().unwrap();
    let back = GuestMemory::new(64 << 20).unwrap();
    map_memory(&MachineFile::open_path(&path).unwrap(), None, &back).unwrap();
    same(&back, &model);
    // It is over: the next instant is of what the memory holds now.
    drop(self::still(&memory, &Origin::default()));
    assert_eq!(memory.read_le::<u32>(2 << 12).unwrap(), 0xffff_ffff);
}

#[test]
fn more_is_kept_than_fits_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let memory = GuestMemory::new(64 << 20).unwrap();
    (0..12_000).for_each(|page| fill(&memory, page, 1));
    let still = still(&memory, &Origin::default());
    (0..12_000).for_each(|page| fill(&memory, page, 2));
    assert_eq!(still.kept_pages(), 12_000);
    let path = dir.path().join("m.smolmachine");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    write_memory(&mut writer, still, Pages::All, None).unwrap();
    writer.finish().unwrap();
    let back = GuestMemory::new(64 << 20).unwrap();
    map_memory(&MachineFile::open_path(&path).unwrap(), None, &back).unwrap();
    for page in 0..12_000u64 {
        assert_eq!(back.read_le::<u64>(page << 12).unwrap(), 0x0101_0101_0101_0101, "page {page}");
    }
}

/// A file of 16 MiB, of which the pages 10 to 999 hold something.
fn parent(path: &Path) -> MachineFile {
    let memory = GuestMemory::new(16 << 20).unwrap();
    (10..1000).for_each(|page| fill(&memory, page, 1));
    let mut writer = MachineFileWriter::create(path).unwrap();
    write_all(&mut writer, &memory);
    writer.finish().unwrap();
    MachineFile::open_path(path).unwrap()
}

#[test]
fn changes_lie_over_their_parent() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let parent = parent(&path("parent"));
    let clone = GuestMemory::new(16 << 20).unwrap();
    let origin = map_memory(&parent, None, &clone).unwrap();
    fill(&clone, 500, 2);
    fill(&clone, 600, 0);
    fill(&clone, 2000, 3);
    fill(&clone, 2001, 0);
    let changes = |memory: &GuestMemory, origin: &Origin, name: &str| {
        let (below, above) = (origin.parent.pages(), origin.above.pages());
        let mut above_set = PageSet::new(4096);
        above_set.unite(&above);
        let mut writer = MachineFileWriter::create(&path(name)).unwrap();
        let pages = Pages::Changes { parent: &below, above: &above_set };
        let stats = write_memory(&mut writer, still(memory, origin), pages, None).unwrap();
        writer.set_parent(parent.id());
        writer.finish().unwrap();
        (MachineFile::open_path(&path(name)).unwrap(), stats)
    };
    let (first, stats) = changes(&clone, &origin, "first");
    assert_eq!(stats.nonzero_pages, 3);
    assert_eq!(first.parent(), Some(parent.id()));
    let second = GuestMemory::new(16 << 20).unwrap();
    let origin = map_memory(&first, Some(&parent), &second).unwrap();
    same(&second, &clone);
    // Changes of changes are all over the same parent.
    fill(&second, 501, 4);
    let (file, stats) = changes(&second, &origin, "second");
    assert_eq!(stats.nonzero_pages, 4);
    let third = GuestMemory::new(16 << 20).unwrap();
    map_memory(&file, Some(&parent), &third).unwrap();
    same(&third, &second);
}

#[test]
fn pages_that_were_given_back_are_zeros_also_over_a_parent() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let parent = parent(&path("parent"));
    let (clone, model) = (GuestMemory::new(16 << 20).unwrap(), GuestMemory::new(16 << 20).unwrap());
    let origin = map_memory(&parent, None, &clone).unwrap();
    map_memory(&parent, None, &model).unwrap();
    // Part of the file, never looked at; its end and what is behind it; pages that no file is behind; one again.
    for (first, pages) in [(100, 50), (990, 20), (2000, 100), (120, 1)] {
        (2000..2050).for_each(|page| fill(&clone, page, 7));
        fill(&clone, 120, 8);
        assert_eq!(clone.give_back(first << 12, pages << 12), pages << 12);
        (first..first + pages).for_each(|page| fill(&model, page, 0));
    }
    (2000..2050).for_each(|page| fill(&model, page, 7));
    same(&clone, &model);
    fill(&clone, 130, 9);
    fill(&model, 130, 9);
    let (below, above) = (origin.parent.pages(), PageSet::new(4096));
    let mut writer = MachineFileWriter::create(&path("changes")).unwrap();
    let pages = Pages::Changes { parent: &below, above: &above };
    write_memory(&mut writer, still(&clone, &origin), pages, None).unwrap();
    writer.set_parent(parent.id());
    writer.finish().unwrap();
    let back = GuestMemory::new(16 << 20).unwrap();
    map_memory(&MachineFile::open_path(&path("changes")).unwrap(), Some(&parent), &back).unwrap();
    same(&back, &model);
}

#[test]
fn memory_comes_back_copy_on_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.smolmachine");
    let memory = GuestMemory::new(16 << 20).unwrap();
    for page in [0u64, 1, 2, 700, 702, 4095] {
        memory.write(page << 12, &[(page % 251) as u8 + 1; 4096]).unwrap();
    }
    let mut writer = MachineFileWriter::create(&path).unwrap();
    let stats = write_all(&mut writer, &memory);
    assert_eq!((stats.nonzero_pages, stats.extents), (6, 4));
    writer.finish().unwrap();

    let file = MachineFile::open_path(&path).unwrap();
    let clones: Vec<GuestMemory> = (0..2).map(|_| GuestMemory::new(16 << 20).unwrap()).collect();
    for clone in &clones {
        map_memory(&file, None, clone).unwrap();
        for page in 0..clone.page_count() as u64 {
            assert_eq!(clone.read_le::<u64>(page << 12), memory.read_le::<u64>(page << 12), "page {page}");
        }
    }
    // Whoever goes around the type finds everything there, touched or not.
    let other = GuestMemory::new(16 << 20).unwrap();
    map_memory(&file, None, &other).unwrap();
    other.write(701 << 12, b"not in the file").unwrap();
    assert_eq!(other.regions().len(), 1);
    let bytes = [700u64, 701, 702].map(|page| other.read_le::<u8>(page << 12).unwrap());
    assert_eq!(bytes, [199, b'n', 201]);
    // A read over the edges of several pieces.
    let mut whole = vec![0; 16 << 20];
    other.read(0, &mut whole).unwrap();
    assert_eq!((whole[0], whole[(2 << 12) + 4095], whole[3 << 12], whole[4095 << 12]), (1, 3, 0, 80));
    clones[0].write(700 << 12, b"mine").unwrap();
    assert_eq!(clones[1].read_le::<u32>(700 << 12), memory.read_le::<u32>(700 << 12));
    assert!(clones[0].is_dirty(700) && !clones[1].is_dirty(700));
}

#[test]
fn a_map_for_another_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.smolmachine");
    let memory = GuestMemory::new(1 << 20).unwrap();
    memory.write(0, b"x").unwrap();
    let mut writer = MachineFileWriter::create(&path).unwrap();
    write_all(&mut writer, &memory);
    writer.finish().unwrap();
    let other = GuestMemory::new(2 << 20).unwrap();
    let file = MachineFile::open_path(&path).unwrap();
    assert!(matches!(map_memory(&file, None, &other), Err(Error::Malformed { .. })));
}

/// A page of its own.
fn page(number: u64) -> Vec<u8> {
    (0..4096u64).map(|i| (number * 31 + i * i + 7) as u8).collect()
}

/// A file with a root image of `pages` such pages.
fn base(path: &std::path::Path, pages: u64) -> MachineFile {
    let mut writer = MachineFileWriter::create(path).unwrap();
    let image: Vec<u8> = (0..pages).flat_map(page).collect();
    writer.add_bytes(SectionHead::new(SectionKind::RootImage, 1), &image).unwrap();
    writer.finish().unwrap();
    MachineFile::open_path(path).unwrap()
}

#[test]
fn pages_of_the_root_image_and_pages_over_and_over_are_not_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(&dir.path().join("base"), 100);
    let memory = GuestMemory::new(8 << 20).unwrap();
    let put = |at: u64, bytes: &[u8]| memory.write(at << 12, bytes).unwrap();
    // A file's pages in order, beside others; its end, which is the image's; too few of it; one page over and over.
    (0..40).for_each(|i| put(10 + i, &page(20 + i)));
    (0..16).for_each(|i| put(100 + i, &page(84 + i)));
    put(116, &page(1000));
    (0..15).for_each(|i| put(200 + i, &page(50 + i)));
    (0..500).for_each(|i| fill(&memory, 300 + i, 0xcc));
    put(800, b"x");
    let path = dir.path().join("m.smolmachine");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    writer.copy_section(&base, &base.sections()[0], CopyCheck::Rehash).unwrap();
    let stats =
        write_memory(&mut writer, still(&memory, &Origin::default()), Pages::All, Some(&base)).unwrap();
    writer.finish().unwrap();
    assert_eq!(stats.nonzero_pages, 40 + 16 + 1 + 15 + 500 + 1);
    assert_eq!(stats.stored_pages, 1 + 15 + 63 + 1);
    let file = MachineFile::open_path(&path).unwrap();
    let stored = stored_pages(&file).unwrap();
    let in_root = |piece: &&StoredPages| piece.source == Source::Root;
    let in_root: Vec<u64> = stored.iter().filter(in_root).map(|piece| piece.pages).collect();
    assert_eq!((in_root, stored.iter().map(|piece| piece.pages).sum()), (vec![40, 16], stats.nonzero_pages));
    let back = GuestMemory::new(8 << 20).unwrap();
    let origin = map_memory(&file, None, &back).unwrap();
    same(&back, &memory);
    // Copies share pages, not changes; what changed of them lies over them.
    back.write(20 << 12, b"mine").unwrap();
    back.write(400 << 12, b"mine").unwrap();
    let again = GuestMemory::new(8 << 20).unwrap();
    map_memory(&file, None, &again).unwrap();
    same(&again, &memory);
    let changes = dir.path().join("changes");
    let mut writer = MachineFileWriter::create(&changes).unwrap();
    let (parent, above) = (origin.parent.pages(), origin.above.pages());
    let pages = Pages::Changes { parent: &parent, above: &above };
    write_memory(&mut writer, still(&back, &origin), pages, None).unwrap();
    writer.finish().unwrap();
    let third = GuestMemory::new(8 << 20).unwrap();
    map_memory(&MachineFile::open_path(&changes).unwrap(), Some(&file), &third).unwrap();
    same(&third, &back);
}

#[test]
fn a_map_into_a_root_image_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(&dir.path().join("base"), 100);
    let memory = GuestMemory::new(1 << 20).unwrap();
    (0..40u64).for_each(|i| memory.write(i << 12, &page(i)).unwrap());
    let path = dir.path().join("m.smolmachine");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    write_memory(&mut writer, still(&memory, &Origin::default()), Pages::All, Some(&base)).unwrap();
    writer.finish().unwrap();
    let other = GuestMemory::new(1 << 20).unwrap();
    let refused = map_memory(&MachineFile::open_path(&path).unwrap(), None, &other).unwrap_err();
    assert!(refused.to_string().contains("beyond the root image"), "{refused}");
}
