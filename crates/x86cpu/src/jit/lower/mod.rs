//! From a [`Unit`] to host code. One file per class of instructions; this one has what they share.
//!
//! Invariants of a template: guest state changes only behind the last point that can miss (so that
//! the instruction can be done again by the interpreter); `host` says what the host's flags are worth
//! after it; flags that `Item::need` asks for are described by `desc`.

mod address;
mod alu;
mod bits;
mod flags;
mod flow;
mod high;
mod moves;
mod rare;
pub(super) mod sse;
pub(super) mod stack;
mod system;
mod window;
pub(super) mod x87;

pub(super) use flow::jump_slot as flow_jump_slot;

use super::cc::Desc;
use super::emit::{Emit, Jump, Mem, Rm, cc};
use super::plan::{Plan, bit, has_high};
use super::regs::{self, T0, T1, TMP, field, home, pinned};
use super::scan::{Item, Unit};

/// A place where a translation may be left in the middle of its instructions.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The instruction that has not been done, relative to [`super::JitState`]'s page.
    pub rip: u64,
    /// Instructions done before it.
    pub done: u16,
    /// Of a look-up that may miss.
    pub size: u8,
    pub write: bool,
    pub desc: Desc,
    /// Index of the interpreter's op.
    pub op: u32,
}

/// A place where a translation goes on in another.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    /// Relative to [`super::JitState`]'s page.
    pub target: u64,
    pub done: u16,
    pub desc: Desc,
    /// Positions: of the stub, of it behind its stores, and of the 32-bit displacement of the jump that
    /// leads on.
    pub stub: u32,
    pub bare: u32,
    pub jump: u32,
    /// Behind the jump: where it leads while it is not linked.
    pub unlinked: u32,
    /// Position of the displacement of the branch that leads to the stub.
    pub branch: Option<u32>,
    /// Position of the displacement of the slot that must say where it leads to, where that is another page.
    pub slot: Option<u32>,
    /// It leads farther than can be computed here: it is never linked.
    pub is_far: bool,
}

/// Code that stands behind the translation's main path.
enum Stub {
    /// A look-up missed: fill the TLB and try again.
    Fill {
        from: Jump,
        again: usize,
        tag: i32,
        site: u32,
    },
    /// The dispatcher is asked, by one of the numbers of [`leave`].
    Leave {
        from: Jump,
        site: u32,
        how: u32,
    },
    /// A target is not in the jump cache: put it there, go back.
    Search {
        from: Jump,
        site: u32,
        back: usize,
    },
    /// The same for the stack; number of the thunk.
    Stack {
        from: Jump,
        again: usize,
        back: usize,
        number: usize,
        site: u32,
    },
    /// Bring flags into one piece, go back.
    Collapse {
        from: Jump,
        back: usize,
    },
    Exit {
        from: Jump,
        exit: usize,
    },
    /// A window does not hold: each access of its instructions is looked up.
    Apart(window::Apart),
}

/// Entry points that all translations share, as offsets in the code memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Thunks {
    pub enter: usize,
    pub leave: usize,
    pub fill: usize,
    pub handler: usize,
    pub flags: usize,
    pub collapse: usize,
    pub xmm_load: usize,
    pub x87_load: usize,
    /// An indirect branch's target is not in the jump cache.
    pub indirect: usize,
    /// An exit that leads nowhere.
    pub unlinked: usize,
    /// Where an indirect branch goes whose target is not translated.
    pub missed: usize,
    /// A handler that ends a translation.
    pub transfer: usize,
    /// Interrupts are let in, unless one is due.
    pub enable: usize,
    /// Look-ups of the stack, by privilege and [`stack::thunk_number`].
    pub stack: [[usize; 10]; 2],
}

