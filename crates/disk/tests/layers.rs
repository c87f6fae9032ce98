//! Every layer against a model: a plain vector of bytes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use disk::{
    CLUSTER, Delta, DeltaMap, Disk, Extent, ExtentKind, FileDisk, LiveDisk, Overlay, Private, SparseDisk,
    SparseError, StillDisk, private_file,
};
use proptest::prelude::*;

const C: u64 = CLUSTER;

/// A file with recognisable bytes, never zero.
fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 7 + i) as u8 | 1).collect()
}

fn file_with(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

fn base(size: u64) -> (Arc<dyn Disk>, Vec<u8>) {
    let bytes = pattern(size);
    let mut padded = vec![0xee; 100];
    padded.extend(&bytes);
    padded.extend([0xee; 100]);
    (Arc::new(FileDisk::section(file_with(&padded), 100, size).unwrap()), bytes)
}

fn overlay(size: u64) -> (Arc<Overlay>, Vec<u8>) {
    let (base, model) = base(size);
    (Arc::new(Overlay::new(base, tempfile::tempfile().unwrap()).unwrap()), model)
}

fn all(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xaa; disk.size() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// An overlay's changes: the map and the section.
fn delta(still: StillDisk, below: usize) -> Delta {
    let mut section = tempfile::tempfile().unwrap();
    let map = still.write_delta(below, |bytes| section.write_all(bytes)).unwrap();
    let len = map.data_len();
    assert_eq!(section.metadata().unwrap().len(), len);
    let section = (len > 0).then(|| FileDisk::section(Arc::new(section), 0, len).unwrap());
    Delta { map, section }
}

fn still(overlay: &Arc<Overlay>) -> StillDisk {
    StillDisk::new(overlay, &std::env::temp_dir()).unwrap()
}

fn from_deltas(base: Arc<dyn Disk>, deltas: Vec<Delta>) -> Arc<Overlay> {
    Arc::new(Overlay::from_deltas(base, deltas, tempfile::tempfile().unwrap()).unwrap())
}

/// Freezes an overlay and gives what a resumed machine would have.
fn refreeze(overlay: &Arc<Overlay>, base: Arc<dyn Disk>) -> (Arc<Overlay>, DeltaMap) {
    let delta = delta(still(overlay), 0);
    let map = delta.map.clone();
    (from_deltas(base, vec![delta]), map)
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, u8),
    Discard(u64, u64),
    Zero(u64, u64),
    Read(u64, u64),
    Freeze,
}

const SIZE: u64 = 24 * C + 512;

fn range() -> impl Strategy<Value = (u64, u64)> {
    let sectors = SIZE / 512;
    prop_oneof![
        (0..sectors).prop_flat_map(move |s| (Just(s * 512), (0..=sectors - s).prop_map(|n| n * 512))),
        (0..24u64).prop_flat_map(|c| (Just(c * C), (1..=24 - c).prop_map(|n| n * C))),
        (0..SIZE).prop_flat_map(|o| (Just(o), 0..=(SIZE - o).min(9000))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((o, l), v)| Op::Write(o, l, v)),
        2 => range().prop_map(|(o, l)| Op::Discard(o, l)),
        2 => range().prop_map(|(o, l)| Op::Zero(o, l)),
        3 => range().prop_map(|(o, l)| Op::Read(o, l)),
        1 => Just(Op::Freeze),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn an_overlay_is_a_vector_of_bytes(ops in prop::collection::vec(op(), 1..40)) {
        let (base, mut model) = base(SIZE);
        let mut disk = Arc::new(Overlay::new(base.clone(), tempfile::tempfile().unwrap()).unwrap());
        for op in ops {
            match op {
                Op::Write(o, l, v) => {
                    let bytes: Vec<u8> = (0..l).map(|i| v.wrapping_mul(i as u8 | 1)).collect();
                    disk.write_at(o, &bytes).unwrap();
                    model[o as usize..(o + l) as usize].copy_from_slice(&bytes);
                }
                Op::Discard(o, l) => {
                    disk.discard(o, l).unwrap();
                    let (first, last) = (o.next_multiple_of(C), (o + l) / C * C);
                    if first < last {
                        model[first as usize..last as usize].fill(0);
                    }
                }
                Op::Zero(o, l) => {
                    disk.write_zeroes(o, l).unwrap();
                    model[o as usize..(o + l) as usize].fill(0);
                }
                Op::Read(o, l) => {
                    let mut bytes = vec![1; l as usize];
                    disk.read_at(o, &mut bytes).unwrap();
                    prop_assert_eq!(&bytes[..], &model[o as usize..(o + l) as usize]);
                }
                Op::Freeze => disk = refreeze(&disk, base.clone()).0,
            }
        }
        prop_assert_eq!(all(&*disk), model);
    }

    /// Hostile maps: accepted only when in order, inside the disk and of the section's length.
    #[test]
    fn random_maps_are_refused_or_harmless(
        extents in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>(), 0..3u8), 0..6),
        size in prop_oneof![Just(64 * C), any::<u64>()],
    ) {
        let (base, _) = base(64 * C);
        let small = |v: u64, s: u8| if s == 0 { v } else { v % 16 };
        let extents = extents.into_iter().map(|(f, c, d, s)| Extent {
            first: small(f, s),
            count: small(c, s),
            kind: if d { ExtentKind::Data } else { ExtentKind::Zero },
        });
        let map = DeltaMap { disk_size: size, extents: extents.collect() };
        let section = FileDisk::section(file_with(&pattern(8 * C)), 0, 8 * C).unwrap();
        let deltas = vec![Delta { map, section: Some(section) }];
        if let Ok(disk) = Overlay::from_deltas(base, deltas, tempfile::tempfile().unwrap()) {
            all(&disk);
        }
    }
}

