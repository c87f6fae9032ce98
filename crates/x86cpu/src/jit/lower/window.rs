//! Windows: instructions one behind the other that go through one base register are looked up together.
//!
//! Problem: a look-up is five to eight instructions, and code saves six registers one by one, fills a structure field
//! by field, copies four words at a time.
//!
//! Strategy: the bytes from the lowest to the highest that a run of instructions touches through a register (the stack
//! pointer as it moves, or another one that stays, and an index that stays) are looked up once; then T0 is where they
//! are, until the run ends. Branches that are not taken may lie between. Where the bytes are not in one page, or the page
//! is not at hand, the same instructions stand aside once more, each with its own look-up, and come back behind the run.
//!
//! Invariants: nothing in a window can fault, so that the stack pointer may be brought up to date where it ends or is
//! left; no template in it uses T0; both ways make the same description of the flags, since neither asks for any that the
//! host does not have.

use iced_x86::{Instruction, OpKind, Register};

use super::super::cc::Desc;
use super::super::emit::{Emit, Jump, Mem, Rm, cc};
use super::super::plan::{Effect, Plan, bit, has_high, has_memory, looks_at, operand_size, shift_count};
use super::super::regs::{RSP, SP, T0, T1, pinned};
use super::super::scan::Item;
use super::alu::{gpr, is_reg};
use super::stack::is_flat;
use super::{Gen, Stub};
use crate::fpu;
use crate::ops::alu::{ADC, ADD, CMP, NEG, NOT, SBB, SUB, TEST};
use crate::ops::shifts;

/// Bytes of a window at most: the more, the oftener it lies in two pages.
const WIDEST: i32 = 256;
/// Largest displacement: sums of some are far from overflowing.
const FARTHEST: i32 = 1 << 24;

/// What T0 points to while a window is open.
pub(super) struct Window {
    /// Displacement, from where its base pointed at first.
    low: i32,
    /// How far its base has moved since.
    moved: i32,
    /// How much of that the host's register does not have yet.
    owed: i32,
}

impl Window {
    /// The bytes at a displacement from the base.
    pub fn place(&self, disp: i32) -> Mem {
        Mem::at(T0, self.moved + disp - self.low)
    }

    pub fn move_by(&mut self, by: i32) {
        self.moved += by;
        self.owed += by;
    }
}

/// What addresses of a window have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Base {
    /// RIP: they are relative to the translation's page.
    register: Register,
    index: Register,
    scale: u32,
}

impl Base {
    const STACK: Base = Base { register: Register::RSP, index: Register::None, scale: 1 };

    fn is_stack_pointer(self) -> bool {
        self == Self::STACK
    }

    /// Guest registers, one bit each, that must stay.
    fn bits(self) -> u16 {
        let of = |r: Register| if r.is_gpr64() { 1 << (r.number() & 15) } else { 0 };
        of(self.register) | of(self.index)
    }
}

/// A run of instructions that is worth one.
pub(super) struct Run {
    base: Base,
    items: usize,
    low: i32,
    high: i32,
    write: bool,
    /// What the lowest byte's offset must be modulo 16.
    aligned: Option<i32>,
    /// What the host's flags are worth behind it, when each access is looked up.
    host: u8,
}

/// See [`Stub::Apart`].
pub(super) struct Apart {
    from: [Option<Jump>; 2],
    back: usize,
    first: usize,
    items: usize,
    /// The first of those that its branches lead to, one after the other.
    first_exit: usize,
    desc: Desc,
    after: Desc,
}

/// Bytes that an instruction touches: from where its base points, how many.
struct Access {
    base: Base,
    disp: i32,
    size: u8,
    write: bool,
    aligned: bool,
}

impl Access {
    fn stack(disp: i32, write: bool) -> Option<Self> {
        Some(Self { base: Base::STACK, disp, size: 8, write, aligned: false })
    }

