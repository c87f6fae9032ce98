//! Which parts of RAM a file lies behind.
//!
//! Problem: memory that the guest gives up must read as zeros, and dropping a page of a private file mapping brings
//! the file's bytes back instead. Strategy: what was mapped from files is remembered as ranges; giving back a range
//! that touches one needs a fresh mapping over it, which is then taken out of the ranges. Invariant: outside these
//! ranges RAM is anonymous.

use std::collections::BTreeMap;
use std::ops::Range;

/// Most ranges: each hole costs the host two mappings, of which a process has 65,530 (vm.max_map_count).
const MAX_RANGES: usize = 8192;

/// Byte ranges, apart from each other: start and end.
#[derive(Default)]
pub(crate) struct Filed(BTreeMap<usize, usize>);

impl Filed {
    pub(crate) fn add(&mut self, range: Range<usize>) {
        self.0.insert(range.start, range.end);
    }

    /// Whether a file lies behind any of it.
    pub(crate) fn touches(&self, range: &Range<usize>) -> bool {
        self.0.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// Whether one more hole may be cut.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < MAX_RANGES
    }

    /// No file lies behind `range` any more.
    pub(crate) fn cut(&mut self, range: &Range<usize>) {
        while let Some((&start, &end)) =
            self.0.range(..range.end).next_back().filter(|(_, e)| **e > range.start)
        {
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
            if start < range.start {
                self.0.insert(start, range.start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_cut_out() {
        let mut filed = Filed::default();
        filed.add(10..20);
        filed.add(30..40);
        filed.add(40..50);
        assert!(filed.touches(&(0..11)) && filed.touches(&(19..20)) && filed.touches(&(0..100)));
        assert!(!filed.touches(&(0..10)) && !filed.touches(&(20..30)) && !filed.touches(&(50..60)));
        filed.cut(&(12..14));
        assert!(filed.touches(&(11..12)) && !filed.touches(&(12..14)) && filed.touches(&(14..15)));
        filed.cut(&(15..45));
        assert_eq!(filed.0.into_iter().collect::<Vec<_>>(), [(10, 12), (14, 15), (45, 50)]);
    }
}
