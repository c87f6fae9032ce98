//! The delta file: docs/formats/delta.md in code.

use std::io::{self, Read};

use artifact::Digest;
use artifact::hash::Hasher;

/// Bytes of a page.
pub const PAGE: usize = 4096;
pub const MAGIC: [u8; 8] = *b"\x89SMOLVD\n";
pub const VERSION: u32 = 1;
/// Bytes before the streams.
pub const HEAD: usize = 144;
/// Of those, before the digest.
const COVERED: usize = 112;

/// The head of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The file that it changes.
    pub old: Digest,
    /// The file that it makes.
    pub new: Digest,
    /// That file's length in bytes, whole pages.
    pub new_len: u64,
    /// Bytes of the three streams, compressed: what to do, pages, differences.
    pub streams: [u64; 3],
}

impl Head {
    /// With the digest of everything else; `rest` are the streams.
    pub fn encode(&self, rest: &[&[u8]]) -> [u8; HEAD] {
        let mut raw = [0; HEAD];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, self.old.as_bytes());
        put(48, self.new.as_bytes());
        put(80, &self.new_len.to_le_bytes());
        (0..).zip(self.streams).for_each(|(i, len): (usize, u64)| put(88 + i * 8, &len.to_le_bytes()));
        let mut hasher = Hasher::new();
        hasher.update(&raw[..COVERED]);
        rest.iter().for_each(|bytes| hasher.update(bytes));
        raw[COVERED..].copy_from_slice(hasher.finish().as_bytes());
        raw
    }

    /// Reads it; the digest is compared by [`check`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(raw: &[u8; HEAD]) -> Result<Self, Wrong> {
        if raw[..8] != MAGIC {
            return Err(Wrong::Foreign);
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&raw[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let digest = |at: usize| {
            let mut bytes = [0; 32];
            bytes.copy_from_slice(&raw[at..at + 32]);
            Digest::from_bytes(bytes)
        };
        let version = word(8) as u32;
        if version != VERSION {
            return Err(Wrong::Version(version));
        }
        let streams = [word(88), word(96), word(104)];
        let head = Head { old: digest(16), new: digest(48), new_len: word(80), streams };
        if word(8) >> 32 != 0 || !head.new_len.is_multiple_of(PAGE as u64) || head.len().is_none() {
            return Err(Wrong::Damaged("its head contradicts itself"));
        }
        Ok(head)
    }

    /// The file's length.
    pub fn len(&self) -> Option<u64> {
        self.streams.iter().try_fold(HEAD as u64, |sum, len| sum.checked_add(*len))
    }
}

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Foreign,
    Version(u32),
    Damaged(&'static str),
}

/// Whether `rest` is what the head was written with.
///
/// # Errors
/// The reader's.
pub fn check(raw: &[u8; HEAD], rest: &mut impl Read) -> io::Result<bool> {
    let mut hasher = Hasher::new();
    hasher.update(&raw[..COVERED]);
    let mut piece = vec![0; 256 * 1024];
    loop {
        match rest.read(&mut piece)? {
            0 => return Ok(raw[COVERED..] == hasher.finish().as_bytes()[..]),
            n => hasher.update(&piece[..n]),
        }
    }
}

/// What the next `count` pages of the new file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Zero {
        count: u64,
    },
    /// Pages of the old file from `from` on.
    Copy {
        from: u64,
        count: u64,
    },
    /// Pages of the second stream.
    Whole {
        count: u64,
    },
    /// Pages of the old file from `from` on, and for each 64-bit word what the third stream adds.
    Differ {
        from: u64,
        count: u64,
    },
}

impl Op {
    pub fn count(self) -> u64 {
        match self {
            Op::Zero { count } | Op::Copy { count, .. } | Op::Whole { count } | Op::Differ { count, .. } => {
                count
            }
        }
    }

    /// Writes it: count and kind in one varint, then the place as a step from `expected`, zigzag.
    pub fn write(self, expected: u64, to: &mut Vec<u8>) {
        let (kind, from) = match self {
            Op::Zero { .. } => (0, None),
            Op::Copy { from, .. } => (1, Some(from)),
            Op::Whole { .. } => (2, None),
            Op::Differ { from, .. } => (3, Some(from)),
        };
        write_varint(self.count() << 2 | kind, to);
        if let Some(from) = from {
            let step = from.wrapping_sub(expected) as i64;
            write_varint((step << 1 ^ step >> 63) as u64, to);
        }
    }

    /// Reads the next one.
    ///
    /// # Errors
    /// `InvalidData` for no operation; the reader's.
    pub fn read(expected: u64, from: &mut impl Read) -> io::Result<Self> {
        let word = read_varint(from)?;
        let count = word >> 2;
        let mut place = || {
            let step = read_varint(from)?;
            let step = (step >> 1) as i64 ^ -((step & 1) as i64);
            Ok::<u64, io::Error>(expected.wrapping_add(step as u64))
        };
        Ok(match word & 3 {
            0 => Op::Zero { count },
            1 => Op::Copy { from: place()?, count },
            2 => Op::Whole { count },
            _ => Op::Differ { from: place()?, count },
        })
    }
}

fn write_varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn read_varint(from: &mut impl Read) -> io::Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Word for word `new - old`.
pub fn difference(new: &[u8; PAGE], old: &[u8; PAGE]) -> [u8; PAGE] {
    combine(new, old, u64::wrapping_sub)
}

/// Undoes [`difference`].
pub fn sum(difference: &[u8; PAGE], old: &[u8; PAGE]) -> [u8; PAGE] {
    combine(difference, old, u64::wrapping_add)
}

fn combine(a: &[u8; PAGE], b: &[u8; PAGE], how: fn(u64, u64) -> u64) -> [u8; PAGE] {
    let mut out = [0; PAGE];
    let (a, b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    for (out, (a, b)) in out.as_chunks_mut::<8>().0.iter_mut().zip(a.iter().zip(b)) {
        *out = how(u64::from_le_bytes(*a), u64::from_le_bytes(*b)).to_le_bytes();
    }
    out
}

/// A zstd frame in memory.
///
/// # Errors
/// The library's.
pub fn stream(level: i32) -> io::Result<zstd::Encoder<'static, Vec<u8>>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level)?;
    // 128 MiB, the most that a reader takes unasked (zstd's ZSTD_WINDOWLOG_LIMIT_DEFAULT).
    encoder.window_log(27)?;
    encoder.long_distance_matching(true)?;
    Ok(encoder)
}
