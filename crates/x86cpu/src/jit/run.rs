//! The dispatcher's side: making translations, entering them, what they call, what they come back with.

use std::arch::asm;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use arch::x86_64::regs::{Cr0, Cr4, gpr};
use host::CodeMemory;

use super::cc::{evaluate, op, over};
use super::emit_x86_64::Asm;
use super::helpers::helpers;
use super::link::{Made, Store};
use super::lower::{Gen, Place, Tables, flow_jump_slot, leave, translate};
use super::parts::Name;
use super::scan::{Lines, read};
use super::state::{JumpEntry, clear_jump, empty_jumps, x87};
use super::thunks;
use super::{Engine, JIT_TICK, JitCounters, Turn};
use crate::block::{CodeCache, KeyHasher, NEVER, Source, TRANSLATED, place_parts};
use crate::cpu::{Cpu, Mode};
use crate::decode::Decoded;
use crate::mmu::MAX_OVERWRITTEN;

/// Bytes of host code at most.
pub(super) const CODE_BYTES: usize = 64 << 20;
/// More than any translation takes.
const ROOM: usize = 128 << 10;
/// Translations that are found without a look into a large table.
pub(super) const RECENT: usize = 1 << 13;
/// Bits of the filter of places: 64 KiB.
pub(super) const MARKS: usize = 1 << 19;
/// Sites, exits and handlers' ops kept at most.
pub(super) const MAX_PARTS: usize = 1 << 20;
/// What being next when a run's time was over counts, where being looked for counts 1.
const SAMPLE: u32 = 15;
/// Where RBP is above RSP by less than so many bytes, it points to a frame on the stack.
const FRAMES: u64 = 1 << 14;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// All SSE exceptions masked.
const MXCSR_MASKS: u32 = 0x1f80;
/// MXCSR of Rust code.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// Numbers of translations by [`crate::block::place`].
pub(super) type Places = HashMap<u64, u32, BuildHasherDefault<KeyHasher>>;

/// All translations of one vCPU.
#[derive(Default)]
pub(crate) struct Jit {
    pub(super) engine: Engine,
    pub(super) store: Option<Store>,
    /// The host refused code memory.
    refused: bool,
    pub(super) by_place: Places,
    /// Some of them, by [`recent_slot`]; nothing before the first. What tells their places apart, mostly, stands beside
    /// the number.
    pub(super) recent: Vec<(u32, u32)>,
    /// A bit for each place that may be among them, by [`mark_of`]: most of what is asked for is not translated.
    pub(super) marks: Vec<u64>,
    /// guestmem's code epoch at which the generations of all pages were last compared.
    pub(super) code_epoch: u32,
    /// Map epochs that the jump caches and the slots of pages belong to (user, supervisor).
    map_epochs: [u32; 2],
    /// Entries of the jump caches that are in use.
    jumps: [Vec<u16>; 2],
    /// The exit that was taken last, when it led nowhere yet.
    pending: Option<Pending>,
    /// The last run ended because its time was over: where it stands is where time is spent.
    sampled: bool,
    /// Nothing before the first translation.
    work: Option<Box<Work>>,
    /// Where the STI is that translated code executed last, by [`retired`]: the instruction behind it may leave.
    pub(super) enabled: Option<i64>,
    pub(super) counters: JitCounters,
}

/// Instructions that translated code has done up to one with `done` before it in its translation; counted from
/// anywhere, but from the same place until the code is left.
pub(super) fn retired(cpu: &Cpu, done: u64) -> i64 {
    done as i64 - cpu.jx.budget
}

/// Room to translate in. It is kept: a translation allocates nothing but its place in the store.
struct Work {
    code: Gen<Asm>,
    /// Of the page that is read, what was asked for.
    page: [u8; PAGE as usize],
}

impl Default for Work {
    fn default() -> Self {
        Self { code: Gen::default(), page: [0; PAGE as usize] }
    }
}

fn recent_slot(place: u64) -> usize {
    // Context in the lowest bits, then the offset in the page.
    (place >> 5 ^ place >> 17) as usize & (RECENT - 1)
}

/// What [`Jit::recent`] has of a place.
fn recent_tag(place: u64) -> u32 {
    (place ^ place >> 32) as u32
}

/// Word and bit of a place in [`Jit::marks`].
pub(super) fn mark_of(place: u64) -> (usize, u64) {
    let mut hasher = KeyHasher::default();
    hasher.write_u64(place);
    let hash = hasher.finish() >> (64 - MARKS.trailing_zeros());
    ((hash >> 6) as usize, 1 << (hash & 63))
}

