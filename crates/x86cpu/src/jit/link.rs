//! Translations as data: where they are, how they hang together, when they are void.
//!
//! Problem: a translation is of bytes at a physical place, and the same bytes are mapped at another address in every
//! process. What links translations must hold where they are mapped now, and must not be made anew at every switch of
//! address spaces.
//!
//! Strategy: a translation knows no address but that of its page, which it finds in [`JitState`]. Each page of each
//! privilege has a *slot*: the address that it has been found at since addresses last changed, or [`NOWHERE`]. An exit
//! to another page computes the address that it leads to and compares it with the slot of the page that it was linked
//! to; a mismatch asks. So after a switch each page is looked for once, and no code is patched.
//!
//! Invariants: a slot says an address only while that address is translated to its page for its privilege; a link
//! inside a page is between translations of one page.
//!
//! [`JitState`]: super::JitState

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use host::CodeMemory;

use super::lower::{Exit, Site, Thunks};
use super::parts::{KeptExit, KeptSite, NONE, Name};
use super::scan::Encoded;
use crate::block::KeyHasher;
use crate::op::Op;

/// Slots; the first one always says [`NOWHERE`].
pub(super) const SLOTS: usize = 1 << 14;
/// No page begins there.
pub(super) const NOWHERE: u64 = 1;
const PAGE: u64 = 4096;

/// One piece of host code.
pub(super) struct Translation {
    /// By [`crate::block::place`].
    pub place: u64,
    /// Offset in the code memory.
    pub at: u32,
    pub flags_dead: bool,
    pub alive: bool,
    /// How often it was looked for, and more where time was spent ([`Store::heat`]).
    pub heat: u32,
    /// Of the page that it begins in; of the one that its only instruction goes on in that page's index, too.
    pub slot: u32,
    pub second: Option<(u32, u32)>,
    /// The last of the exits that lead here, or [`NONE`]; each knows the one before it.
    pub incoming: u32,
}

/// What is known of a new translation.
#[derive(Clone, Copy)]
pub(super) struct Made {
    pub place: u64,
    /// By [`Store::slot`]. Of a second page the slot and guestmem's index.
    pub slot: u32,
    pub second: Option<(u32, u32)>,
    pub flags_dead: bool,
}

/// A page that translations of one privilege begin or go on in, by [`key`].
pub(super) struct Page {
    pub generation: u32,
    pub translations: Vec<u32>,
    pub slot: u32,
}

/// guestmem's page index and the privilege (0: user).
pub(super) fn key(page: u32, bank: usize) -> u64 {
    u64::from(page) << 1 | bank as u64
}

/// Everything that lives as long as the code memory is not recycled.
pub(super) struct Store {
    pub code: CodeMemory,
    pub thunks: Thunks,
    /// Offsets in the code memory: of the slots, of the first translation, of what is free.
    slots_at: usize,
    pub first: usize,
    pub used: usize,
    /// Where what seldom runs begins, and goes on.
    pub aside_from: usize,
    pub aside: usize,
    pub sites: Vec<KeptSite>,
    pub exits: Vec<KeptExit>,
    /// For the interpreter's handlers, and what they were decoded from.
    pub ops: Vec<Op>,
    pub encoded: Vec<Encoded>,
    /// Where code names tables.
    pub named: Vec<Name>,
    pub translations: Vec<Translation>,
    pub pages: HashMap<u64, Page, BuildHasherDefault<KeyHasher>>,
    /// What the slots say.
    pub slots: Vec<u64>,
    pub free_slots: Vec<u32>,
    /// By privilege: slots that say something.
    placed: [Vec<u32>; 2],
    /// Code was written since it was last run.
    pub unserialised: bool,
}

impl Store {
    /// `head`: what stands at the beginning of the code memory.
    pub fn new(mut code: CodeMemory, head: &[u8], thunks: Thunks) -> Self {
        code.write(0, head);
        // Not in a page with code: they are written all the time.
        let slots_at = head.len().next_multiple_of(PAGE as usize);
        code.write(slots_at, &NOWHERE.to_le_bytes());
        let first = slots_at + 8 * SLOTS;
        let aside = code.len() / 2;
        Self {
            code,
            thunks,
            slots_at,
            first,
            used: first,
            aside_from: aside,
            aside,
            sites: Vec::new(),
            exits: Vec::new(),
            ops: Vec::new(),
            encoded: Vec::new(),
            named: Vec::new(),
            translations: Vec::new(),
            pages: HashMap::default(),
            slots: vec![NOWHERE],
            free_slots: Vec::new(),
            placed: Default::default(),
            unserialised: true,
        }
    }