#[test]
fn an_instance_costs_what_it_changed() {
    let (base, _) = base(64 * C);
    let file = tempfile::tempfile().unwrap();
    let disk = Overlay::new(base, file.try_clone().unwrap()).unwrap();
    disk.write_at(60 * C, &[1; CLUSTER as usize]).unwrap();
    assert_eq!(disk.stats().private_bytes, C);
    assert!(file.metadata().unwrap().blocks() * 512 <= 4 * C, "the file is sparse");
    disk.write_at(5 * C + 1, &[2]).unwrap();
    assert_eq!(disk.stats().private_bytes, 2 * C);
    disk.discard(0, 64 * C).unwrap();
    let stats = disk.stats();
    assert_eq!((stats.private_bytes, stats.zeroed_bytes), (0, 64 * C));
    assert_eq!(file.metadata().unwrap().blocks(), 0, "holes were given back");
}

#[test]
fn a_delta_holds_the_changes_of_both_layers_and_no_zeros() {
    let (disk, _) = overlay(64 * C);
    let (base, mut model) = base(64 * C);
    disk.write_at(3 * C, &[1; 2 * CLUSTER as usize]).unwrap();
    disk.write_at(9 * C, &[0; CLUSTER as usize]).unwrap();
    let (second, map) = refreeze(&disk, base.clone());
    let extent = |first, count, kind| Extent { first, count, kind };
    assert_eq!(map.extents, [extent(3, 2, ExtentKind::Data), extent(9, 1, ExtentKind::Zero)]);
    assert_eq!(second.stats().private_bytes, 0);
    second.write_at(4 * C, &[2; 2 * CLUSTER as usize]).unwrap();
    second.discard(3 * C, C).unwrap();
    let (third, map) = refreeze(&second, base);
    assert_eq!(
        map.extents,
        [extent(3, 1, ExtentKind::Zero), extent(4, 2, ExtentKind::Data), extent(9, 1, ExtentKind::Zero)]
    );
    model[3 * C as usize..4 * C as usize].fill(0);
    model[4 * C as usize..6 * C as usize].fill(2);
    model[9 * C as usize..10 * C as usize].fill(0);
    assert_eq!(all(&*third), model);
    assert_eq!(refreeze(&overlay(C).0, overlay_base(C)).1.extents, []);
}

fn overlay_base(size: u64) -> Arc<dyn Disk> {
    base(size).0
}

#[test]
fn a_full_host_disk_is_an_error_and_loses_nothing() {
    let (base, model) = base(8 * C);
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let disk = Overlay::new(base, full).unwrap();
    for (offset, len) in [(0, C), (100, 10), (C, 4 * C)] {
        let failed = disk.write_at(offset, &vec![9; len as usize]).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    }
    assert!(disk.write_zeroes(10, 10).is_err());
    assert_eq!(all(&disk), model);
}