/// An exit that was taken by code of a privilege, and its target.
struct Pending {
    exit: u32,
    target: u64,
    bank: usize,
}

impl Jit {
    pub(crate) fn set_engine(&mut self, engine: Engine) {
        self.engine = engine;
    }

    pub(crate) fn counters(&self) -> JitCounters {
        self.counters
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.refused && self.engine != Engine::Interpreter
    }

    fn limits(&self) -> (u32, u8) {
        match self.engine {
            Engine::Jit { after, longest } => (after.min(TRANSLATED - 2), longest.max(1)),
            Engine::Interpreter => (TRANSLATED - 2, 1),
        }
    }

    /// Places that are translated, and how often each was entered from the dispatcher.
    pub(crate) fn heats(&self) -> impl Iterator<Item = (u64, u32)> {
        let translations = self.store.iter().flat_map(|store| &store.translations);
        translations.filter(|known| known.alive).map(|known| (known.place, known.heat))
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self, cpu: &mut Cpu) {
        if let Some(store) = &mut self.store
            && !store.translations.is_empty()
        {
            store.clear();
            self.counters.flushes += 1;
        }
        self.by_place.clear();
        self.marks.fill(0);
        self.pending = None;
        (0..2).for_each(|bank| self.forget_jumps(cpu, bank));
    }

    /// Brings what depends on others' writes and on paging up to date.
    pub(super) fn sync(&mut self, cpu: &mut Cpu) {
        let now = cpu.memory.code_epoch();
        if now != self.code_epoch {
            // Nobody else's writes have moved it when this vCPU's own say it all.
            let own = std::mem::take(&mut cpu.mmu.overwritten);
            let all = now.wrapping_sub(self.code_epoch) as usize == own.len() && own.len() <= MAX_OVERWRITTEN;
            self.code_epoch = now;
            let memory = &cpu.memory;
            if let Some(store) = &mut self.store
                && store.revalidate(all.then_some(&own), |page| memory.code_generation(page))
            {
                (0..2).for_each(|bank| self.forget_jumps(cpu, bank));
            }
        }
        let bank = bank(cpu);
        let map = cpu.mmu.map_epoch;
        if map != self.map_epochs[bank] {
            self.map_epochs[bank] = map;
            self.forget_jumps(cpu, bank);
            if let Some(store) = &mut self.store {
                store.misplace(bank);
            }
        }
    }

    fn forget_jumps(&mut self, cpu: &mut Cpu, bank: usize) {
        let Some(banks) = &mut cpu.jumps else { return };
        let entries = &mut banks[bank];
        self.jumps[bank].drain(..).for_each(|slot| clear_jump(entries, slot));
    }

    /// Lets an indirect branch to a translation at `rip` find it.
    pub(super) fn remember_jump(&mut self, cpu: &mut Cpu, rip: u64, code: usize) {
        let (bank, slot) = (bank(cpu), flow_jump_slot(rip));
        let Some(banks) = &mut cpu.jumps else { return };
        let entry = &mut banks[bank][slot];
        if entry.code == 0 {
            self.jumps[bank].push(slot as u16);
        }
        *entry = JumpEntry { rip, code: code as u64 };
    }

    /// The store, made at first use.
    fn store(&mut self) -> Option<&mut Store> {
        if self.store.is_none() {
            let Ok(code) = CodeMemory::new(CODE_BYTES) else {
                self.refused = true;
                return None;
            };
            self.recent = vec![(0, 0); RECENT];
            self.marks = vec![0; MARKS / 64];
            let (head, thunks) = thunks::emit(&helpers());
            self.store = Some(Store::new(code, &head, thunks));
        }
        self.store.as_mut()
    }

    /// The translation of a block at a place, by what its heat says.
    pub(super) fn find(&self, heat: u32, place: u64) -> Option<u32> {
        let number = (heat & TRANSLATED != 0).then_some(heat & !TRANSLATED)?;
        let known = self.store.as_ref()?.translations.get(number as usize)?;
        (known.alive && known.place == place).then_some(number)
    }

    /// The translation of what is at a place.
    pub(crate) fn at(&mut self, place: u64) -> Option<u32> {
        let store = self.store.as_ref()?;
        let good = |number: u32| {
            store.translations.get(number as usize).is_some_and(|known| known.alive && known.place == place)
        };
        let recent = self.recent.get_mut(recent_slot(place))?;
        if recent.0 == recent_tag(place) && good(recent.1) {
            return Some(recent.1);
        }
        let (word, bit) = mark_of(place);
        if self.marks.get(word)? & bit == 0 {
            return None;
        }
        let number = self.by_place.get(&place).copied().filter(|number| good(*number))?;
        *recent = (recent_tag(place), number);
        Some(number)
    }