    /// `Err`: more than a window is for.
    fn of(item: &Item) -> Result<Option<Self>, ()> {
        let insn = &item.insn;
        match item.plan {
            Plan::Push if !has_memory(insn) => return Ok(Self::stack(-8, true)),
            Plan::Call => return Ok(Self::stack(-8, true)),
            Plan::Pop | Plan::Ret => return Ok(Self::stack(0, false)),
            Plan::Nop | Plan::Lea => return Ok(None),
            _ if !has_memory(insn) => return Ok(None),
            _ => {}
        }
        let (register, index) = (insn.memory_base(), insn.memory_index());
        let disp = i32::try_from(insn.memory_displacement64() as i64).map_err(drop)?;
        let near = register == Register::RIP || register.is_gpr64();
        if !near || !is_flat(insn) || disp.abs() > FARTHEST {
            return Err(());
        }
        // Of one that is not there it says nothing.
        let scale = if index == Register::None { 1 } else { insn.memory_index_scale() };
        let base = Base { register, index, scale };
        let first = insn.op_kind(0) == OpKind::Memory;
        let (size, write, aligned) = match item.plan {
            Plan::Mov => (operand_size(insn, 0), first, false),
            Plan::Extend { .. } => (operand_size(insn, 1), false, false),
            Plan::Alu(operation) => {
                (operand_size(insn, 0), first && operation != CMP && operation != TEST, false)
            }
            Plan::Imul => (operand_size(insn, 0), false, false),
            Plan::Sse => {
                let aligned = fpu::decode(insn).is_some_and(|f| f.needs_alignment());
                (insn.memory_size().size() as u8, first, aligned)
            }
            _ => return Err(()),
        };
        Ok(Some(Self { base, disp, size, write, aligned: aligned && size == 16 }))
    }
}

/// How far an instruction moves RSP by a constant without touching memory.
fn shift_of_stack(insn: &Instruction, plan: Plan) -> Option<i32> {
    let imm = || i32::try_from(insn.immediate(1) as i64).ok().filter(|v| v.abs() <= FARTHEST);
    let on_rsp =
        insn.op_count() == 2 && insn.op_kind(0) == OpKind::Register && insn.op_register(0) == Register::RSP;
    match plan {
        Plan::Alu(ADD) if on_rsp && !is_reg(insn, 1) && !has_memory(insn) => imm(),
        Plan::Alu(SUB) if on_rsp && !is_reg(insn, 1) && !has_memory(insn) => imm().map(|v| -v),
        Plan::Lea
            if on_rsp && insn.memory_base() == Register::RSP && insn.memory_index() == Register::None =>
        {
            i32::try_from(insn.memory_displacement64() as i64).ok().filter(|v| v.abs() <= FARTHEST)
        }
        _ => None,
    }
}

/// Whether the template of an instruction leaves T0 alone while a window is open, and asks for no flags.
fn leaves_t0(item: &Item) -> bool {
    let insn = &item.insn;
    let has = |i: u32| i >= insn.op_count() || !is_reg(insn, i) || pinned(gpr(insn, i)).is_some();
    if has_high(insn) || insn.has_lock_prefix() || item.plan.reads_flags(insn) != bit::NONE {
        return false;
    }
    match item.plan {
        Plan::Nop | Plan::Mov | Plan::Push | Plan::Pop | Plan::Call | Plan::Ret | Plan::Imul => true,
        Plan::Extend { .. } | Plan::Sse | Plan::Widen | Plan::Sign => true,
        Plan::Alu(ADC | SBB) => false,
        Plan::Alu(_) => !item.need || !has_memory(insn) || has(0) && has(1),
        Plan::Shift(shifts::SHL | shifts::SHR | shifts::SAR) => {
            shift_count(insn).is_some() && !has_memory(insn)
        }
        Plan::Unary(NOT | NEG) => !has_memory(insn) && has(0),
        Plan::Unary(_) => !has_memory(insn) && has(0) && !item.need,
        Plan::Lea => {
            let near =
                |r: Register| r == Register::None || r.is_gpr64() && pinned(r.number() as u8 & 15).is_some();
            has(0)
                && (insn.memory_base() == Register::RIP
                    || near(insn.memory_base()) && near(insn.memory_index()))
        }
        Plan::Bswap => has(0),
        _ => false,
    }
}