#[test]
fn ranges_beyond_the_end_are_refused() {
    let (disk, model) = overlay(2 * C);
    let (base, _) = base(2 * C);
    for (offset, len) in [(2 * C, 1), (2 * C - 1, 2), (u64::MAX, 2), (u64::MAX - 1, 1)] {
        let mut bytes = vec![0; len as usize];
        for disk in [&*disk as &dyn Disk, &*base] {
            assert_eq!(disk.read_at(offset, &mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(disk.write_at(offset, &bytes).is_err());
        assert!(disk.discard(offset, len).is_err());
        assert!(disk.write_zeroes(offset, len).is_err());
    }
    assert_eq!(all(&*disk), model);
}

#[test]
fn sections_are_read_only_and_inside_their_file() {
    let (base, _) = base(C);
    assert!(base.is_read_only());
    assert_eq!(base.write_at(0, &[1]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert!(base.discard(0, C).is_err() && base.write_zeroes(0, C).is_err());
    base.flush().unwrap();
    let file = file_with(&[0; 1000]);
    for (start, size) in [(0, 1001), (1000, 1), (u64::MAX, 2), (0, 0)] {
        assert!(FileDisk::section(file.clone(), start, size).is_err(), "{start} {size}");
    }
}

#[test]
fn a_writable_file_is_changed_in_place() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * C).unwrap();
    let disk = FileDisk::writable(file.try_clone().unwrap()).unwrap();
    assert!(!disk.is_read_only());
    disk.write_at(10, &[7; 5000]).unwrap();
    disk.flush().unwrap();
    disk.write_zeroes(12, 4990).unwrap();
    disk.discard(2 * C, C).unwrap();
    let mut model = vec![0; 4 * C as usize];
    model[10..12].fill(7);
    model[5002..5010].fill(7);
    assert_eq!(all(&disk), model);
    assert!(FileDisk::writable(tempfile::tempfile().unwrap()).is_err(), "an empty file is no disk");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written or punched after the instant, before the copy is finished and while it is.
    #[test]
    fn a_copy_is_of_the_instant(
        before in prop::collection::vec(change(), 0..12),
        early in prop::collection::vec(change(), 0..12),
        late in prop::collection::vec(change(), 0..12),
    ) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LIVE).unwrap();
        let disk = Arc::new(LiveDisk::new(file, true).unwrap());
        before.iter().for_each(|change| change.apply(&*disk));
        let (mut model, to) = (all(&*disk), tempfile::tempfile().unwrap());
        let copy = disk.copy(to.try_clone().unwrap()).unwrap();
        prop_assert!(disk.copy(tempfile::tempfile().unwrap()).is_err(), "one at a time");
        early.iter().for_each(|change| change.apply(&*disk));
        std::thread::scope(|scope| {
            scope.spawn(|| late.iter().for_each(|change| change.apply(&*disk)));
            copy.finish().unwrap();
        });
        prop_assert!(all(&FileDisk::writable(to).unwrap()) == model);
        // And the disk itself took every change.
        early.iter().chain(&late).for_each(|change| change.apply_to(&mut model));
        prop_assert!(all(&*disk) == model);
        let next = tempfile::tempfile().unwrap();
        disk.copy(next.try_clone().unwrap()).unwrap().finish().unwrap();
        prop_assert!(all(&FileDisk::writable(next).unwrap()) == model);
    }
}

#[test]
fn a_copy_that_cannot_be_made_or_is_given_up_leaves_the_disk_as_it_is() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LIVE).unwrap();
    let disk = Arc::new(LiveDisk::new(file, true).unwrap());
    disk.write_at(0, &[1; 4096]).unwrap();
    // A file that is open for reading only takes nothing.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("to");
    std::fs::write(&path, vec![0; LIVE as usize]).unwrap();
    assert!(disk.copy(File::open(&path).unwrap()).is_err());
    disk.write_at(0, &[2; 4096]).unwrap();
    let copy = disk.copy(File::options().read(true).write(true).open(&path).unwrap()).unwrap();
    disk.write_at(0, &[3; 4096]).unwrap();
    drop(copy);
    disk.write_at(0, &[4; 4096]).unwrap();
    assert_eq!(all(&*disk)[0], 4);
}

