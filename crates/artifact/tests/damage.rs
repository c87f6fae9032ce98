//! No byte of a machine file can change unseen.

mod common;

use common::{check, memfile, poke, problem, small_bytes};

#[test]
fn every_flipped_byte_is_seen() {
    let bytes = small_bytes();
    let file = memfile(&bytes);
    check(&file).unwrap();
    for (at, &byte) in bytes.iter().enumerate() {
        // One bit each; which one depends on the place, so that each bit of each field has its turn.
        poke(&file, at as u64, byte ^ 1 << (at % 8));
        assert!(check(&file).is_err(), "byte {at} changed unseen");
        poke(&file, at as u64, byte);
    }
    check(&file).unwrap();
}

#[test]
fn every_bit_of_header_and_index_counts() {
    let bytes = small_bytes();
    let file = memfile(&bytes);
    let index = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
    for at in (0..200).chain(index..bytes.len()) {
        for bit in 0..8 {
            poke(&file, at as u64, bytes[at] ^ 1 << bit);
            assert!(check(&file).is_err(), "bit {bit} of byte {at} changed unseen");
        }
        poke(&file, at as u64, bytes[at]);
    }
}

#[test]
fn every_other_length_is_seen() {
    let bytes = small_bytes();
    let file = memfile(&bytes);
    let boundaries =
        (0..=bytes.len() as u64 + 8192).step_by(4096).flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    let some = (0..bytes.len() as u64).step_by(61);
    for len in boundaries.chain(some).filter(|&len| len != bytes.len() as u64) {
        file.set_len(len).unwrap();
        assert!(check(&file).is_err(), "{len} bytes of {}", bytes.len());
        file.set_len(bytes.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    }
    check(&file).unwrap();
}

#[test]
fn what_is_missing_is_said() {
    let bytes = small_bytes();
    for len in [3, 8, 100, 4095, 4096, 4097, 8192, bytes.len() - 1] {
        let message = problem(&bytes[..len]);
        assert!(message.contains("cut short"), "{len}: {message}");
        assert!(message.contains("test.smolmachine") && message.contains("again"), "{message}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(problem(&longer).contains("1 bytes follow"));
}

#[test]
fn swapped_sections_are_seen() {
    let bytes = small_bytes();
    // Two pages of memory; two index entries; a page of the kernel and one of memory.
    let index = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
    let pages = u64::from_le_bytes(bytes[index + 128 + 4 * 128 + 16..][..8].try_into().unwrap()) as usize;
    let swaps = [(pages, pages + 4096, 4096), (index + 128, index + 256, 128), (8192, pages, 4096)];
    for (a, b, len) in swaps {
        let mut swapped = bytes.clone();
        swapped[a..a + len].copy_from_slice(&bytes[b..b + len]);
        swapped[b..b + len].copy_from_slice(&bytes[a..a + len]);
        assert!(problem(&swapped).contains("damaged in"), "{a} {b}");
    }
}

#[test]
fn damage_is_named_with_its_place() {
    let bytes = small_bytes();
    let changed = |at: usize| {
        let mut changed = bytes.clone();
        changed[at] ^= 0x80;
        problem(&changed)
    };
    assert!(changed(8192 + 5).contains("section kernel at byte 8192"));
    assert!(changed(4096 + 4000).contains("padding after section spec at byte 8096"));
    assert!(changed(40).contains("the index"));
    assert!(changed(0).contains("text mode"));
    assert!(changed(2000).contains("the header at byte 2000"));
}

#[test]
fn a_newer_format_is_named() {
    let mut bytes = small_bytes();
    bytes[8] = 7;
    let message = problem(&bytes);
    assert!(message.contains("made by a newer smolvm (format 7; this one reads up to 1)"), "{message}");
    bytes[8] = 0;
    assert!(problem(&bytes).contains("version 0"));
}