    /// Forgets all translations; the shared code stays.
    pub fn clear(&mut self) {
        (0..2).for_each(|bank| self.misplace(bank));
        (self.used, self.aside) = (self.first, self.aside_from);
        self.sites.clear();
        self.exits.clear();
        self.ops.clear();
        self.encoded.clear();
        self.named.clear();
        self.translations.clear();
        self.pages.clear();
        self.slots.truncate(1);
        self.free_slots.clear();
    }

    /// Whether there is no room for a translation of `room` bytes in two more pages.
    pub fn is_full(&self, room: usize) -> bool {
        let slots = self.slots.len() + 2 > SLOTS && self.free_slots.len() < 2;
        slots || self.used + room > self.aside_from || self.aside + room > self.code.len()
    }

    /// Makes room for so many slots that say nothing.
    pub fn make_slots(&mut self, count: usize) {
        self.slots.resize(count, NOWHERE);
        let bytes: Vec<u8> = self.slots.iter().flat_map(|slot| slot.to_le_bytes()).collect();
        self.code.write(self.slots_at, &bytes);
    }

    /// Offset of a slot in the code memory.
    pub fn slot_offset(&self, slot: u32) -> usize {
        self.slots_at + 8 * slot as usize
    }

    /// The slot of a page, whose bytes were read under this generation.
    pub fn slot(&mut self, page: u32, generation: u32, bank: usize) -> u32 {
        let Self { pages, slots, free_slots, code, slots_at, .. } = self;
        let made = pages.entry(key(page, bank)).or_insert_with(|| {
            let slot = free_slots.pop().unwrap_or_else(|| {
                slots.push(NOWHERE);
                code.write(*slots_at + 8 * (slots.len() - 1), &NOWHERE.to_le_bytes());
                slots.len() as u32 - 1
            });
            Page { generation, translations: Vec::new(), slot }
        });
        made.slot
    }

    /// A slot says where its page is from here on.
    fn place(&mut self, slot: u32, bank: usize, address: u64) {
        let known = &mut self.slots[slot as usize];
        if *known == address {
            return;
        }
        if *known == NOWHERE {
            self.placed[bank].push(slot);
        }
        *known = address;
        self.code.write(self.slots_at + 8 * slot as usize, &address.to_le_bytes());
    }

    /// Addresses of one privilege have changed: nobody knows any more where its pages are.
    pub fn misplace(&mut self, bank: usize) {
        let mut placed = std::mem::take(&mut self.placed[bank]);
        for slot in placed.drain(..) {
            self.slots[slot as usize] = NOWHERE;
            self.code.write(self.slots_at + 8 * slot as usize, &NOWHERE.to_le_bytes());
        }
        self.placed[bank] = placed;
    }

    /// A translation is hotter by so much.
    pub fn heat(&mut self, number: u32, by: u32) {
        let heat = &mut self.translations[number as usize].heat;
        *heat = heat.saturating_add(by);
    }

    /// A translation was found in the page at this linear address. Gives its place in the code memory.
    pub fn arrive(&mut self, number: u32, bank: usize, page: u64) -> usize {
        self.heat(number, 1);
        let Translation { at, slot, second, .. } = self.translations[number as usize];
        self.place(slot, bank, page);
        if let Some((second, _)) = second {
            self.place(second, bank, page.wrapping_add(PAGE));
        }
        at as usize
    }

    /// guestmem's index of the second page that a translation is in.
    pub fn second_page(&self, number: u32) -> Option<u32> {
        self.translations[number as usize].second.map(|(_, page)| page)
    }

    /// Takes in a translation; its code is written at [`Store::used`]. `pages`: those that it is in.
    pub fn add(
        &mut self,
        made: Made,
        pages: impl IntoIterator<Item = u32>,
        bank: usize,
        code: (&[u8], &[u8]),
    ) -> u32 {
        let Made { place, slot, second, flags_dead } = made;
        let at = self.used as u32;
        self.code.write(self.used, code.0);
        self.code.write(self.aside, code.1);
        self.used = (self.used + code.0.len()).next_multiple_of(16);
        self.aside += code.1.len();
        self.unserialised = true;
        let number = self.translations.len() as u32;
        self.translations.push(Translation {
            place,
            at,
            flags_dead,
            alive: true,
            heat: 0,
            slot,
            second,
            incoming: NONE,
        });
        for page in pages {
            if let Some(page) = self.pages.get_mut(&key(page, bank)) {
                page.translations.push(number);
            }
        }
        number
    }