/// Some pieces that are copied at a time, and a part of one.
const LIVE: u64 = 5 * (64 << 10) + 3 * 512;

#[derive(Clone, Debug)]
enum Change {
    Write(u64, u64, u8),
    Discard(u64, u64),
    Zero(u64, u64),
}

impl Change {
    fn apply(&self, disk: &dyn Disk) {
        match *self {
            Self::Write(at, len, byte) => disk.write_at(at, &vec![byte; len as usize]),
            Self::Discard(at, len) => disk.discard(at, len),
            Self::Zero(at, len) => disk.write_zeroes(at, len),
        }
        .unwrap();
    }

    fn apply_to(&self, model: &mut [u8]) {
        let (at, len, byte) = match *self {
            Self::Write(at, len, byte) => (at, len, byte),
            Self::Discard(at, len) | Self::Zero(at, len) => (at, len, 0),
        };
        model[at as usize..(at + len) as usize].fill(byte);
    }
}

fn change() -> impl Strategy<Value = Change> {
    let sectors = LIVE / 512;
    (0..3u8, 0..sectors, 0..sectors, 1..=255u8).prop_map(move |(kind, at, len, byte)| {
        let (at, len) = (at * 512, len.min(sectors - at) * 512);
        match kind {
            0 => Change::Write(at, len.min(40_000), byte),
            1 => Change::Discard(at, len),
            _ => Change::Zero(at, len),
        }
    })
}

fn list(size: u64, blocks: &[u64]) -> Vec<u8> {
    let mut bytes = size.to_le_bytes().to_vec();
    bytes.extend((blocks.len() as u32).to_le_bytes());
    for block in blocks {
        bytes.extend(block.to_le_bytes());
        bytes.extend([*block as u8 | 0x80; CLUSTER as usize]);
    }
    bytes
}

#[test]
fn a_blank_file_system_of_16_gib_is_a_short_list() {
    let size = 16 << 30;
    let last = size / C - 1;
    let disk = SparseDisk::new(list(size, &[last, 3, 4])).unwrap();
    assert_eq!(disk.size(), size);
    let mut bytes = vec![9; 4 * CLUSTER as usize];
    disk.read_at(2 * C + 10, &mut bytes).unwrap();
    let mut model = vec![0; C as usize - 10];
    model.extend([0x83; CLUSTER as usize]);
    model.extend([0x84; CLUSTER as usize]);
    model.extend(vec![0; C as usize + 10]);
    assert_eq!(bytes, model);
    disk.read_at(size - 3, &mut bytes[..3]).unwrap();
    assert_eq!(bytes[..3], [0xff; 3]);
    let overlay = Overlay::new(Arc::new(disk), private_file(&std::env::temp_dir()).unwrap()).unwrap();
    let overlay = Arc::new(overlay);
    overlay.write_at(size - 2 * C, &[1; CLUSTER as usize]).unwrap();
    overlay.read_at(size - 2 * C, &mut bytes[..2]).unwrap();
    assert_eq!(bytes[..2], [1, 1]);
    // Few changes, far apart, in both tables: the walk over them visits each once.
    for gib in 0..15u64 {
        overlay.write_at(gib << 30, &[gib as u8 + 1; CLUSTER as usize]).unwrap();
        overlay.discard((gib << 30) + 9 * C, C).unwrap();
    }
    let mut sum = 0;
    let count = |bytes: &[u8]| {
        sum += bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
        Ok(())
    };
    let map = still(&overlay).write_delta(0, count).unwrap();
    assert_eq!((map.extents.len(), map.data_len(), sum), (31, 16 * C, 121 * C));
}