/// Where translations go and what they may assume.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    /// Offset in the code memory.
    pub at: usize,
    /// The same of what seldom runs; `None`: behind the rest.
    pub aside: Option<usize>,
    pub thunks: Thunks,
    /// Privilege of the code (0: user).
    pub bank: usize,
    /// Numbers of the first site and the first exit.
    pub first_site: u32,
    pub first_exit: u32,
    pub first_op: u32,
    /// Offset in the code memory of a slot that says nothing.
    pub nowhere: usize,
    /// Its code is in two pages: offset of the slot of the second.
    pub second: Option<usize>,
    pub tables: Tables,
    /// The host has BMI2.
    pub bmi2: bool,
    /// RBP points into the stack, when it is made at least.
    pub frame: bool,
}

/// Where a displacement reaches them: the TLB's entries and the jump cache of the code's privilege.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub tlb: Option<i32>,
    pub jumps: Option<i32>,
}

/// One of the [`Tables`], by which code names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Tlb,
    Jumps,
}

/// What leaves a translation in T1 (and arrives in [`super::run`]): a number and one of these.
pub(super) mod leave {
    pub const EXIT: u32 = 0;
    /// Do the site's instruction in the interpreter.
    pub const STEP: u32 = 1;
    /// The site's block is for the interpreter.
    pub const INTERPRET: u32 = 2;
    /// At `Cpu::rip`, with everything in memory.
    pub const RIP: u32 = 3;
    /// A handler was called at the site, all is done.
    pub const DONE: u32 = 4;
    /// The dispatcher looks again at the site.
    pub const AGAIN: u32 = 5;
    pub const BITS: u32 = 3;
}

/// Bytes of a page.
const PAGE: u64 = 4096;

/// From the page that addresses are relative to, to the page of `target`; `None`: beyond what an immediate says, which
/// is 2 GiB and a page at most.
fn page_step(target: u64) -> Option<i32> {
    i32::try_from((target & !(PAGE - 1)) as i64).ok()
}

/// A translation as it is put together. Its memory serves the next one, too.
#[derive(Default)]
pub(super) struct Gen<E> {
    pub a: E,
    pub sites: Vec<Site>,
    pub exits: Vec<Exit>,
    /// Where a table is named: positions of 32 bits, which are its address or less than an entry more.
    pub named: Vec<(u32, Named)>,
    /// What is translated. `decoded`: for sites whose instruction is the interpreter's, in their order.
    pub unit: Unit,
    /// Of those so many have a site.
    handled: u32,
    place: Place,
    stubs: Vec<Stub>,
    desc: Desc,
    /// Which of the guest's flags are in the host's.
    host: u8,
    /// The guest's x87 state is in the host's registers for sure.
    x87_live: bool,
    /// Where it is, as all addresses here relative to its page.
    rip: u64,
    done: u16,
    /// Memory that the instructions at hand were looked up together for.
    window: Option<window::Window>,
}

/// Makes host code of `g.unit`.
pub(super) fn translate<E: Emit>(g: &mut Gen<E>, place: Place) {
    g.a.clear();
    g.sites.clear();
    g.exits.clear();
    g.named.clear();
    (g.place, g.handled, g.window) = (place, 0, None);
    (g.desc, g.host, g.x87_live) = (Desc::UNKNOWN, bit::NONE, false);
    (g.rip, g.done) = (g.unit.start, 0);
    if let Some(slot) = place.second {
        g.need_second(slot);
    }
    if g.unit.uses_sse {
        g.need_xmm();
    }
    let mut at = 0;
    while at < g.unit.items.len() {
        at += match g.window_of(at) {
            Some(plan) => g.together(at, plan),
            None => g.one(at),
        };
    }
    g.done = at as u16;
    if let Some(next) = g.unit.next {
        let exit = g.new_exit(next);
        g.exit_here(exit);
    }
    g.finish();
}