/// The condition on which a branch leaves its translation.
fn leaves_on(plan: Plan) -> Option<u8> {
    match plan {
        Plan::Jcc(cc) => Some(cc),
        Plan::Loop(cc) => Some(cc ^ 1),
        _ => None,
    }
}

/// Whether the stack pointer's value is looked at, other than as the base of a memory operand.
fn looks_at_stack_pointer(insn: &Instruction, plan: Plan) -> bool {
    let operand =
        (0..insn.op_count()).any(|i| is_reg(insn, i) && insn.op_register(i).is_gpr() && gpr(insn, i) == RSP);
    operand
        || plan == Plan::Lea && (insn.memory_base() == Register::RSP || insn.memory_index() == Register::RSP)
}

impl Run {
    /// Makes it as wide as one more access needs, whose base has moved so far; false when that is too wide.
    fn take(&mut self, access: &Access, moved: i32) -> bool {
        let at = moved + access.disp;
        let (low, high) = (self.low.min(at), self.high.max(at + i32::from(access.size)));
        let class = access.aligned.then_some(at & 15);
        if high - low > WIDEST || class.is_some() && self.aligned.is_some() && class != self.aligned {
            return false;
        }
        (self.low, self.high) = (low, high);
        self.aligned = self.aligned.or(class);
        self.write |= access.write;
        true
    }
}

impl<E: Emit> Gen<E> {
    /// The window that item number `first` opens, if it is worth it.
    pub(super) fn window_of(&self, first: usize) -> Option<Run> {
        let base = Access::of(&self.unit.items[first]).ok()??.base;
        let (bits, stack) = (base.bits(), base.is_stack_pointer());
        let (low, high) = (i32::MAX, i32::MIN);
        let mut run = Run { base, items: 0, low, high, write: false, aligned: None, host: bit::NONE };
        let (mut moved, mut accesses, mut host) = (0, 0, bit::NONE);
        for (k, item) in self.unit.items[first..].iter().enumerate() {
            let (insn, plan) = (&item.insn, item.plan);
            if let Some(cc) = leaves_on(plan) {
                if looks_at(cc) & !host != 0 {
                    break;
                }
                continue;
            }
            let access = if leaves_t0(item) { Access::of(item) } else { Err(()) };
            let Ok(access) = access else { break };
            if let Some(access) = &access {
                if access.base != base || !run.take(access, moved) {
                    break;
                }
                accesses += 1;
                host = bit::NONE;
            }
            match plan.effect(insn) {
                Effect::Keeps => {}
                Effect::Kills => host = plan.gives(insn),
                Effect::Partial => host = bit::NONE,
            }
            if access.is_some() {
                (run.items, run.host) = (k + 1, host);
            }
            if matches!(plan, Plan::Call | Plan::Ret) {
                break;
            }
            if plan.writes(insn) & bits == 0 {
                continue;
            }
            let by = match plan {
                Plan::Push => Some(-8),
                Plan::Pop if gpr(insn, 0) != RSP => Some(8),
                _ if access.is_none() => shift_of_stack(insn, plan),
                _ => None,
            };
            let Some(by) = by.filter(|_| stack) else { break };
            moved += by;
        }
        // (The class was that of the address as it is from the base.)
        run.aligned = run.aligned.map(|class| (class - run.low) & 15);
        (accesses > 1).then_some(run)
    }

