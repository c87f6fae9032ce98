//! A fixed set of small integers, one bit each, in two levels: what holds no member takes no memory, however large the
//! disk is that the numbers are clusters of.

/// Words of a piece: 4 KiB, the clusters of 128 MiB of disk.
const WORDS: usize = 512;
/// Numbers in a piece.
const PIECE: u64 = WORDS as u64 * 64;

#[derive(Clone)]
pub(crate) struct Bits {
    pieces: Vec<Option<Box<[u64; WORDS]>>>,
    count: u64,
}

/// Which piece a number is in, which word of it, and which bit of that.
fn place(i: u64) -> (usize, usize, u64) {
    ((i / PIECE) as usize, (i % PIECE / 64) as usize, 1 << (i % 64))
}

impl Bits {
    /// Room for 0..len, all absent.
    pub(crate) fn new(len: u64) -> Self {
        Self { pieces: vec![None; len.div_ceil(PIECE) as usize], count: 0 }
    }

    pub(crate) fn has(&self, i: u64) -> bool {
        let (piece, word, bit) = place(i);
        self.pieces.get(piece).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }

    pub(crate) fn put(&mut self, i: u64, value: bool) {
        if self.has(i) == value {
            return;
        }
        let (piece, word, bit) = place(i);
        let Some(piece) = self.pieces.get_mut(piece) else { return };
        piece.get_or_insert_with(|| Box::new([0; WORDS]))[word] ^= bit;
        self.count = if value { self.count + 1 } else { self.count - 1 };
    }

    /// How many are present.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The first present number from `from` on.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let (first, word, bit) = place(from);
        // Of the first word only the bits from `from` on.
        let (mut skip, mut mask) = (word, !(bit - 1));
        for (n, piece) in self.pieces.iter().enumerate().skip(first) {
            if let Some(words) = piece {
                for (at, word) in words.iter().enumerate().skip(skip) {
                    let word = word & mask;
                    mask = u64::MAX;
                    if word != 0 {
                        return Some(n as u64 * PIECE + at as u64 * 64 + u64::from(word.trailing_zeros()));
                    }
                }
            }
            (skip, mask) = (0, u64::MAX);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_order_over_the_edges_of_words_and_pieces() {
        let mut bits = Bits::new(3 * PIECE + 70);
        let members = [0, 63, 64, PIECE - 1, PIECE, 3 * PIECE, 3 * PIECE + 69];
        assert_eq!(bits.next(0), None);
        for member in members {
            bits.put(member, true);
            bits.put(member, true);
        }
        assert_eq!(bits.count(), members.len() as u64);
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(member) = bits.next(from) {
            found.push(member);
            from = member + 1;
        }
        assert_eq!(found, members);
        assert_eq!(
            bits.pieces.iter().filter(|piece| piece.is_some()).count(),
            3,
            "an empty piece takes nothing"
        );
        bits.put(64, false);
        assert!(!bits.has(64) && bits.has(63) && bits.next(64) == Some(PIECE - 1));
    }

    #[test]
    fn beyond_the_end_there_is_nothing() {
        let mut bits = Bits::new(10);
        bits.put(9, true);
        bits.put(PIECE, true);
        assert!(
            !bits.has(PIECE) && bits.count() == 1 && bits.next(10).is_none() && bits.next(u64::MAX).is_none()
        );
    }
}
