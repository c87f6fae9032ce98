//! Translations that outlive their process: for the same machine, in the state that it was frozen in, by the same build
//! of this program on the same kind of host.
//!
//! Problem: the first second after a resume goes into translating again what was translated before the freeze.
//!
//! Strategy: a vCPU that stands still writes its [`Store`] as it is, host code and all ([`Jit::keep`]). A thread beside
//! the resumed machine makes a store of it again ([`KeptCode::read`]), and the vCPU goes on with that in the place of
//! what it has come to meanwhile ([`Jit::adopt`]). Code is relative to where it stands, but for what [`Name`]s say: tables
//! whose addresses are other ones in each process. What it calls by address are the thunks, which are made anew; the
//! interpreter's handlers are found again from the instructions' bytes.
//!
//! Invariants: whoever gives the bytes has made sure that they are what this user's own process wrote, of the memory that
//! the machine was brought back with; host code is not looked into here. Numbers are: none leads beyond what there is. A
//! page counts only while nobody has written it since the machine was brought back, which is looked at when it is
//! watched; from then on its code generation says so, as of any page.

use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::ops::Range;

use host::CodeMemory;

use super::Engine;
use super::helpers::{distances, helpers};
use super::link::{Page, SLOTS, Store, Translation, key};
use super::lower::{Named, Tables};
use super::parts::{Fields, KeptExit, KeptSite, NONE, Name, Record};
use super::run::{CODE_BYTES, Jit, MARKS, MAX_PARTS, Places, RECENT, adopt, mark_of, tables};
use super::scan::{Encoded, Handled, handled};
use super::state::JumpEntry;
use super::thunks;
use crate::block::{KeyHasher, place_parts};
use crate::cpu::Cpu;

/// Begins what a vCPU kept; the last digits are the version.
const MAGIC: u64 = u64::from_le_bytes(*b"SMVCODE1");
/// Bytes that are carried at a time.
const PIECE: usize = 64 << 10;
/// Bytes of what stands before the lists.
const HEAD: usize = 2 * 8 + 4 * 4 + 8 * 4;
/// No table within reach.
const FAR: u32 = 0;
/// Bits of a translation's flags.
const DEAD: u8 = 1;
const FLAGS_DEAD: u8 = 2;

/// Translations of another process's vCPU, ready to be gone on with.
pub struct KeptCode {
    store: Store,
    handled: Vec<Handled>,
    by_place: Places,
    marks: Vec<u64>,
    own: CodePlaces,
}

/// What translated code of one vCPU names: where its tables are, by privilege.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CodePlaces([Tables; 2]);

impl std::fmt::Debug for KeptCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeptCode({} translations)", self.by_place.len())
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("kept translations with {what}"))
}

/// What has to be the same where code is made and where it is run: the shared code, which everything of this build that
/// translations know has a part in, and what the host's processor can do.
fn fingerprint() -> u64 {
    let mut hasher = KeyHasher::default();
    let (bytes, places) = thunks::emit(&distances());
    hasher.write(&bytes);
    // With the addresses of this process, too, they stand where translations look for them.
    hasher.write(format!("{places:?}{:?}", thunks::emit(&helpers()).1).as_bytes());
    let host = [super::host_has_bmi2(), super::host_has_popcnt(), super::host_has_sse42()];
    hasher.write(&host.map(u8::from));
    hasher.finish()
}

impl Record for Translation {
    const BYTES: usize = 8 + 6 * 4 + 1;

    fn put(&self, to: &mut Vec<u8>) {
        let (slot, page) = self.second.unwrap_or((NONE, NONE));
        to.extend(self.place.to_le_bytes());
        let numbers = [self.at, self.heat, self.slot, slot, page, self.incoming];
        numbers.iter().for_each(|number| to.extend(number.to_le_bytes()));
        to.push(if self.alive { 0 } else { DEAD } | if self.flags_dead { FLAGS_DEAD } else { 0 });
    }

    fn get(from: &mut Fields) -> Self {
        let (place, at, heat, slot) = (from.u64(), from.u32(), from.u32(), from.u32());
        let (second, page, incoming, flags) = (from.u32(), from.u32(), from.u32(), from.u8());
        Self {
            place,
            at,
            flags_dead: flags & FLAGS_DEAD != 0,
            alive: flags & DEAD == 0,
            // What was hot once is known; how much it is now is found out.
            heat: heat.min(1),
            slot,
            second: (second != NONE).then_some((second, page)),
            incoming,
        }
    }
}

/// Bytes that are put together before they are written.
struct Out<'a> {
    to: &'a mut dyn Write,
    bytes: Vec<u8>,
}

