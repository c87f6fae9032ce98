//! A 128-bit value as lanes and back. LLVM turns these into register moves.

use std::array::from_fn;

pub fn bytes(v: u128) -> [u8; 16] {
    v.to_le_bytes()
}

pub fn words(v: u128) -> [u16; 8] {
    let b = v.to_le_bytes();
    from_fn(|i| u16::from_le_bytes([b[2 * i], b[2 * i + 1]]))
}

pub fn dwords(v: u128) -> [u32; 4] {
    from_fn(|i| (v >> (32 * i)) as u32)
}

pub fn qwords(v: u128) -> [u64; 2] {
    [v as u64, (v >> 64) as u64]
}

pub fn from_bytes(l: [u8; 16]) -> u128 {
    u128::from_le_bytes(l)
}

pub fn from_words(l: [u16; 8]) -> u128 {
    let mut b = [0u8; 16];
    for (d, s) in b.chunks_exact_mut(2).zip(l) {
        d.copy_from_slice(&s.to_le_bytes());
    }
    u128::from_le_bytes(b)
}

pub fn from_dwords(l: [u32; 4]) -> u128 {
    u128::from(l[0]) | u128::from(l[1]) << 32 | u128::from(l[2]) << 64 | u128::from(l[3]) << 96
}

pub fn from_qwords(l: [u64; 2]) -> u128 {
    u128::from(l[0]) | u128::from(l[1]) << 64
}

/// The low `bits` of `new` over `old`.
pub fn merge(old: u128, new: u128, bits: u32) -> u128 {
    let mask = (1u128 << bits) - 1;
    old & !mask | new & mask
}