    /// Translation `number` was found at `Cpu::rip`. Gives its host address.
    pub(super) fn arrive(&mut self, cpu: &mut Cpu, number: u32) -> Option<usize> {
        let store = self.store.as_mut()?;
        Some(store.code.base().as_ptr() as usize + store.arrive(number, bank(cpu), page(cpu.rip)))
    }

    /// The next translation makes all of them be forgotten.
    fn is_full(&mut self) -> bool {
        self.store()
            .is_some_and(|s| s.is_full(ROOM) || s.sites.len().max(s.exits.len()).max(s.ops.len()) > MAX_PARTS)
    }

    /// Translates what is at a place before it runs, where that is possible and there is room; whether there is.
    pub(crate) fn make_ahead(&mut self, cpu: &mut Cpu, place: u64) -> bool {
        if self.is_full() || self.refused {
            return false;
        }
        let (page, ..) = place_parts(place);
        let generation = cpu.mmu.watch_code(page as usize);
        self.sync(cpu);
        if self.at(place).is_none() {
            let _ = self.make(cpu, place, Source { page, generation, second: None });
        }
        true
    }

    /// Translates what is at a place where translated code leads, and which is known to be hot: so it need neither be
    /// decoded for the interpreter nor be come back from. Only where nothing that runs has to be forgotten for it.
    pub(super) fn make_on_the_way(&mut self, cpu: &mut Cpu, place: u64) -> Option<u32> {
        if self.is_full() || self.refused {
            return None;
        }
        let (page, ..) = place_parts(place);
        let generation = cpu.mmu.watch_code(page as usize);
        self.make(cpu, place, Source { page, generation, second: None })
    }

    /// Translates what is at a place, in a page that was read under a code generation.
    fn make(&mut self, cpu: &mut Cpu, place: u64, source: Source) -> Option<u32> {
        let mut work = self.work.take().unwrap_or_default();
        let made = self.make_with(&mut work, cpu, place, source);
        self.work = Some(work);
        made
    }

    fn make_with(&mut self, work: &mut Work, cpu: &mut Cpu, place: u64, source: Source) -> Option<u32> {
        let Source { page, generation, second } = source;
        let (_, offset, _, user) = place_parts(place);
        let (_, longest) = self.limits();
        let mut beyond = None;
        if let Some((next, _)) = second {
            let mut head = [0; 15];
            cpu.memory.read(cpu.memory.page_gpa(next as usize), &mut head).ok()?;
            beyond = Some(head);
        }
        let Work { code: made, page: bytes } = work;
        let mut lines = Lines::new(bytes, &cpu.memory, page as usize);
        let any = read(&mut made.unit, &mut lines, beyond, offset, usize::from(longest));
        // Only now: whoever writes changes them first.
        let same = |(page, generation)| cpu.memory.code_generation(page as usize) == generation;
        if !any || !same((page, generation)) || !second.is_none_or(same) {
            return None;
        }
        if self.is_full() {
            self.flush(cpu);
        }
        let (bank, store) = (usize::from(!user), self.store()?);
        let slot = store.slot(page, generation, bank);
        let second = second.map(|(page, generation)| (store.slot(page, generation, bank), page));
        let at = Place {
            at: store.used,
            aside: Some(store.aside),
            thunks: store.thunks,
            bank,
            first_site: store.sites.len() as u32,
            first_exit: store.exits.len() as u32,
            first_op: store.ops.len() as u32,
            nowhere: store.slot_offset(0),
            second: second.map(|(slot, _)| store.slot_offset(slot)),
            tables: tables(cpu, user),
            bmi2: super::host_has_bmi2(),
            frame: cpu.gpr[gpr::RBP].wrapping_sub(cpu.gpr[gpr::RSP]) < FRAMES,
        };
        translate(made, at);
        for handled in made.unit.decoded.drain(..) {
            store.encoded.push(handled.encoded);
            store.ops.push(adopt(cpu, handled.decoded));
        }
        store.add_sites(&made.sites);
        store.named.extend(made.named.drain(..).map(|(pos, named)| {
            let at = at.at as i64 + made.a.place_of(pos as usize);
            Name::new(at as u32, bank, named)
        }));
        let base = at.at as u32;
        for mut e in made.exits.drain(..) {
            // All of them are in the first piece.
            for at in [&mut e.stub, &mut e.bare, &mut e.jump, &mut e.unlinked] {
                *at += base;
            }
            e.branch = e.branch.map(|at| at + base);
            e.slot = e.slot.map(|at| at + base);
            store.add_exit(e, slot);
        }
        let flags_dead = made.unit.flags_dead;
        let pages = std::iter::once(page).chain(second.map(|(_, page)| page));
        let number = store.add(Made { place, slot, second, flags_dead }, pages, bank, made.a.pieces());
        self.by_place.insert(place, number);
        let (word, bit) = mark_of(place);
        self.marks[word] |= bit;
        self.counters.translations += 1;
        self.counters.code_bytes += made.a.buf.len() as u64;
        Some(number)
    }
}

