//! How often memory is copied while it is being written, and when that ends: the decisions alone.
//!
//! Problem: what is copied is written again meanwhile, at a rate that nobody knows. Strategy: rounds, each of which
//! copies what was written since the one before it took its list, until so little is left that it is copied while the
//! machine stands still. Where a round leaves nearly as much as the one before, the vCPUs are slowed down, a step each
//! time. Invariant: it ends. Every round either leaves a quarter less or takes a step, and there are [`STEPS`] only.

/// Pages that may be left for the instant itself: 8 MiB, copied in a few milliseconds.
pub(crate) const LEFT_FOR_THE_INSTANT: u64 = 2048;

/// Shares of the time, in percent, for which vCPUs stand still in a round: where QEMU's auto-converge ends at 99 it is
/// 95 here, since a machine that stands nearly always gains less than a pause would cost.
const STEPS: [u8; 6] = [0, 20, 40, 60, 80, 95];

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A round, with the vCPUs slowed down by so many percent.
    Copy { slowed: u8 },
    /// Little is left.
    Done,
    /// Slowed down as far as it goes, it writes as fast as it is copied.
    GiveUp,
}

/// The rounds so far.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    before: Option<u64>,
    step: usize,
}

impl Rounds {
    /// Decides when `left` pages are to be copied.
    pub(crate) fn next(&mut self, left: u64) -> Next {
        if left <= LEFT_FOR_THE_INSTANT {
            return Next::Done;
        }
        let before = self.before.replace(left);
        if before.is_some_and(|before| left > before / 4 * 3) {
            self.step += 1;
        }
        STEPS.get(self.step).map_or(Next::GiveUp, |slowed| Next::Copy { slowed: *slowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of a guest with `memory` pages that writes `rate` pages while 100 are copied, of `set` different ones:
    /// how each was slowed down, and how it ended.
    fn run(memory: u64, set: u64, rate: u64) -> (Vec<u8>, Next) {
        let (mut rounds, mut left, mut slowed) = (Rounds::default(), memory, Vec::new());
        loop {
            match rounds.next(left) {
                Next::Copy { slowed: percent } => {
                    slowed.push(percent);
                    left = set.min(left * rate / 100 * u64::from(100 - percent) / 100);
                }
                end => return (slowed, end),
            }
        }
    }

    #[test]
    fn little_is_left_for_the_instant_at_once() {
        assert_eq!(run(LEFT_FOR_THE_INSTANT, 1000, 1000), (vec![], Next::Done));
        // As much is written again and again, but it is little.
        assert_eq!(run(1 << 17, LEFT_FOR_THE_INSTANT, 10_000), (vec![0], Next::Done));
    }

    #[test]
    fn who_writes_slower_than_is_copied_is_not_slowed_down() {
        // 200 MiB/s where 1 GiB/s are copied, of all of 512 MiB.
        assert_eq!(run(1 << 17, 1 << 17, 20), (vec![0, 0, 0], Next::Done));
        let (slowed, end) = run(1 << 20, 1 << 20, 70);
        assert!(end == Next::Done && slowed.iter().all(|percent| *percent == 0), "{slowed:?}");
    }

    #[test]
    fn who_writes_faster_is_slowed_down_until_it_fits() {
        let (slowed, end) = run(1 << 17, 1 << 17, 300);
        assert_eq!(end, Next::Done);
        assert!(slowed.windows(2).all(|pair| pair[0] <= pair[1]) && slowed.contains(&80), "{slowed:?}");
    }

    #[test]
    fn who_writes_too_fast_even_so_is_given_up() {
        assert_eq!(run(1 << 17, 1 << 17, 10_000), (STEPS.to_vec(), Next::GiveUp));
    }

    #[test]
    fn it_ends_whatever_is_written() {
        let mut seed = 1u64;
        for _ in 0..1000 {
            let mut rounds = Rounds::default();
            let count = (0..).take_while(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                matches!(rounds.next(seed >> 40), Next::Copy { .. })
            });
            assert!(count.count() < 400);
        }
    }
}