impl Out<'_> {
    fn list<T: Record>(&mut self, list: &[T]) -> io::Result<()> {
        for one in list {
            one.put(&mut self.bytes);
            self.pass(PIECE)?;
        }
        Ok(())
    }

    fn code(&mut self, code: &CodeMemory, from: usize, to: usize) -> io::Result<()> {
        self.pass(1)?;
        for at in (from..to).step_by(PIECE) {
            self.bytes.resize(PIECE.min(to - at), 0);
            code.read(at, &mut self.bytes);
            self.pass(1)?;
        }
        Ok(())
    }

    /// Writes what there is, if it is so much.
    fn pass(&mut self, least: usize) -> io::Result<()> {
        if self.bytes.len() >= least {
            self.to.write_all(&self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}

/// A list of so many.
fn list<T: Record>(from: &mut dyn Read, count: u32) -> io::Result<Vec<T>> {
    let count = count as usize;
    let mut all = Vec::with_capacity(count);
    host::expect_filling(&mut all);
    let mut bytes = vec![0; PIECE / T::BYTES * T::BYTES];
    while all.len() < count {
        let some = (count - all.len()).min(PIECE / T::BYTES);
        let bytes = &mut bytes[..some * T::BYTES];
        from.read_exact(bytes)?;
        all.extend(bytes.chunks_exact(T::BYTES).map(|one| T::get(&mut Fields(one))));
    }
    Ok(all)
}

/// Reads code to where it stood, in which tables are where they are now.
fn code(
    from: &mut dyn Read,
    code: &mut CodeMemory,
    range: Range<usize>,
    renaming: &mut Renaming,
) -> io::Result<()> {
    let mut bytes = vec![0; PIECE];
    let mut at = range.start;
    // What a piece ends with in the middle of a name goes with the next one.
    let mut left = 0;
    while at + left < range.end {
        let len = (range.end - at).min(PIECE);
        let piece = &mut bytes[..len];
        from.read_exact(&mut piece[left..])?;
        let whole = renaming.apply(piece, at)?;
        code.fill(at, &piece[..whole])?;
        piece.copy_within(whole.., 0);
        (at, left) = (at + whole, len - whole);
    }
    if left > 0 { Err(broken("a name beyond its code")) } else { Ok(()) }
}

/// Names tables where this process has them.
struct Renaming<'a> {
    /// Ascending.
    rest: &'a [Name],
    old: [Tables; 2],
    new: [Tables; 2],
}

impl Renaming<'_> {
    /// In the code that stands at `at`; how much of that is done with.
    fn apply(&mut self, piece: &mut [u8], at: usize) -> io::Result<usize> {
        while let Some((name, rest)) = self.rest.split_first() {
            let Some(offset) = name.at().checked_sub(at) else { return Err(broken("names without order")) };
            if offset >= piece.len() {
                break;
            }
            let Some(bytes) = piece.get_mut(offset..offset + 4) else { return Ok(offset) };
            let place = |tables: [Tables; 2]| match name.named() {
                Named::Tlb => tables[name.bank()].tlb,
                Named::Jumps => tables[name.bank()].jumps,
            };
            let both = place(self.old).zip(place(self.new));
            let (old, new) = both.ok_or_else(|| broken("tables that are out of reach"))?;
            let field = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).wrapping_sub(old);
            // An entry's fields are near its beginning.
            if !(0..(1 << crate::mmu::TLB_SHAPE.0).max(size_of::<JumpEntry>()) as i32).contains(&field) {
                return Err(broken("a name of something else"));
            }
            bytes.copy_from_slice(&new.wrapping_add(field).to_le_bytes());
            self.rest = rest;
        }
        Ok(piece.len())
    }
}

/// The numbers before the lists.
struct Head {
    tables: [Tables; 2],
    used: u32,
    aside: u32,
    slots: u32,
    /// Of sites, exits, handlers' ops, translations, names.
    counts: [u32; 5],
}

impl Head {
    fn of(store: &Store, tables: [Tables; 2]) -> Self {
        let counts = [
            store.sites.len(),
            store.exits.len(),
            store.encoded.len(),
            store.translations.len(),
            store.named.len(),
        ];
        let (used, aside, slots) = (store.used as u32, store.aside as u32, store.slots.len() as u32);
        Self { tables, used, aside, slots, counts: counts.map(|count| count as u32) }
    }

