//! Machine files that lie consistently: the input is an index (and the bytes before it), the header and the digest
//! of the index are made right, so that everything behind the digest is reached.
#![no_main]

mod probe;

use artifact::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (pages, index) = input;
    let at = (1 + usize::from(pages) % 16) * 4096;
    let mut bytes = vec![0; at];
    bytes[..8].copy_from_slice(b"\x89SMOLVM\n");
    bytes[8] = 1;
    bytes[16..24].copy_from_slice(&(at as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&(index.len() as u64).to_le_bytes());
    let mut index = index.to_vec();
    // The head's fields that nothing passes without.
    let len = (at + index.len()).next_multiple_of(4096);
    if let Some(head) = index.get_mut(..8) {
        head.copy_from_slice(b"SMOLVMIX");
    }
    let index_len = index.len() as u64;
    for (place, value) in [(16, len as u64), (24, index_len)] {
        if let Some(field) = index.get_mut(place..place + 8) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes[32..64].copy_from_slice(Digest::of(&index).as_bytes());
    bytes.extend_from_slice(&index);
    bytes.resize(len, 0);
    probe::probe(&bytes);
});
