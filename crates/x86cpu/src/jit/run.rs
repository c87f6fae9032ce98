//! The dispatcher's side: making translations, entering them, what they call, what they come back with.

use std::arch::asm;
use std::collections::HashMap;

use arch::x86_64::regs::{Cr0, Cr4};
use host::CodeMemory;

use super::cc::{evaluate, op, over};
use super::helpers::helpers;
use super::link::{Made, Store};
use super::lower::{Place, flow_jump_slot, leave, translate};
use super::scan::unit;
use super::state::{JumpEntry, clear_jumps, empty_jumps, x87};
use super::thunks;
use super::{Engine, JIT_TICK, JitCounters, Turn};
use crate::block::{CodeCache, NEVER, Source, TRANSLATED};
use crate::cpu::{Cpu, Mode};
use crate::decode::Decoded;

/// Bytes of host code at most.
const CODE_BYTES: usize = 32 << 20;
/// More than any translation takes.
const ROOM: usize = 128 << 10;
/// Sites, exits and handlers' ops kept at most.
const MAX_PARTS: usize = 1 << 20;
/// All SSE exceptions masked.
const MXCSR_MASKS: u32 = 0x1f80;
/// MXCSR of Rust code.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// All translations of one vCPU.
#[derive(Default)]
pub(crate) struct Jit {
    engine: Engine,
    pub(super) store: Option<Store>,
    /// Bytes that all translations share, at the start of the code memory.
    head: usize,
    /// The host refused code memory.
    refused: bool,
    /// By block and virtual address.
    by_place: HashMap<(u32, u64), u32>,
    /// guestmem's code epoch at which the generations of all pages were last compared.
    code_epoch: u32,
    /// Map epochs that the jump caches belong to (user, supervisor).
    map_epochs: [u32; 2],
    /// The exit that was taken last, when it led nowhere yet, and its target.
    pending: Option<(u32, u64)>,
    counters: JitCounters,
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

    /// Forgets everything.
    pub(crate) fn flush(&mut self, cpu: &mut Cpu) {
        if let Some(store) = &mut self.store
            && !store.translations.is_empty()
        {
            store.clear(self.head);
            self.counters.flushes += 1;
        }
        self.by_place.clear();
        self.pending = None;
        forget_jumps(cpu);
    }

    /// Brings what depends on others' writes and on paging up to date.
    pub(super) fn sync(&mut self, cpu: &mut Cpu) {
        let now = cpu.memory.code_epoch();
        if now != self.code_epoch {
            self.code_epoch = now;
            let memory = &cpu.memory;
            if let Some(store) = &mut self.store
                && store.revalidate(|page| memory.code_generation(page))
            {
                forget_jumps(cpu);
            }
        }
        let bank = bank(cpu);
        let map = cpu.mmu.map_epoch;
        if map != self.map_epochs[bank] {
            self.map_epochs[bank] = map;
            clear_jumps(&mut cpu.jumps[bank]);
        }
        cpu.jx.map_epoch = map;
    }

    /// The store, made at first use.
    fn store(&mut self) -> Option<&mut Store> {
        if self.store.is_none() {
            let Ok(code) = CodeMemory::new(CODE_BYTES) else {
                self.refused = true;
                return None;
            };
            let (head, thunks) = thunks::emit(&helpers());
            self.head = head.len();
            self.store = Some(Store::new(code, &head, thunks));
        }
        self.store.as_mut()
    }

    pub(super) fn find(&self, block: u32, heat: u32, rip: u64) -> Option<u32> {
        let store = self.store.as_ref()?;
        let good = |n: u32| {
            store.translations.get(n as usize).is_some_and(|t| t.alive && t.rip == rip && t.block == block)
        };
        let guess = heat & !TRANSLATED;
        if heat & TRANSLATED != 0 && good(guess) {
            return Some(guess);
        }
        self.by_place.get(&(block, rip)).copied().filter(|n| good(*n))
    }