    fn put(&self, to: &mut Vec<u8>) {
        to.extend(MAGIC.to_le_bytes());
        to.extend(fingerprint().to_le_bytes());
        let place = |at: Option<i32>| at.map_or(FAR, i32::cast_unsigned);
        let tables = self.tables.iter().flat_map(|t| [place(t.tlb), place(t.jumps)]);
        let numbers = tables.chain([self.used, self.aside, self.slots]).chain(self.counts);
        numbers.for_each(|number| to.extend(number.to_le_bytes()));
    }

    /// `None`: of another build or host.
    fn get(from: &mut Fields) -> Option<Self> {
        if (from.u64(), from.u64()) != (MAGIC, fingerprint()) {
            return None;
        }
        let place = |at: u32| (at != FAR).then_some(at.cast_signed());
        let tables = [(); 2].map(|()| Tables { tlb: place(from.u32()), jumps: place(from.u32()) });
        let (used, aside, slots) = (from.u32(), from.u32(), from.u32());
        Some(Self { tables, used, aside, slots, counts: [(); 5].map(|()| from.u32()) })
    }

    /// Whether there can be so much in this code memory.
    fn fits(&self, store: &Store) -> bool {
        let (used, aside) = (self.used as usize, self.aside as usize);
        let code = (store.first..=store.aside_from).contains(&used)
            && (store.aside_from..=store.code.len()).contains(&aside);
        let [sites, exits, ops, translations, names] = self.counts.map(|count| count as usize);
        // The last translation may go beyond what the next one is refused at.
        let most = MAX_PARTS + (1 << 12);
        let lists = [sites, exits, ops, translations].iter().all(|count| *count <= most);
        code && lists && names <= store.code.len() / 4 && (1..=SLOTS).contains(&(self.slots as usize))
    }
}

impl KeptCode {
    /// Reads what [`Cpu::keep_code`] wrote, for a vCPU with these places. `None`: by another build, or on another kind
    /// of host.
    ///
    /// # Errors
    /// The reader's; numbers that lead nowhere. The host gives no code memory.
    pub fn read(from: &mut dyn Read, own: CodePlaces) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEAD];
        from.read_exact(&mut bytes)?;
        let Some(head) = Head::get(&mut Fields(&bytes)) else { return Ok(None) };
        let (shared, places) = thunks::emit(&helpers());
        let mut store = Store::new(CodeMemory::new(CODE_BYTES)?, &shared, places);
        if !head.fits(&store) {
            return Err(broken("more than there is room for"));
        }
        let [sites, exits, ops, translations, names] = head.counts;
        store.named = list(from, names)?;
        let (first, aside) = (store.first, store.aside_from);
        (store.used, store.aside) = (head.used as usize, head.aside as usize);
        let mut renaming = Renaming { rest: &store.named, old: head.tables, new: own.0 };
        code(from, &mut store.code, first..store.used, &mut renaming)?;
        code(from, &mut store.code, aside..store.aside, &mut renaming)?;
        if !renaming.rest.is_empty() {
            return Err(broken("names that are nowhere"));
        }
        store.sites = list(from, sites)?;
        store.exits = list(from, exits)?;
        store.encoded = list::<Encoded>(from, ops)?;
        store.translations = list(from, translations)?;
        store.make_slots(head.slots as usize);
        if !is_sound(&store) {
            return Err(broken("a number that leads nowhere"));
        }
        let ops: Option<Vec<Handled>> = store.encoded.iter().map(handled).collect();
        let handled = ops.ok_or_else(|| broken("an instruction that no handler is for"))?;
        let (by_place, marks) = index(&mut store);
        Ok(Some(Self { store, handled, by_place, marks, own }))
    }
}

/// Whether each number is one of what it numbers.
fn is_sound(store: &Store) -> bool {
    let (slots, len) = (store.slots.len() as u32, store.code.len() as u32);
    let count = |count: usize| move |number: u32| number == NONE || (number as usize) < count;
    let (exit, op) = (count(store.exits.len()), count(store.encoded.len()));
    let translation = count(store.translations.len());
    let place = |at: u32| at <= len - 4;
    let site = |site: &KeptSite| op(site.op) && matches!(site.size, 0..=64);
    let way = |e: &KeptExit| {
        let jumps = [e.stub, e.jump(), e.bare(), e.unlinked()].into_iter().all(place);
        let patched = e.branch().is_none_or(place) && e.slot_at().is_none_or(place);
        jumps && patched && e.slot < slots && translation(e.to) && exit(e.next) && exit(e.before)
    };
    let own = |t: &Translation| {
        let second = t.second.is_none_or(|(slot, _)| slot < slots);
        place(t.at) && t.slot < slots && second && exit(t.incoming)
    };
    store.sites.iter().all(site)
        && store.exits.iter().all(way)
        && store.translations.iter().all(own)
        && store.named.iter().all(|name| place(name.at() as u32))
}

