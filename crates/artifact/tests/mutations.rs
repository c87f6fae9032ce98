//! The parser against files that lie: mutated bytes under digests that are right again, so that everything behind
//! the digests is reached. Whatever comes is a problem or a file whose promises hold; never a panic.
//!
//! The fuzz targets under fuzz/ do the same without an end.

mod common;

use artifact::{Digest, MachineFile, PAGE_SIZE, VerifyOptions};
use common::{memfile, noise, small_bytes};
use proptest::prelude::*;

/// Makes the header right for the index that is there.
fn reseal(bytes: &mut [u8]) {
    let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (offset, len) = (field(16), field(24));
    let index = offset.checked_add(len).and_then(|end| bytes.get(offset..end));
    if let Some(id) = index.map(Digest::of) {
        bytes[32..64].copy_from_slice(id.as_bytes());
    }
}

/// Opens the bytes; what opens keeps its promises.
fn probe(bytes: &[u8]) {
    let Ok(file) = MachineFile::open(memfile(bytes), "probe") else { return };
    let mut at = PAGE_SIZE;
    for section in file.sections() {
        assert_eq!(section.offset, at, "a section does not start where the one before ends");
        at = section.end().next_multiple_of(PAGE_SIZE);
        assert!(at < file.len(), "a section ends beyond the index");
        // At most the file's own length, whatever is asked for.
        if let Ok(bytes) = file.read_section(section, u64::MAX) {
            assert_eq!(bytes.len() as u64, section.len);
        }
    }
    let _ = file.verify_all(VerifyOptions { threads: 1, progress: None });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lies_in_header_and_index(
        pokes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            Just(0u64), Just(1), Just(u64::MAX), Just(i64::MAX as u64), Just(4096), any::<u64>(), 0u64..100_000,
        ], 1usize..9), 1..5),
        resealed in any::<bool>(),
    ) {
        let mut bytes = small();
        let index = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        let targets: Vec<usize> = (0..80).chain(index..bytes.len() - 8).collect();
        for (place, value, width) in pokes {
            let at = *place.get(&targets);
            bytes[at..at + width.min(8)].copy_from_slice(&value.to_le_bytes()[..width.min(8)]);
        }
        if resealed {
            reseal(&mut bytes);
        }
        probe(&bytes);
    }

    #[test]
    fn cut_grown_and_shuffled(cut in any::<prop::sample::Index>(), grow in 0usize..9000, swap in any::<bool>()) {
        let mut bytes = small();
        if swap {
            let middle = cut.index(bytes.len());
            bytes.rotate_left(middle);
        } else {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(noise(3, grow));
        probe(&bytes);
    }

    #[test]
    fn anything_at_all(seed in any::<u64>(), len in 0usize..9000, magic in any::<bool>()) {
        let mut bytes = noise(seed, len);
        if magic && len >= 12 {
            bytes[..12].copy_from_slice(b"\x89SMOLVM\n\x01\0\0\0");
        }
        probe(&bytes);
    }
}

fn small() -> Vec<u8> {
    static SMALL: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(small_bytes);
    SMALL.clone()
}

#[test]
fn each_lie_with_a_right_digest_is_refused() {
    let good = small();
    let index = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let entry = |n: usize, field: usize| index + 128 + n * 128 + field;
    // Place, bytes, and what the message says.
    let cases: [(usize, &[u8], &str); 15] = [
        (index + 8, &2u32.to_le_bytes(), "format 2"),
        (index + 12, &9u32.to_le_bytes(), "9 sections in"),
        (index + 16, &1u64.to_le_bytes(), "another length of the file"),
        (index + 24, &1u64.to_le_bytes(), "another length of itself"),
        (index + 32, &4u64.to_le_bytes(), "features 0x4"),
        (index + 48, &1u64.to_le_bytes(), "encryption scheme 1"),
        (index + 100, &[1], "must be zero"),
        (entry(1, 0), &1u32.to_le_bytes(), "is there twice"),
        (entry(1, 0), &99u32.to_le_bytes(), "(kind 99)"),
        (entry(1, 8), &2u32.to_le_bytes(), "flags 0x2"),
        (entry(1, 12), &1u32.to_le_bytes(), "codec 1"),
        (entry(1, 16), &4096u64.to_le_bytes(), "does not start where"),
        (entry(1, 24), &9u64.to_le_bytes(), "two lengths"),
        (entry(1, 80), b"A", "name is not"),
        (entry(1, 120), &[1], "must be zero"),
    ];
    for (at, lie, says) in cases {
        let mut bytes = good.clone();
        bytes[at..at + lie.len()].copy_from_slice(lie);
        reseal(&mut bytes);
        let message = MachineFile::open(memfile(&bytes), "lie").unwrap_err().to_string();
        assert!(message.contains(says), "{at}: {message}");
    }
    // Both lengths of a section, so that it reaches over the next ones, the index, or the end of numbers.
    for len in [0u64, 4096, 20_000, u64::MAX - 8192, u64::MAX] {
        let mut bytes = good.clone();
        let twice: Vec<u8> = [len.to_le_bytes(), len.to_le_bytes()].concat();
        bytes[entry(1, 24)..entry(1, 40)].copy_from_slice(&twice);
        reseal(&mut bytes);
        assert!(MachineFile::open(memfile(&bytes), "lie").is_err(), "{len}");
    }
}

#[test]
fn an_index_that_is_said_to_be_huge_is_not_read() {
    let good = small();
    for (offset, len) in [
        (4096u64, u64::MAX - 10_000),
        (4096, 1 << 62),
        (u64::MAX - 4095, 4096),
        (u64::MAX, 0),
        (0, 4096),
        (4097, 200),
        (1 << 62, 200),
        (4096, 0),
        (4096, good.len() as u64 - 4096),
    ] {
        let mut bytes = good.clone();
        bytes[16..24].copy_from_slice(&offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        reseal(&mut bytes);
        assert!(MachineFile::open(memfile(&bytes), "lie").is_err(), "{offset} {len}");
    }
}