#[test]
fn broken_lists_are_refused() {
    for bytes in [&[][..], &[0; 11]] {
        assert!(matches!(SparseDisk::new(bytes), Err(SparseError::Length { .. })));
    }
    let mut long = list(C, &[0]);
    long.push(0);
    assert!(matches!(SparseDisk::new(long), Err(SparseError::Length { .. })));
    let mut lying = list(C, &[]);
    lying[8..12].fill(0xff);
    assert!(matches!(SparseDisk::new(lying), Err(SparseError::Length { .. })));
    for size in [0, 100, u64::MAX, 8 << 40] {
        assert_eq!(SparseDisk::new(list(size, &[])).unwrap_err(), SparseError::Size { size });
    }
    assert_eq!(SparseDisk::new(list(4 * C, &[1, 4])).unwrap_err(), SparseError::Block { index: 4 });
    assert_eq!(SparseDisk::new(list(4 * C, &[1, 1])).unwrap_err(), SparseError::Block { index: 1 });
}

#[test]
fn an_instant_stays_as_it_was_while_the_disk_is_written() {
    let (disk, _) = overlay(256 * C);
    disk.write_at(0, &[1; 100 * CLUSTER as usize]).unwrap();
    disk.discard(100 * C, 10 * C).unwrap();
    let before = all(&*disk);
    let still = still(&disk);
    assert!(StillDisk::new(&disk, &std::env::temp_dir()).is_err(), "one at a time");
    // Every way of changing a cluster that the instant has, twice, and clusters that it has not.
    disk.write_at(5, &[2; 3]).unwrap();
    disk.write_at(8 * C, &[3; 20 * CLUSTER as usize]).unwrap();
    disk.discard(40 * C, 20 * C).unwrap();
    disk.write_at(41 * C, &[4; CLUSTER as usize]).unwrap();
    disk.write_zeroes(70 * C + 7, 3 * C).unwrap();
    disk.write_at(104 * C, &[5; 100]).unwrap();
    disk.write_at(200 * C, &[6; CLUSTER as usize]).unwrap();
    let after = all(&*disk);
    let (base, _) = base(256 * C);
    let resumed = from_deltas(base, vec![delta(still, 0)]);
    assert!(all(&*resumed) == before);
    assert!(all(&*disk) == after, "the disk itself is what was written");
    drop(StillDisk::new(&disk, &std::env::temp_dir()).unwrap());
}

#[test]
fn only_what_lies_above_a_layer_is_written_when_that_is_asked() {
    let (disk, _) = overlay(64 * C);
    disk.write_at(0, &[1; 4 * CLUSTER as usize]).unwrap();
    let (base, _) = base(64 * C);
    let first = delta(still(&disk), 0);
    let again = delta(still(&disk), 0);
    let second = from_deltas(base.clone(), vec![first]);
    second.write_at(2 * C, &[2; CLUSTER as usize]).unwrap();
    second.discard(3 * C, C).unwrap();
    let want = all(&*second);
    let above = delta(still(&second), 1);
    let extent = |first, kind| Extent { first, count: 1, kind };
    assert_eq!(above.map.extents, [extent(2, ExtentKind::Data), extent(3, ExtentKind::Zero)]);
    let third = from_deltas(base, vec![again, above]);
    assert!(all(&*third) == want);
    third.write_at(0, &[3; 10]).unwrap();
    let map = delta(still(&third), 1).map;
    assert_eq!(map.extents.iter().map(|e| e.count).sum::<u64>(), 3, "{map:?}");
}

#[test]
fn the_file_of_changes_is_made_where_it_belongs_by_then_and_not_before() {
    let (base, model) = base(5 * CLUSTER);
    let nowhere = std::env::temp_dir().join("there is no such directory");
    let disk = Overlay::new(base, Private::later(&nowhere)).unwrap();
    assert_eq!(all(&disk), model, "reading needs no file");
    disk.discard(0, CLUSTER).unwrap();
    let refused = disk.write_at(CLUSTER, &[1; 10]).unwrap_err();
    assert!(refused.to_string().contains("there is no such directory"), "{refused}");
    disk.keep_in(&std::env::temp_dir());
    disk.write_at(CLUSTER, &[1; 10]).unwrap();
    // It is there: another place is too late.
    disk.keep_in(&nowhere);
    disk.write_at(3 * CLUSTER, &[2; 10]).unwrap();
    let mut expected = model;
    expected[..CLUSTER as usize].fill(0);
    expected[CLUSTER as usize..][..10].fill(1);
    expected[3 * CLUSTER as usize..][..10].fill(2);
    assert_eq!(all(&disk), expected);
}