    /// Does the instructions of a window from item number `first` on; how many.
    pub(super) fn together(&mut self, first: usize, run: Run) -> usize {
        let desc = self.desc;
        let from = self.open(&run);
        let stack = run.base.is_stack_pointer();
        let items = std::mem::take(&mut self.unit.items);
        let first_exit = self.exits.len();
        for (k, item) in items[first..first + run.items].iter().enumerate() {
            self.done = (first + k) as u16;
            self.rip = item.insn.ip();
            let leaves = leaves_on(item.plan).is_some();
            if stack && (leaves || looks_at_stack_pointer(&item.insn, item.plan)) {
                self.pay();
            }
            self.half(item);
            let by = shift_of_stack(&item.insn, item.plan);
            if let (Some(window), Some(by)) = (&mut self.window, by.filter(|_| stack)) {
                window.moved += by;
            }
        }
        self.pay();
        self.window = None;
        self.host &= run.host;
        let (back, count) = (self.a.pos(), run.items);
        self.stubs.push(Stub::Apart(Apart {
            from,
            back,
            first,
            items: count,
            first_exit,
            desc,
            after: self.desc,
        }));
        if let Some(last) = items[..first + count].last() {
            match last.plan {
                Plan::Call => self.call_leaves(last),
                Plan::Ret => self.ret_leaves(last),
                _ => {}
            }
        }
        self.unit.items = items;
        count
    }

    /// Looks up all of a window; the jumps are taken where it does not hold.
    fn open(&mut self, run: &Run) -> [Option<Jump>; 2] {
        let Base { register, index, scale } = run.base;
        let number = |r: Register| r.number() as u8 & 15;
        if register == Register::RIP {
            self.own_address(T0, i64::from(run.low) as u64);
        } else {
            let base = self.value(number(register), T0);
            let index = (index != Register::None)
                .then(|| (self.value(number(index), T1), scale.trailing_zeros() as u8));
            self.a.lea(T0, Mem { base, index, disp: run.low });
        }
        let bytes = (run.high - run.low) as u32;
        let elsewhere = if self.is_on_stack(register) && index == Register::None {
            self.in_stack_page(bytes)
        } else {
            self.in_tlb(bytes, run.write).0
        };
        let misaligned = run.aligned.map(|class| {
            let mut place = T0;
            if class != 0 {
                self.a.lea(T1, Mem::at(T0, class));
                place = T1;
            }
            self.a.test_imm(1, Rm::Reg(place), 15);
            self.a.jcc(cc::NE)
        });
        self.host = bit::NONE;
        self.window = Some(Window { low: run.low, moved: 0, owed: 0 });
        [Some(elsewhere), misaligned]
    }

    /// The host's register has the guest's stack pointer from here on.
    fn pay(&mut self) {
        if let Some(window) = &mut self.window
            && window.owed != 0
        {
            let by = std::mem::take(&mut window.owed);
            self.a.lea(SP, Mem::at(SP, by));
        }
    }

    /// An instruction; of a CALL or RET what it does to memory.
    fn half(&mut self, item: &Item) {
        match item.plan {
            Plan::Call => self.call_pushes(item),
            Plan::Ret => self.ret_pops(),
            _ => self.item(item),
        }
    }

    /// The stub of a window.
    pub(super) fn apart(&mut self, apart: Apart) {
        let Apart { from, back, first, items: count, first_exit, desc, after } = apart;
        let mut exit = first_exit;
        from.into_iter().flatten().for_each(|jump| self.a.bind(jump));
        (self.desc, self.host) = (desc, bit::NONE);
        let items = std::mem::take(&mut self.unit.items);
        for (k, item) in items[first..first + count].iter().enumerate() {
            self.done = (first + k) as u16;
            self.rip = item.insn.ip();
            match leaves_on(item.plan) {
                Some(cc) => {
                    debug_assert!(looks_at(cc) & !self.host == 0);
                    // Exits are there already.
                    let jump = self.a.jcc(cc);
                    self.a.bind_to(jump, self.exits[exit].stub as usize);
                    exit += 1;
                }
                None => self.half(item),
            }
        }
        self.unit.items = items;
        debug_assert_eq!(self.desc, after);
        let jump = self.a.jmp();
        self.a.bind_to(jump, back);
    }
}