    /// Translates what is at `rip` in a page that was read under a code generation.
    fn make(&mut self, cpu: &mut Cpu, block: u32, source: Source) -> Option<u32> {
        let Source { page, generation, second } = source;
        let (_, longest) = self.limits();
        let rip = cpu.rip;
        let mut bytes = [0; 4096];
        cpu.memory.read_page(page as usize, &mut bytes);
        let mut beyond = None;
        if let Some((next, _)) = second {
            let mut head = [0; 15];
            cpu.memory.read(cpu.memory.page_gpa(next as usize), &mut head).ok()?;
            beyond = Some(head);
        }
        // Only now: whoever writes changes them first.
        let same = |(page, generation)| cpu.memory.code_generation(page as usize) == generation;
        if !same((page, generation)) || !second.is_none_or(same) {
            return None;
        }
        let unit = unit(&bytes, beyond, rip, usize::from(longest))?;
        let full = self.store().is_some_and(|s| {
            s.used + ROOM > s.code.len() || s.sites.len().max(s.exits.len()).max(s.ops.len()) > MAX_PARTS
        });
        if full {
            self.flush(cpu);
        }
        let store = self.store()?;
        let place = Place {
            at: store.used,
            thunks: store.thunks,
            first_site: store.sites.len() as u32,
            first_exit: store.exits.len() as u32,
            first_op: store.ops.len() as u32,
            epoch: second.map(|_| cpu.mmu.map_epoch),
        };
        let flags_dead = unit.flags_dead;
        let made = translate(unit, place);
        for decoded in made.ops {
            let op = adopt(cpu, decoded);
            store.ops.push(op);
        }
        store.sites.extend(made.sites);
        let base = place.at as u32;
        for mut e in made.exits {
            for at in [&mut e.stub, &mut e.bare, &mut e.jump, &mut e.unlinked] {
                *at += base;
            }
            e.branch = e.branch.map(|at| at + base);
            e.epoch = e.epoch.map(|at| at + base);
            store.add_exit(e);
        }
        let number = store
            .add(Made { rip, block, page, generation, second, epoch: made.epoch, flags_dead }, &made.a.buf);
        self.counters.translations += 1;
        self.counters.code_bytes += made.a.buf.len() as u64;
        self.by_place.insert((block, rip), number);
        Some(number)
    }
}

/// An op for the interpreter's handler.
fn adopt(cpu: &mut Cpu, decoded: Decoded) -> crate::op::Op {
    let mut op = decoded.op;
    if let Some(insn) = decoded.fp {
        op.imm = cpu.fp_ops.len() as u64;
        cpu.fp_ops.push(insn);
    }
    op
}

fn forget_jumps(cpu: &mut Cpu) {
    cpu.jumps.iter_mut().for_each(|bank| clear_jumps(bank));
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
        if heat < after {
            code.set_heat(index, heat + 1);
            return None;
        }
        let room = limit.saturating_sub(self.insn_count).min(JIT_TICK + u64::from(longest));
        let budget = room.checked_sub(u64::from(longest))?;
        code.jit.sync(self);
        let known = code.jit.find(index, heat, self.rip);
        let number = match known {
            Some(n) => n,
            None => {
                let long = self.mode == Mode::Long64;
                let source = code.block(index).source();
                let made = if long { code.jit.make(self, index, source) } else { None };
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

    /// Lets an indirect branch to a translation at `rip` find it.
    pub(super) fn remember_jump(&mut self, rip: u64, code: usize) -> *const JumpEntry {
        let entry = &mut self.jumps[bank(self)][flow_jump_slot(rip)];
        *entry = JumpEntry { rip, code: code as u64 };
        entry
    }

    /// What translated code finds in [`super::JitState`] follows the running privilege.
    pub(super) fn point_to_bank(&mut self) {
        self.jx.tlb = self.mmu.tlb_bank();
        self.jx.jumps = self.jumps[bank(self)].as_ptr().expose_provenance();
        self.jx.sse_ok = u8::from(sse_ok(self));
        self.jx.x87_ok = u8::from(x87_ok(self));
    }

    fn enter(&mut self, code: &mut CodeCache, number: u32, budget: i64) -> Option<Turn> {
        let pending = code.jit.pending.take();
        let store = code.jit.store.as_mut()?;
        if let Some((exit, target)) = pending
            && target == self.rip
            && (exit as usize) < store.exits.len()
        {
            store.link(exit, number, self.jx.map_epoch);
        }
        store.confirm(number, self.jx.map_epoch);
        let at = store.translations[number as usize].at as usize;
        let base = store.code.base().as_ptr() as usize;
        if self.jumps[0].is_empty() {
            self.jumps = empty_jumps();
        }
        self.remember_jump(self.rip, base + at);
        if std::mem::take(&mut store.unserialised) {
            serialise();
        }
        self.mmu_sync();
        self.point_to_bank();
        self.jx.budget = budget;
        (self.jx.op, self.jx.over, self.jx.live) = (op::IN_FLAGS, over::NONE, 0);
        self.jx.host_mxcsr = MXCSR_DEFAULT;
        let gate = base + store.thunks.enter;
        self.jx.code = (&raw mut *code).expose_provenance();
        // SAFETY: the thunk is a function of this type (thunks::emit), the code memory lives in `code.jit`,
        // and the translation keeps to its module's first invariant. `self` and `code` are lent to it: Rust
        // does not touch them before it returns, but through the pointers that it is given.
        let left = unsafe {
            let gate: extern "sysv64" fn(*mut Cpu, usize) -> u32 = std::mem::transmute(gate);
            gate(&raw mut *self, base + at)
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
        let Some(store) = &jit.store else { return Turn::Next };
        let kind = code & ((1 << leave::BITS) - 1);
        let mut turn = Turn::Next;
        match kind {
            leave::EXIT => {
                let exit = &store.exits[number].exit;
                exit.desc.settle(self);
                self.rip = exit.target;
                if self.jx.budget >= 0 {
                    jit.pending = Some((number as u32, exit.target));
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
                    site.desc.settle(self);
                    self.rip = site.rip;
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