    /// An exit of the translation that is added next, which begins in the page of `slot`.
    pub fn add_exit(&mut self, exit: Exit, slot: u32) {
        self.exits.push(KeptExit::new(&exit, slot));
    }

    /// The sites of the translation that is added next.
    pub fn add_sites(&mut self, sites: &[Site]) {
        self.sites.extend(sites.iter().map(KeptSite::new));
    }

    fn patch(&mut self, at: u32, target: u32) {
        let rel = target.wrapping_sub(at + 4);
        self.code.write(at as usize, &rel.to_le_bytes());
        self.unserialised = true;
    }

    /// Lets an exit lead to the translation of its target.
    pub fn link(&mut self, exit: u32, to: u32) {
        let from = self.exits[exit as usize];
        let inside = from.slot_at().is_none();
        if from.to == to || from.is_far() {
            return;
        }
        // Inside a page nothing is compared: both must really be in it.
        let good = |t: &Translation| t.alive && (!inside || t.slot == from.slot);
        if !self.translations.get(to as usize).is_some_and(good) {
            return;
        }
        self.unlink(exit);
        let target = &mut self.translations[to as usize];
        let (at, dead, slot) = (target.at, target.flags_dead, target.slot);
        let before = std::mem::replace(&mut target.incoming, exit);
        if before != NONE {
            self.exits[before as usize].next = exit;
        }
        let linked = &mut self.exits[exit as usize];
        (linked.to, linked.before, linked.next) = (to, before, NONE);
        self.patch(from.jump(), at);
        if let Some(place) = from.slot_at() {
            self.patch(place, self.slot_offset(slot) as u32);
        }
        if !dead {
            return;
        }
        if let Some(branch) = from.branch() {
            self.patch(branch, from.bare());
        } else if let Ok(skip) = u8::try_from(from.bare() - from.stub)
            && (2..0x80).contains(&skip)
        {
            let mut old = [0; 2];
            self.code.read(from.stub as usize, &mut old);
            self.exits[exit as usize].replaced = old;
            self.code.write(from.stub as usize, &[0xeb, skip - 2]);
        }
    }

    /// Whether an exit leads past the stores of the flags.
    pub fn is_bare(&self, exit: u32) -> bool {
        let to = self.exits.get(exit as usize).map_or(NONE, |exit| exit.to);
        self.translations.get(to as usize).is_some_and(|t| t.flags_dead)
    }

    fn unlink(&mut self, exit: u32) {
        let e = self.exits[exit as usize];
        if e.to == NONE {
            return;
        }
        match e.next {
            NONE => self.translations[e.to as usize].incoming = e.before,
            next => self.exits[next as usize].before = e.before,
        }
        if e.before != NONE {
            self.exits[e.before as usize].next = e.next;
        }
        self.exits[exit as usize] = e.alone();
        self.patch(e.jump(), e.unlinked());
        if let Some(place) = e.slot_at() {
            self.patch(place, self.slot_offset(0) as u32);
        }
        if let Some(branch) = e.branch() {
            self.patch(branch, e.stub);
        } else if e.replaced != [0; 2] {
            self.code.write(e.stub as usize, &e.replaced);
        }
    }

    /// Drops the translations of pages whose code generation is not what `now` says; true when there were
    /// any. `only`: where else none has changed.
    pub fn revalidate(&mut self, only: Option<&[u32]>, now: impl Fn(usize) -> u32) -> bool {
        let stale = |key: u64, page: &Page| now((key >> 1) as usize) != page.generation;
        let stale: Vec<u64> = match only {
            Some(only) => {
                let keys = only.iter().flat_map(|page| [key(*page, 0), key(*page, 1)]);
                keys.filter(|key| self.pages.get(key).is_some_and(|page| stale(*key, page))).collect()
            }
            None => self.pages.iter().filter(|(key, page)| stale(**key, page)).map(|(key, _)| *key).collect(),
        };
        for key in &stale {
            let Some(gone) = self.pages.remove(key) else { continue };
            for number in gone.translations {
                self.translations[number as usize].alive = false;
                while self.translations[number as usize].incoming != NONE {
                    self.unlink(self.translations[number as usize].incoming);
                }
            }
            let bank = (key & 1) as usize;
            self.place(gone.slot, bank, NOWHERE);
            self.placed[bank].retain(|slot| *slot != gone.slot);
            self.free_slots.push(gone.slot);
        }
        !stale.is_empty()
    }
}