impl<E: Emit> Gen<E> {
    /// Item number `at` by itself. 1: it is done.
    fn one(&mut self, at: usize) -> usize {
        self.done = at as u16;
        // Nobody asks for it again while it is worked at.
        let items = std::mem::take(&mut self.unit.items);
        self.rip = items[at].insn.ip();
        self.item(&items[at]);
        self.unit.items = items;
        1
    }

    fn item(&mut self, item: &Item) {
        match item.plan {
            Plan::Nop | Plan::Jmp | Plan::Stop => {}
            Plan::Fence => self.a.fence(),
            Plan::Alu(operation) if has_high(&item.insn) => self.alu_high(item, operation),
            Plan::Mov if has_high(&item.insn) => self.mov_high(item),
            Plan::Extend { signed } if has_high(&item.insn) => self.extend_high(item, signed),
            Plan::Alu(operation) => self.alu(item, operation),
            Plan::Unary(operation) => self.unary(item, operation),
            Plan::Shift(operation) => self.shift(item, operation),
            Plan::RotateByCl(operation) => self.rotate_by_cl(item, operation),
            Plan::Double { left } => self.double_shift(item, left),
            Plan::Imul => self.imul(item),
            Plan::Mul { signed } => self.mul(item, signed),
            Plan::Div { signed } => self.div(item, signed),
            Plan::Bt(kind) => self.bit_test(item, kind),
            Plan::BtFar(kind) => self.bit_test_far(item, kind),
            Plan::BitScan { reverse } => self.bit_scan(item, reverse),
            Plan::Popcnt => self.popcnt(item),
            Plan::Crc32 => self.crc32(item),
            Plan::CmpxchgPair => self.compare_pair(item),
            Plan::Bswap => self.bswap(item),
            Plan::Widen | Plan::Sign => self.widen(item),
            Plan::Cli => self.cli(),
            Plan::Sti => self.sti(),
            Plan::Swapgs => self.swapgs(),
            Plan::Pushf => self.pushf(),
            Plan::Mov => self.mov(item),
            Plan::Extend { signed } => self.extend(item, signed),
            Plan::Lea => self.lea(item),
            Plan::XchgRegs => self.xchg_regs(item),
            Plan::XchgMem | Plan::Xadd | Plan::Cmpxchg => self.exchange(item),
            Plan::Push => self.push(item),
            Plan::Pop => self.pop(item),
            Plan::Leave => self.leave(),
            Plan::Setcc(cc) => self.setcc(item, cc),
            Plan::Cmov(cc) => self.cmov(item, cc),
            Plan::Jcc(cc) => self.jcc(cc, item.insn.near_branch_target()),
            Plan::Loop(cc) => self.jcc(cc ^ 1, item.insn.next_ip()),
            Plan::Call => self.call(item),
            Plan::Ret => self.ret(item),
            Plan::JmpIndirect | Plan::CallIndirect => self.indirect(item),
            Plan::Sse => self.sse(item),
            Plan::X87 => self.x87(item),
            Plan::Handler | Plan::HandlerEnd => self.handler(item),
        }
    }

    /// The interpreter's handler does it.
    fn handler(&mut self, item: &Item) {
        let site = self.new_site(0, false);
        let s = &mut self.sites[site as usize];
        s.op = self.place.first_op + self.handled;
        self.handled += 1;
        self.a.mov_imm(T1, u64::from(self.place.first_site + site));
        if item.plan == Plan::HandlerEnd {
            let jump = self.a.jmp();
            return self.lead_to(jump, self.place.thunks.transfer);
        }
        let call = self.a.call();
        self.lead_to(call, self.place.thunks.handler);
        self.desc = Desc::IN_MEMORY;
        self.host = bit::NONE;
        self.x87_live = false;
    }

    /// What was emitted last ends with a displacement or immediate that names a table, if it has a place within reach.
    fn name(&mut self, table: Option<i32>, named: Named) {
        if table.is_some() {
            self.named.push((self.a.pos() as u32 - 4, named));
        }
    }

