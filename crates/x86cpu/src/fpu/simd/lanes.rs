//! A 128-bit value as lanes and back. Through memory, not through a u128: LLVM then sees vectors.

use std::array::from_fn;

use super::super::insn::V;

pub fn bytes(v: &V) -> [u8; 16] {
    *v
}

pub fn words(v: &V) -> [u16; 8] {
    from_fn(|i| u16::from_le_bytes([v[2 * i], v[2 * i + 1]]))
}

pub fn dwords(v: &V) -> [u32; 4] {
    from_fn(|i| u32::from_le_bytes([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]]))
}

pub fn qwords(v: &V) -> [u64; 2] {
    let v = u128::from_le_bytes(*v);
    [v as u64, (v >> 64) as u64]
}

pub fn from_bytes(l: [u8; 16]) -> V {
    l
}

pub fn from_words(l: [u16; 8]) -> V {
    let mut b = [0u8; 16];
    for (d, s) in b.chunks_exact_mut(2).zip(l) {
        d.copy_from_slice(&s.to_le_bytes());
    }
    b
}

pub fn from_dwords(l: [u32; 4]) -> V {
    let mut b = [0u8; 16];
    for (d, s) in b.chunks_exact_mut(4).zip(l) {
        d.copy_from_slice(&s.to_le_bytes());
    }
    b
}

pub fn from_qwords(l: [u64; 2]) -> V {
    (u128::from(l[0]) | u128::from(l[1]) << 64).to_le_bytes()
}

/// The same of a value in registers, for kernels that work lane by lane anyway.
pub fn dwords_of(v: u128) -> [u32; 4] {
    from_fn(|i| (v >> (32 * i)) as u32)
}

pub fn qwords_of(v: u128) -> [u64; 2] {
    [v as u64, (v >> 64) as u64]
}

pub fn dwords_to(l: [u32; 4]) -> u128 {
    u128::from(l[0]) | u128::from(l[1]) << 32 | u128::from(l[2]) << 64 | u128::from(l[3]) << 96
}

pub fn qwords_to(l: [u64; 2]) -> u128 {
    u128::from(l[0]) | u128::from(l[1]) << 64
}

/// The low `bits` of `new` over `old`.
pub fn merge(old: u128, new: u128, bits: u32) -> u128 {
    let mask = (1u128 << bits) - 1;
    old & !mask | new & mask
}
