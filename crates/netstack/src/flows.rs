//! Slots with tokens that name them, and deadlines.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What a token belongs to. Tokens of `0xff` and up are the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Tcp = 1,
    Udp = 2,
    Echo = 3,
    Query = 4,
    Published = 5,
}

/// Names a slot for the poller and the timers: kind, generation, index. A token of a flow that ended finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

impl Token {
    pub fn new(kind: Kind, generation: u32, index: usize) -> Self {
        Self((kind as u64) << 56 | u64::from(generation & 0xff_ffff) << 32 | (index as u64 & 0xffff_ffff))
    }

    pub fn kind(self) -> Option<Kind> {
        [Kind::Tcp, Kind::Udp, Kind::Echo, Kind::Query, Kind::Published]
            .into_iter()
            .find(|kind| *kind as u64 == self.0 >> 56)
    }

    fn index(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }
}

/// At most `limit` values, each with a token.
pub struct Slots<T> {
    kind: Kind,
    limit: usize,
    slots: Vec<(u32, Option<T>)>,
    free: Vec<usize>,
}

impl<T> Slots<T> {
    pub fn new(kind: Kind, limit: usize) -> Self {
        Self { kind, limit, slots: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Puts what `make` gives for the new token into a free slot; `None` when full.
    pub fn insert_with(&mut self, make: impl FnOnce(Token) -> Option<T>) -> Option<Token> {
        if self.is_full() {
            return None;
        }
        let index = self.free.last().copied().unwrap_or(self.slots.len());
        let generation = self.slots.get(index).map_or(0, |slot| slot.0);
        let token = Token::new(self.kind, generation, index);
        let value = Some(make(token)?);
        match self.slots.get_mut(index) {
            Some(slot) => {
                slot.1 = value;
                self.free.pop();
            }
            None => self.slots.push((0, value)),
        }
        Some(token)
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index())?;
        if slot.0 & 0xff_ffff == token.generation() { slot.1.as_mut() } else { None }
    }

    pub fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let slot = self.slots.get_mut(token.index())?;
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(token.index());
        slot.1.take()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, (generation, value))| {
            Some((Token::new(self.kind, *generation, index), value.as_ref()?))
        })
    }

    /// Ends all; their tokens stay dead.
    pub fn clear(&mut self) {
        let all: Vec<Token> = self.iter().map(|(token, _)| token).collect();
        for token in all {
            self.remove(token);
        }
    }
}

/// When to look at which flow again. A flow has at most one entry that counts (its `armed`), and arms an earlier one
/// only when it must, so the heap stays about as long as the tables.
#[derive(Default)]
pub struct Deadlines(BinaryHeap<Reverse<(Instant, Token)>>);

impl Deadlines {
    /// Makes sure that `token` is looked at by `when`.
    pub fn arm(&mut self, armed: &mut Option<Instant>, when: Option<Instant>, token: Token) {
        let Some(when) = when else { return };
        if armed.is_none_or(|armed| when < armed) {
            *armed = Some(when);
            self.0.push(Reverse((when, token)));
        }
    }

    /// The next token that is due, with its time.
    pub fn due(&mut self, now: Instant) -> Option<(Token, Instant)> {
        let Reverse((when, _)) = self.0.peek()?;
        if *when > now {
            return None;
        }
        self.0.pop().map(|Reverse((when, token))| (token, when))
    }

    /// How long until the next one.
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        self.0.peek().map(|Reverse((when, _))| when.saturating_duration_since(now))
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}