    fn lead_to(&mut self, jump: Jump, thunk: usize) {
        self.a.bind_to_place(jump, thunk as i64 - self.place.at as i64);
    }

    /// The place before the current instruction.
    fn new_site(&mut self, size: u8, write: bool) -> u32 {
        let site = Site { rip: self.rip, done: self.done, size, write, desc: self.desc, op: u32::MAX };
        self.sites.push(site);
        self.sites.len() as u32 - 1
    }

    /// On condition `cc` the target in T0 is looked for elsewhere; T1 is its entry in the jump cache then.
    fn search_if(&mut self, cc: u8) {
        let from = self.a.jcc(cc);
        let site = self.new_site(0, false);
        self.stubs.push(Stub::Search { from, site, back: self.a.pos() });
    }

    /// Leaves the current instruction to the interpreter on condition `cc`.
    fn step_if(&mut self, cc: u8) {
        let from = self.a.jcc(cc);
        let site = self.new_site(0, false);
        self.stubs.push(Stub::Leave { from, site, how: leave::STEP });
    }

    /// The second page of the code is still the one that was translated.
    fn need_second(&mut self, slot: usize) {
        self.own_address(T1, PAGE);
        let place = self.a.cmp_with_place(T1);
        self.lead_to(place, slot);
        let from = self.a.jcc(cc::NE);
        let site = self.new_site(0, false);
        self.stubs.push(Stub::Leave { from, site, how: leave::AGAIN });
    }

    /// SSE registers are in the host's from here on.
    fn need_xmm(&mut self) {
        self.a.alu_imm(1, 7, field(regs::LIVE), 0);
        let ready = self.a.jcc(cc::NE);
        let site = self.new_site(0, false) + self.place.first_site;
        self.a.mov_imm(T1, u64::from(site << leave::BITS | leave::INTERPRET));
        let call = self.a.call();
        self.lead_to(call, self.place.thunks.xmm_load);
        self.a.bind(ready);
    }

    /// The host register that has guest register `g`, loaded into `scratch` if need be.
    fn value(&mut self, g: u8, scratch: u8) -> u8 {
        pinned(g).unwrap_or_else(|| {
            self.a.load(8, scratch, home(g));
            scratch
        })
    }

    /// Guest register `g` as an operand.
    fn operand(&self, g: u8) -> Rm {
        pinned(g).map_or_else(|| home(g), Rm::Reg)
    }

    /// Writes a guest register from a host register as an instruction with an operand of `size` bytes
    /// would. Flags stay.
    fn put(&mut self, size: u8, g: u8, from: u8) {
        match pinned(g) {
            Some(r) if r == from && size == 8 => {}
            Some(r) => self.a.load(size, r, Rm::Reg(from)),
            // A scratch register's upper half is zero after a 32-bit operation.
            None => self.a.store(if size == 4 { 8 } else { size }, from, home(g)),
        }
    }

    /// A scratch register for instructions without memory operands: in a window T0 has its address.
    fn spare(&self) -> u8 {
        if self.window.is_some() { T1 } else { T0 }
    }

    fn new_exit(&mut self, target: u64) -> usize {
        self.exits.push(Exit {
            target,
            done: self.done,
            desc: self.desc,
            stub: 0,
            bare: 0,
            jump: 0,
            unlinked: 0,
            branch: None,
            slot: None,
            is_far: page_step(target).is_none(),
        });
        self.exits.len() - 1
    }