/// Where a displacement reaches what translations for a privilege look in. (It need not be the running one: a kernel that
/// sleeps has what its programs run translated ahead.)
pub(super) fn tables(cpu: &mut Cpu, user: bool) -> Tables {
    // The last byte counts: entries are named by their fields.
    let low = |first: usize, len: usize| i32::try_from(first + len).ok().map(|_| first as i32);
    let jumps = &cpu.jumps.get_or_insert_with(empty_jumps)[usize::from(!user)];
    let (first, len) = (jumps.as_ptr().expose_provenance(), size_of_val::<[JumpEntry]>(jumps));
    Tables { tlb: low(cpu.mmu.tlb_bank_of(user), crate::mmu::TLB_BYTES), jumps: low(first, len) }
}

/// An op for the interpreter's handler.
pub(super) fn adopt(cpu: &mut Cpu, decoded: Decoded) -> crate::op::Op {
    let mut op = decoded.op;
    if let Some(insn) = decoded.fp {
        op.imm = cpu.fp_ops.len() as u64;
        cpu.fp_ops.push(insn);
    }
    op
}

/// The page of an address.
pub(super) fn page(address: u64) -> u64 {
    address & !(PAGE - 1)
}

pub(super) fn bank(cpu: &Cpu) -> usize {
    usize::from(cpu.cpl != 3)
}

/// The x87 is on and cannot raise.
pub(super) fn x87_ok(cpu: &Cpu) -> bool {
    cpu.cr0 & (Cr0::EM | Cr0::TS).bits() == 0 && cpu.fpu.is_masked()
}

/// SSE is on and cannot raise.
pub(super) fn sse_ok(cpu: &Cpu) -> bool {
    let off = cpu.cr0 & (Cr0::EM | Cr0::TS).bits() | !cpu.cr4 & Cr4::OSFXSR.bits();
    off == 0 && cpu.fpu.mxcsr & MXCSR_MASKS == MXCSR_MASKS
}

impl Cpu {
    /// Looks whether block `index`, which is at `rip` and valid, is translated or should be, and runs it
    /// (and what follows it), up to the instruction count `limit`. `None`: nothing has happened, interpret it.
    pub(crate) fn jit_turn(&mut self, code: &mut CodeCache, index: u32, limit: u64) -> Option<Turn> {
        let (after, longest) = code.jit.limits();
        let heat = code.heat(index);
        if heat == NEVER {
            return None;
        }
        if heat & TRANSLATED == 0 && self.insn_count < code.quiet_until {
            return None;
        }
        if heat < after && !(heat == 0 && self.is_foreseen(code.block(index).place(self))) {
            code.set_heat(index, heat + 1);
            return None;
        }
        let room = limit.saturating_sub(self.insn_count).min(JIT_TICK + u64::from(longest));
        let budget = room.checked_sub(u64::from(longest))?;
        code.jit.sync(self);
        let block = *code.block(index);
        let place = block.place(self);
        let known = code.jit.find(heat, place).or_else(|| code.jit.at(place));
        // Where its second page is another one, it is another translation.
        let second = block.source().second.map(|(page, _)| page);
        let is_its = |n: &u32| code.jit.store.as_ref().is_some_and(|store| store.second_page(*n) == second);
        let known = known.filter(is_its);
        let number = match known {
            Some(n) => n,
            None => {
                let long = self.mode == Mode::Long64;
                let made = if long { code.jit.make(self, place, block.source()) } else { None };
                let Some(n) = made else {
                    code.set_heat(index, NEVER);
                    return None;
                };
                n
            }
        };
        code.set_heat(index, TRANSLATED | number);
        self.enter(code, number, budget as i64)
    }

    /// What translated code finds in [`super::JitState`] follows the running privilege.
    pub(super) fn point_to_bank(&mut self) {
        self.jx.tlb = self.mmu.tlb_bank();
        self.jx.jumps = self.jumps.as_ref().map_or(0, |banks| banks[bank(self)].as_ptr().expose_provenance());
        self.jx.sse_ok = u8::from(sse_ok(self));
        self.jx.x87_ok = u8::from(x87_ok(self));
    }

