//! BLAKE3 digests, and a whole range hashed by several threads.
//!
//! A digest is plain, unkeyed BLAKE3 (256 bits) of the bytes; BLAKE3 is itself a Merkle tree, so that parts of
//! a range can be hashed apart and joined ([`digest_parallel`]). The tree is the one of the BLAKE3 paper,
//! section 2.1: 1 KiB chunks, the left subtree holding the largest power of two of chunks that leaves
//! something for the right one.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// How much one thread loads and hashes at a time: a power of two of BLAKE3 chunks, small enough that the
/// bytes are still in the core's own cache when they are hashed.
const GROUP: usize = 256 * 1024;

/// More threads than this gain nothing: memory bandwidth is the limit.
const MOST_THREADS: usize = 8;

/// A BLAKE3 digest. Shown as 64 lower-case hexadecimal digits, and read back from exactly that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// A digest from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits, for tables.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: 64 hexadecimal digits (0-9, a-f) are needed")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NotADigest)?;
        let mut digest = [0; 32];
        let (pairs, _) = text.as_chunks::<2>();
        for (byte, &[high, low]) in digest.iter_mut().zip(pairs) {
            *byte = hex_digit(high)? << 4 | hex_digit(low)?;
        }
        Ok(Digest(digest))
    }
}

fn hex_digit(digit: u8) -> Result<u8, NotADigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(NotADigest),
    }
}

/// A digest of bytes that come one after the other.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Nothing hashed yet.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Adds the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// How many threads are worth while for work that is bound by memory: at least 1.
pub fn usual_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS)
}

/// The digest of `len` bytes that `load(offset, buffer)` brings piece by piece, called from up to `threads`
/// threads and in any order, once for each piece. The first error ends it.
pub fn digest_parallel<F>(len: u64, threads: usize, load: F) -> io::Result<Digest>
where
    F: Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
{
    let groups = usize::try_from(len.div_ceil(GROUP as u64)).map_err(io::Error::other)?;
    if groups <= 1 {
        let mut bytes = vec![0; len as usize];
        load(0, &mut bytes)?;
        return Ok(Digest::of(&bytes));
    }
    let values = group_values(len, groups, threads, &load)?;
    let (left, right) = values.split_at(left_groups(groups));
    let root = merge_subtrees_root(&join(left), &join(right), Mode::Hash);
    Ok(Digest(*root.as_bytes()))
}

/// The chaining value of every group of [`GROUP`] bytes, in order; there are two at least.
fn group_values<F>(len: u64, groups: usize, threads: usize, load: &F) -> io::Result<Vec<ChainingValue>>
where
    F: Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
{
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> io::Result<Vec<(usize, ChainingValue)>> {
        let mut buffer = vec![0; GROUP];
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= groups {
                break;
            }
            let start = group as u64 * GROUP as u64;
            let bytes = &mut buffer[..(len - start).min(GROUP as u64) as usize];
            if let Err(error) = load(start, bytes) {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(start).update(bytes);
            done.push((group, hasher.finalize_non_root()));
        }
        Ok(done)
    };
    let parts = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(groups)).map(|_| scope.spawn(work)).collect();
        let mut parts = vec![work()];
        for helper in helpers {
            parts.push(match helper.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            });
        }
        parts
    });
    let mut values = vec![ChainingValue::default(); groups];
    for part in parts {
        for (group, value) in part? {
            values[group] = value;
        }
    }
    Ok(values)
}

/// How many of `groups` (≥ 2) belong to the left subtree: the largest power of two below their number.
fn left_groups(groups: usize) -> usize {
    1 << (usize::BITS - 1 - (groups - 1).leading_zeros())
}

/// The chaining value over at least one group.
fn join(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = values.split_at(left_groups(values.len()));
    merge_subtrees_non_root(&join(left), &join(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn the_parallel_digest_is_the_digest() {
        let around = |n: usize| [n * GROUP - 1, n * GROUP, n * GROUP + 1];
        let lens = [0, 1, 1024, 1025, 4096].into_iter();
        for len in lens.chain((1..=9).flat_map(around)) {
            let data = bytes(len);
            let load = |offset: u64, into: &mut [u8]| {
                let from = offset as usize;
                into.copy_from_slice(&data[from..from + into.len()]);
                Ok(())
            };
            for threads in [1, 3] {
                let got = digest_parallel(len as u64, threads, load).unwrap();
                assert_eq!(got, Digest::of(&data), "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn an_error_of_the_source_ends_it() {
        let load = |offset: u64, _: &mut [u8]| match offset {
            0 => Ok(()),
            _ => Err(io::Error::other("gone")),
        };
        let error = digest_parallel(8 * GROUP as u64, 2, load).unwrap_err();
        assert_eq!(error.to_string(), "gone");
    }

    #[test]
    fn a_digest_reads_back_and_nothing_else_does() {
        let digest = Digest::of(b"smolvm");
        let text = digest.to_string();
        assert_eq!(text.parse::<Digest>(), Ok(digest));
        assert_eq!(digest.short(), text[..12]);
        for wrong in ["", "00", &text[1..], &text.to_uppercase(), &format!("{text}0")] {
            assert_eq!(wrong.parse::<Digest>(), Err(NotADigest), "{wrong:?}");
        }
        let with_a_g = format!("g{}", &text[1..]);
        assert_eq!(with_a_g.parse::<Digest>(), Err(NotADigest));
    }
}