    /// The code of an exit.
    fn exit_here(&mut self, exit: usize) {
        let Exit { target, done, desc, .. } = self.exits[exit];
        let stub = self.a.pos() as u32;
        let mine = target == self.unit.start;
        if !mine || !self.unit.flags_dead {
            self.store_desc(desc);
        }
        let bare = self.a.pos() as u32;
        self.a.alu_imm(8, 5, field(regs::BUDGET), i32::from(done));
        let mut slot = None;
        let jump = if target < PAGE {
            self.a.jcc(cc::NS)
        } else {
            let over = self.a.jcc(cc::S);
            self.own_address(T1, page_step(target).map_or(0, |step| i64::from(step) as u64));
            let place = self.a.cmp_with_place(T1);
            slot = Some(place.0 as u32);
            self.lead_to(place, self.place.nowhere);
            let other = self.a.jcc(cc::NE);
            self.a.store(8, T1, field(regs::PAGE));
            let jump = self.a.jmp();
            self.a.bind(over);
            self.a.bind(other);
            jump
        };
        let unlinked = self.a.pos() as u32;
        self.a.bind_to(jump, if mine { 0 } else { unlinked as usize });
        let number = self.place.first_exit + exit as u32;
        self.a.mov_imm(T1, u64::from(number));
        let out = self.a.jmp();
        self.lead_to(out, self.place.thunks.unlinked);
        let e = &mut self.exits[exit];
        (e.stub, e.bare, e.jump, e.unlinked, e.slot) = (stub, bare, jump.0 as u32, unlinked, slot);
    }

    /// Everything that stands behind the main path: exits, and aside what seldom runs.
    fn finish(&mut self) {
        let mut stubs = std::mem::take(&mut self.stubs);
        for stub in &stubs {
            if let Stub::Exit { from, exit } = stub {
                self.exit_stub(*from, *exit);
            }
        }
        if let Some(aside) = self.place.aside {
            self.a.split_here(aside as i64 - self.place.at as i64);
        }
        stubs.retain(|stub| !matches!(stub, Stub::Exit { .. }));
        while !stubs.is_empty() {
            stubs.drain(..).for_each(|stub| self.stub(stub));
            // Some of them have more.
            std::mem::swap(&mut stubs, &mut self.stubs);
        }
        self.stubs = stubs;
    }

    fn exit_stub(&mut self, from: Jump, exit: usize) {
        self.a.bind(from);
        self.exit_here(exit);
        self.exits[exit].branch = Some(from.0 as u32);
    }

    fn stub(&mut self, stub: Stub) {
        match stub {
            Stub::Fill { from, again, tag, site } => {
                self.a.bind(from);
                self.a.alu(8, 0, T0, Rm::Mem(Mem::at(T1, tag)));
                self.name(self.place.tables.tlb, Named::Tlb);
                self.a.mov_imm(T1, u64::from(self.place.first_site + site));
                let call = self.a.call();
                self.lead_to(call, self.place.thunks.fill);
                let back = self.a.jmp();
                self.a.bind_to(back, again);
            }
            Stub::Stack { from, again, back, number, site } => {
                self.a.bind(from);
                self.stack_stub(again, back, number, site);
            }
            Stub::Leave { from, site, how } => {
                self.a.bind(from);
                let code = (self.place.first_site + site) << leave::BITS | how;
                self.a.mov_imm(T1, u64::from(code));
                let out = self.a.jmp();
                self.lead_to(out, self.place.thunks.leave);
            }
            Stub::Search { from, site, back } => {
                self.a.bind(from);
                self.a.mov_imm(T1, u64::from(self.place.first_site + site));
                let call = self.a.call();
                self.lead_to(call, self.place.thunks.indirect);
                self.entry_to_index();
                let jump = self.a.jmp();
                self.a.bind_to(jump, back);
            }
            Stub::Collapse { from, back } => {
                self.a.bind(from);
                let call = self.a.call();
                self.lead_to(call, self.place.thunks.collapse);
                let jump = self.a.jmp();
                self.a.bind_to(jump, back);
            }
            Stub::Apart(apart) => self.apart(apart),
            Stub::Exit { from, exit } => self.exit_stub(from, exit),
        }
    }

    /// Saves a scratch register while T0 and T1 are needed.
    fn stash(&mut self, from: u8) {
        self.a.store(8, from, field(TMP));
    }
}