    fn enter(&mut self, code: &mut CodeCache, number: u32, budget: i64) -> Option<Turn> {
        let at = code.jit.arrive(self, number)?;
        let pending = code.jit.pending.take();
        let store = code.jit.store.as_mut()?;
        if std::mem::take(&mut code.jit.sampled) {
            store.heat(number, SAMPLE);
        }
        if let Some(Pending { exit, target, bank: then }) = pending
            && (target, then) == (self.rip, bank(self))
            && (exit as usize) < store.exits.len()
        {
            store.link(exit, number);
        }
        let base = store.code.base().as_ptr() as usize;
        self.jx.page = page(self.rip);
        if std::mem::take(&mut store.unserialised) {
            serialise();
        }
        let gate = base + store.thunks.enter;
        code.jit.remember_jump(self, self.rip, at);
        self.mmu_sync();
        self.point_to_bank();
        self.jx.budget = budget;
        (self.jx.op, self.jx.over, self.jx.live) = (op::IN_FLAGS, over::NONE, 0);
        self.jx.host_mxcsr = MXCSR_DEFAULT;
        self.jx.code = (&raw mut *code).expose_provenance();
        // SAFETY: the thunk is a function of this type (thunks::emit), the code memory lives in `code.jit`,
        // and the translation keeps to its module's first invariant. `self` and `code` are lent to it: Rust
        // does not touch them before it returns, but through the pointers that it is given.
        let left = unsafe {
            let gate: extern "sysv64" fn(*mut Cpu, usize) -> u32 = std::mem::transmute(gate);
            gate(&raw mut *self, at)
        };
        self.x87_home();
        // (A helper may have counted what came before it.)
        let used = (budget - self.jx.budget) as u64;
        self.insn_count += used;
        code.jit.counters.instructions += used;
        code.jit.counters.entries += 1;
        Some(self.left(&mut code.jit, left))
    }

    /// The x87 registers are in [`Cpu::fpu`] from here on, unless they are in the host's.
    pub(super) fn x87_home(&mut self) {
        if self.jx.x87 == x87::SAVED {
            self.fpu.take_host(&self.x87_image.0);
            self.jx.x87 = x87::HOME;
        }
    }

    /// Makes the guest's state whole after translated code was left with `code`.
    fn left(&mut self, jit: &mut Jit, code: u32) -> Turn {
        let number = (code >> leave::BITS) as usize;
        let enabled = jit.enabled.take();
        let Some(store) = &jit.store else { return Turn::Next };
        let kind = code & ((1 << leave::BITS) - 1);
        let mut turn = Turn::Next;
        match kind {
            leave::EXIT => {
                let exit = &store.exits[number];
                exit.desc().settle(self);
                self.rip = self.jx.page.wrapping_add(exit.target);
                if self.jx.budget >= 0 {
                    jit.pending = Some(Pending { exit: number as u32, target: self.rip, bank: bank(self) });
                }
            }
            leave::RIP => {}
            _ => {
                let site = &store.sites[number];
                let mut done = u64::from(site.done);
                if kind == leave::DONE {
                    self.serialise();
                    done += 1;
                } else {
                    if enabled.is_some_and(|sti| sti + 1 == retired(self, done)) {
                        // It has not been done yet: nothing may look for interrupts before it.
                        (self.events.sti_shadow, self.attention) = (true, true);
                    }
                    site.desc().settle(self);
                    self.rip = self.jx.page.wrapping_add(site.rip());
                    turn = match kind {
                        leave::AGAIN => Turn::Next,
                        leave::INTERPRET => Turn::Block,
                        _ => Turn::Single,
                    };
                    jit.counters.steps += u64::from(kind == leave::STEP);
                }
                self.insn_count += done;
                jit.counters.instructions += done;
            }
        }
        jit.sampled = self.jx.budget < 0;
        evaluate(self);
        turn
    }
}

/// Makes what was written to the code memory visible to this thread's instruction fetch: IRET is a
/// serialising instruction that user mode has (SDM vol. 3, 9.3).
pub(super) fn serialise() {
    // SAFETY: returns to the next line with the same stack, flags and segments.
    unsafe {
        asm!(
            "mov {old}, rsp",
            "mov {t:e}, ss",
            "push {t}",
            "push {old}",
            "pushfq",
            "mov {t:e}, cs",
            "push {t}",
            "lea {t}, [rip + 2f]",
            "push {t}",
            "iretq",
            "2:",
            old = out(reg) _,
            t = out(reg) _,
        );
    }
}
