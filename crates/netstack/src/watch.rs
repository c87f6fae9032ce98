//! Whether the network's thread, with nothing to do, looks for a while before it sleeps.
//!
//! Problem: a request and its answer are two waits of this thread, and waking a thread on an idle core costs more than
//! all the work between (15 to 25 µs in a virtual machine). Looking again and again instead costs a core.
//!
//! Strategy: look only after a round that moved little, for at most [`LOOK`], and only where it lately paid. Each side
//! from which something may come (host, guest) has its own credit: a wait that was short earns one, whether slept or
//! looked through; a look in vain costs four, and twice as many each time in a row. A machine that idles has no credit
//! and sleeps at once. The thread yields between looks, so whoever wants its core gets it, and a look that was held up
//! so counts as in vain (docs/adr/0176).

use std::io;
use std::time::{Duration, Instant};

use host::{Poller, Ready};

use crate::link::Link;
use crate::stack::{Moved, Stack};

/// How long to look at most.
const LOOK: Duration = Duration::from_micros(50);
/// Slept for less than this, a look may have sufficed: waking up takes about as long as [`LOOK`].
const SHORT: Duration = Duration::from_micros(100);
/// Bytes in a round from which on batches are worth more than time.
const SMALL: usize = 16 << 10;
/// Most credit, and the price of looks in vain.
const MOST: i32 = 8;
const PRICE: i32 = 4;
const MOST_PRICE: i32 = 256;

/// How waiting for one side went lately.
#[derive(Clone, Copy, Debug)]
struct Account {
    credit: i32,
    price: i32,
}

impl Account {
    const NEW: Self = Self { credit: -PRICE, price: PRICE };

    fn earn(&mut self) {
        self.credit = (self.credit + 1).min(MOST);
    }

    /// It was looked for in vain.
    fn pay(&mut self) {
        self.credit = -self.price;
        self.price = (self.price * 2).min(MOST_PRICE);
    }

    /// It was slept for long.
    fn miss(&mut self) {
        self.credit = self.credit.min(-PRICE);
    }
}

/// From where the next thing is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Host,
    Guest,
}

/// Ends the rounds of a stack's thread and waits between them.
#[derive(Debug)]
pub struct Watch {
    /// Another core can do meanwhile what is waited for.
    cores: bool,
    accounts: [Account; 2],
    expected: Option<Side>,
    /// The stack holds acknowledgements.
    held: bool,
}

impl Default for Watch {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
        Self { cores, accounts: [Account::NEW; 2], expected: None, held: false }
    }
}

impl Watch {
    /// Ends a round ([`Stack::tick`]); `ready` is what it began with. Acknowledgements may be held until the look that
    /// the next [`Watch::wait`] begins with is over: where that returns with nothing ready, a round is due all the same.
    pub fn end_round(&mut self, stack: &mut Stack, link: &mut dyn Link, ready: &[Ready]) {
        if self.pays(Side::Host) && !ready.is_empty() {
            self.held = stack.hold(link);
        } else {
            stack.tick(link);
        }
        let Moved { to_host, to_guest } = stack.take_moved();
        if to_host + to_guest > SMALL {
            self.expected = None;
        } else if to_guest > 0 {
            self.expected = Some(Side::Guest);
        } else if to_host > 0 {
            self.expected = Some(Side::Host);
        }
    }

    /// Waits until something is ready, the time is over or a look for what acknowledgements are held for was in vain.
    ///
    /// # Errors
    /// The poller's.
    pub fn wait(
        &mut self,
        poller: &Poller,
        ready: &mut Vec<Ready>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if timeout == Some(Duration::ZERO) {
            return poller.wait(ready, timeout);
        }
        ready.clear();
        if let Some(side) = self.expected.filter(|side| self.pays(*side)) {
            self.look(side, poller, ready)?;
        }
        if ready.is_empty() && !held { self.sleep(poller, ready, timeout) } else { Ok(()) }
    }

    fn pays(&self, side: Side) -> bool {
        self.cores && self.accounts[side as usize].credit > 0
    }

    fn look(&mut self, side: Side, poller: &Poller, ready: &mut Vec<Ready>) -> io::Result<()> {
        let begun = Instant::now();
        let account = &mut self.accounts[side as usize];
        loop {
            poller.wait(ready, Some(Duration::ZERO))?;
            // Late because another had the core, too.
            if begun.elapsed() > LOOK {
                account.pay();
                return Ok(());
            }
            if !ready.is_empty() {
                account.earn();
                account.price = PRICE;
                return Ok(());
            }
            std::thread::yield_now();
        }
    }

    fn sleep(
        &mut self,
        poller: &Poller,
        ready: &mut Vec<Ready>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let Some(side) = self.expected.filter(|_| self.cores) else { return poller.wait(ready, timeout) };
        let begun = Instant::now();
        poller.wait(ready, timeout)?;
        let account = &mut self.accounts[side as usize];
        if !ready.is_empty() && begun.elapsed() < SHORT {
            account.earn();
        } else {
            account.miss();
            // What comes next is no answer.
            self.expected = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::{Event, Interest};

    fn short_waits_until_it_pays(account: &mut Account) -> usize {
        let before = account.credit;
        while account.credit <= 0 {
            account.earn();
        }
        (account.credit - before) as usize
    }

    #[test]
    fn a_look_in_vain_costs_more_short_waits_each_time_in_a_row() {
        let mut account = Account::NEW;
        assert_eq!(short_waits_until_it_pays(&mut account), 5);
        let costs: Vec<usize> = (0..8)
            .map(|_| {
                account.pay();
                short_waits_until_it_pays(&mut account)
            })
            .collect();
        assert_eq!(costs, [5, 9, 17, 33, 65, 129, 257, 257]);
        // Long waits take what credit there was, and no more than that.
        account.miss();
        account.miss();
        assert_eq!(short_waits_until_it_pays(&mut account), 5);
    }

    /// What a thread with one event to wait for sees.
    fn waiting(cores: bool) -> (Watch, Poller, Event) {
        let (poller, event) = (Poller::new().unwrap(), Event::new().unwrap());
        poller.add(&event, 1, Interest::READ).unwrap();
        let accounts = [Account { credit: MOST, price: PRICE }; 2];
        (Watch { cores, accounts, expected: Some(Side::Host), held: true }, poller, event)
    }

    #[test]
    fn with_acknowledgements_held_nothing_that_comes_ends_the_wait_once() {
        for cores in [true, false] {
            let (mut watch, poller, event) = waiting(cores);
            let mut ready = Vec::new();
            watch.wait(&poller, &mut ready, None).unwrap();
            assert_eq!(ready, [], "nobody raised it");
            assert!(!watch.pays(Side::Host), "the look was in vain, or there is none with one core");
            watch.wait(&poller, &mut ready, Some(Duration::from_millis(1))).unwrap();
            assert_eq!((ready.len(), watch.expected), (0, if cores { None } else { Some(Side::Host) }));
            event.signal();
            watch.wait(&poller, &mut ready, None).unwrap();
            assert_eq!(ready.len(), 1);
        }
    }

    #[test]
    fn what_is_ready_is_told_whatever_is_held() {
        let (mut watch, poller, event) = waiting(true);
        event.signal();
        let mut ready = Vec::new();
        watch.wait(&poller, &mut ready, None).unwrap();
        assert_eq!(ready.len(), 1);
    }
}
