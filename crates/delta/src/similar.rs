//! Finds an old page that is nearly a new one.
//!
//! A page is sketched by its lines (64 bytes): each line's words are reduced to what a move in memory leaves of
//! them (an address to its low 12 bits, since memory moves by pages), hashed, and the smallest few hashes kept.
//! Pages that share most lines share most of those (min-hashing).

use crate::format::PAGE;

const LINE: usize = 64;
/// Hashes in a sketch.
const KEPT: usize = 8;
/// Old pages looked at for one hash: lines that are everywhere say little.
const CANDIDATES: usize = 16;

/// Sketches of every old page, by hash.
pub struct Sketches(Vec<(u32, u32)>);

/// Up to [`KEPT`] hashes, ascending.
fn sketch(page: &[u8; PAGE]) -> Vec<u32> {
    let lines = page.as_chunks::<LINE>().0.iter().filter(|line| line.iter().any(|byte| *byte != 0));
    let mut hashes: Vec<u32> = lines.map(hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes.truncate(KEPT);
    hashes
}

fn hash(line: &[u8; LINE]) -> u32 {
    let words = line.as_chunks::<8>().0.iter().map(|word| still(u64::from_le_bytes(*word)));
    let mixed =
        words.fold(0u64, |hash, word| (hash.rotate_left(25) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed >> 32) as u32 ^ mixed as u32
}

/// What a move leaves of a word: all of it, or of an address (canonical, x86-64) the place in its page.
fn still(word: u64) -> u64 {
    let user = (0x5000_0000_0000..0x8000_0000_0000).contains(&word);
    let kernel = word >= 0xffff_8000_0000_0000;
    if user || kernel { word & 0xfff } else { word }
}

impl Sketches {
    /// Of pages with these numbers.
    pub fn of<'a>(pages: impl Iterator<Item = (u32, &'a [u8; PAGE])>) -> Self {
        let mut all = Vec::new();
        for (number, page) in pages {
            all.extend(sketch(page).into_iter().map(|hash| (hash, number)));
        }
        all.sort_unstable();
        Self(all)
    }

    /// Old pages that share most with `page`, the most first; at most a handful.
    pub fn like(&self, page: &[u8; PAGE]) -> Vec<u32> {
        let mut votes: Vec<u32> = Vec::new();
        for hash in sketch(page) {
            let start = self.0.partition_point(|entry| entry.0 < hash);
            let with = self.0.get(start..).unwrap_or_default().iter().take_while(|entry| entry.0 == hash);
            votes.extend(with.take(CANDIDATES).map(|entry| entry.1));
        }
        votes.sort_unstable();
        let mut counted: Vec<(usize, u32)> =
            votes.chunk_by(|a, b| a == b).filter_map(|run| Some((run.len(), *run.first()?))).collect();
        counted.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        counted.into_iter().take(3).map(|(_, number)| number).collect()
    }
}