/// What finds translations: by their place, and by their page.
fn index(store: &mut Store) -> (Places, Vec<u64>) {
    let mut by_place = Places::with_capacity_and_hasher(store.translations.len(), Default::default());
    let mut marks = vec![0; MARKS / 64];
    let mut taken = vec![false; store.slots.len()];
    let Store { translations, pages, .. } = store;
    for (number, t) in (0..).zip(translations.iter()).filter(|(_, t)| t.alive) {
        by_place.insert(t.place, number);
        let (word, bit) = mark_of(t.place);
        marks[word] |= bit;
        let (page, _, _, user) = place_parts(t.place);
        for (slot, page) in std::iter::once((t.slot, page)).chain(t.second) {
            taken[slot as usize] = true;
            let fresh = || Page { generation: 0, translations: Vec::new(), slot };
            pages.entry(key(page, usize::from(!user))).or_insert_with(fresh).translations.push(number);
        }
    }
    let free = (1..).zip(taken.iter().skip(1)).filter(|(_, taken)| !**taken);
    store.free_slots = free.map(|(slot, _)| slot).collect();
    (by_place, marks)
}

impl Jit {
    /// Writes all translations, as they are; whether there are any.
    ///
    /// # Errors
    /// The writer's.
    pub(crate) fn keep(&mut self, cpu: &mut Cpu, to: &mut dyn Write) -> io::Result<bool> {
        self.sync(cpu);
        let CodePlaces(tables) = cpu.code_places();
        let Some(store) = self.store.as_ref().filter(|store| !store.translations.is_empty()) else {
            return Ok(false);
        };
        let head = Head::of(store, tables);
        let mut out = Out { to, bytes: Vec::with_capacity(2 * PIECE) };
        head.put(&mut out.bytes);
        // In the order of the code, and before it: it is changed on the way.
        let mut named = store.named.clone();
        named.sort_unstable_by_key(|name| name.at());
        out.list(&named)?;
        out.code(&store.code, store.first, store.used)?;
        out.code(&store.code, store.aside_from, store.aside)?;
        out.list(&store.sites)?;
        out.list(&store.exits)?;
        out.list(&store.encoded)?;
        out.list(&store.translations)?;
        out.pass(1)?;
        Ok(true)
    }

    /// Goes on with kept translations in the place of its own, which are forgotten; whether it does. No block knows
    /// any.
    pub(crate) fn adopt(&mut self, cpu: &mut Cpu, kept: KeptCode) -> bool {
        let KeptCode { mut store, handled, by_place, marks, own } = kept;
        let count = cpu.memory.page_count();
        let there = store.pages.keys().all(|key| ((key >> 1) as usize) < count);
        if !there || self.engine == Engine::Interpreter || own != cpu.code_places() {
            return false;
        }
        self.store = None;
        self.flush(cpu);
        // Before pages are watched: what is written from here on is seen.
        self.code_epoch = cpu.memory.code_epoch();
        cpu.mmu.overwritten.clear();
        for (key, page) in &mut store.pages {
            let number = (key >> 1) as usize;
            page.generation = cpu.mmu.watch_code(number);
            if cpu.memory.is_dirty(number) {
                page.generation = page.generation.wrapping_sub(1);
            }
        }
        store.ops = handled.into_iter().map(|handled| adopt(cpu, handled.decoded)).collect();
        store.unserialised = true;
        let memory = &cpu.memory;
        store.revalidate(None, |page| memory.code_generation(page));
        self.counters.kept += store.translations.iter().filter(|known| known.alive).count() as u64;
        (self.by_place, self.marks, self.recent) = (by_place, marks, vec![(0, 0); RECENT]);
        self.store = Some(store);
        true
    }
}

impl Cpu {
    /// For [`KeptCode::read`]; it makes room for the tables, if there was none.
    pub fn code_places(&mut self) -> CodePlaces {
        CodePlaces([tables(self, true), tables(self, false)])
    }

    /// Writes the translations that it has, for a process that goes on with the machine as it stands; whether there are
    /// any. It stands still.
    ///
    /// # Errors
    /// The writer's.
    pub fn keep_code(&mut self, to: &mut dyn Write) -> io::Result<bool> {
        self.with_code(|cpu, code| code.jit.keep(cpu, to))
    }

    /// Goes on with translations that [`Cpu::keep_code`] wrote when the machine was frozen in the state from which it
    /// was brought back; whether it does. Between two runs.
    pub fn adopt(&mut self, kept: KeptCode) -> bool {
        self.with_code(|cpu, code| code.adopt(cpu, kept))
    }
}
