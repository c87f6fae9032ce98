//! Deltas between machine files, as the program makes and uses them.

use std::fs;
use std::path::{Path, PathBuf};

use artifact::{MachineFile, MachineFileWriter, SectionHead, SectionKind};
use delta::{Error, apply, create};
use proptest::prelude::*;

const PAGE: usize = 4096;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn file(path: &Path, spec: &[u8], pages: &[u8]) -> MachineFile {
    let mut writer = MachineFileWriter::create(path).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::Spec, 1), spec).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::MemoryPages, 1), pages).unwrap();
    writer.finish().unwrap();
    MachineFile::open_path(path).unwrap()
}

struct Bench {
    _dir: tempfile::TempDir,
    old: MachineFile,
    new: MachineFile,
    delta: PathBuf,
    out: PathBuf,
}

impl Bench {
    fn new(old: &[u8], new: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (old, new) = (file(&at("old"), b"one", old), file(&at("new"), b"two", new));
        Self { old, new, delta: at("delta"), out: at("out"), _dir: dir }
    }

    /// Makes the delta, applies it, compares; its size.
    fn through(&self) -> delta::Report {
        let report = create(&self.old, &self.new, &self.delta).unwrap();
        assert_eq!(report.bytes, fs::metadata(&self.delta).unwrap().len());
        assert_eq!(apply(&self.old, &self.delta, &self.out).unwrap(), self.new.id());
        assert_eq!(fs::read(&self.out).unwrap(), fs::read(self.new.path()).unwrap());
        report
    }
}

#[test]
fn what_moved_costs_nothing_and_what_changed_little() {
    let old = noise(1, 300 * PAGE);
    let mut new = [&old[200 * PAGE..], &vec![0; 50 * PAGE], &old[..200 * PAGE], &noise(2, 2 * PAGE)].concat();
    new[17 * PAGE + 100] ^= 1;
    let report = Bench::new(&old, &new).through();
    // The changed one, and the files' own headers and indexes.
    assert!((1..=3).contains(&report.similar_pages) && report.same_pages == 299 + 50, "{report:?}");
    assert!(report.bytes < 5 * PAGE as u64, "{report:?}");
}

#[test]
fn addresses_that_moved_together_cost_little() {
    // Pages of pointers into a region that lies elsewhere the next time, as after a boot.
    let pages = |base: u64| -> Vec<u8> {
        let words = noise(3, 200 * PAGE)
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
            .collect::<Vec<_>>();
        let word = |(i, w): (usize, &u64)| if i % 3 == 0 { base + (w & 0xff_fff8) } else { w & 0xffff };
        words.iter().enumerate().flat_map(|pair| word(pair).to_le_bytes()).collect()
    };
    let report = Bench::new(&pages(0x5555_1234_5000), &pages(0x5601_9876_1000)).through();
    assert!(report.similar_pages >= 199 && report.bytes < 200 * PAGE as u64 / 50, "{report:?}");
}

#[test]
fn the_wrong_old_file_is_named() {
    let bench = Bench::new(&noise(1, PAGE), &noise(2, PAGE));
    create(&bench.old, &bench.new, &bench.delta).unwrap();
    let Err(error) = apply(&bench.new, &bench.delta, &bench.out) else { panic!("another file") };
    assert!(matches!(error, Error::OtherOld { .. }), "{error}");
    let Err(error) = apply(&bench.old, bench.old.path(), &bench.out) else { panic!("no delta") };
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(!bench.out.exists());
}

#[test]
fn a_damaged_delta_makes_nothing() {
    let bench = Bench::new(&noise(1, 20 * PAGE), &[noise(1, 10 * PAGE), noise(2, 3 * PAGE)].concat());
    create(&bench.old, &bench.new, &bench.delta).unwrap();
    let whole = fs::read(&bench.delta).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&bench.delta, &bytes).unwrap();
        assert!(apply(&bench.old, &bench.delta, &bench.out).is_err(), "byte {at}");
        fs::write(&bench.delta, &whole[..at]).unwrap();
        assert!(apply(&bench.old, &bench.delta, &bench.out).is_err(), "cut at {at}");
    }
    assert!(!bench.out.exists());
    assert_eq!(fs::read_dir(bench.out.parent().unwrap()).unwrap().count(), 3, "no leftovers");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_changed_the_new_file_comes_out(
        shape in prop::collection::vec((0u64..12, 0usize..PAGE, any::<u8>()), 0..60),
        len in 0usize..40,
    ) {
        let old: Vec<u8> = (0..len).flat_map(|n| noise(n as u64 % 9, PAGE)).collect();
        let new: Vec<u8> = shape.iter().flat_map(|(seed, at, byte)| {
            let mut page = if *seed == 11 { vec![0; PAGE] } else { noise(*seed, PAGE) };
            page[*at] ^= byte;
            page
        }).collect();
        Bench::new(&old, &new).through();
    }

    #[test]
    fn streams_that_nobody_wrote_end_in_an_error(garbage in prop::collection::vec(any::<u8>(), 144..600)) {
        // The digest of everything is right: only what it says is wild.
        let bench = Bench::new(&noise(1, PAGE), &noise(2, PAGE));
        create(&bench.old, &bench.new, &bench.delta).unwrap();
        let whole = fs::read(&bench.delta).unwrap();
        fs::write(&bench.delta, delta_with(&whole, &garbage)).unwrap();
        prop_assert!(apply(&bench.old, &bench.delta, &bench.out).is_err());
    }
}

/// The head of `whole` with `garbage` as operations that zstd unpacks, and a digest that fits (docs/formats/delta.md).
fn delta_with(whole: &[u8], garbage: &[u8]) -> Vec<u8> {
    let ops = zstd::encode_all(garbage, 1).unwrap();
    let empty = zstd::encode_all(&[][..], 1).unwrap();
    let mut head = whole[..112].to_vec();
    for (i, part) in [&ops, &empty, &empty].into_iter().enumerate() {
        head[88 + i * 8..][..8].copy_from_slice(&(part.len() as u64).to_le_bytes());
    }
    let rest = [ops, empty.clone(), empty].concat();
    let digest = artifact::Digest::of(&[head.clone(), rest.clone()].concat());
    [&head, &digest.as_bytes()[..], &rest].concat()
}
