//! A fixed set of small integers, one bit each. Zeroed memory from the allocator: the part of a
//! 512 KiB table (16 GiB disk) that was never touched is not resident.

#[derive(Clone)]
pub(crate) struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    /// Room for 0..len, all absent.
    pub(crate) fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], count: 0 }
    }

    pub(crate) fn has(&self, i: u64) -> bool {
        self.words.get((i / 64) as usize).is_some_and(|w| w >> (i % 64) & 1 != 0)
    }

    pub(crate) fn put(&mut self, i: u64, value: bool) {
        let Some(word) = self.words.get_mut((i / 64) as usize) else { return };
        let bit = 1 << (i % 64);
        match (*word & bit != 0, value) {
            (false, true) => self.count += 1,
            (true, false) => self.count -= 1,
            _ => return,
        }
        *word ^= bit;
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
        let mut index = (from / 64) as usize;
        let mut word = self.words.get(index)? & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}
