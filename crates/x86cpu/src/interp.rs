//! The run loop: blocks one after the other, events between them.
//!
//! Counting is per block; a block is cut short where the budget, TF or an interrupt shadow asks for
//! it, so that the count is exact everywhere the outside looks.

use std::sync::atomic::{Ordering, fence};

use arch::x86_64::regs::gpr::{RBP, RSP};
use arch::x86_64::regs::{Rflags, seg};
use arch::x86_64::state::MpState;

use crate::block::{CodeCache, Exit, link_tag};
use crate::cpu::{Cpu, Stop, Trap};
use crate::decode::End;
use crate::jit::Turn;
use crate::mmu::is_canonical;
use crate::op::{FAR_BITS, FRAME, Op, REG_START, REG_ZERO, SEG_FLAT, STACK};

/// Instructions between two looks at timers: at 100 MIPS about 40 µs.
const TICK: u64 = 4096;

/// How a run of ops came out.
enum Ran {
    /// Behind its last op, or by a conditional branch with this exit number and instructions done.
    Whole,
    Taken(u16, u8),
    /// A prefix: `rip` and the count are set, the block was left.
    Part,
    /// An instruction did not complete; `rip` is its start.
    Trapped(Trap),
}

impl Cpu {
    /// Runs until something needs the outside, `max_instructions` have retired, or the poll flag was
    /// kicked. After [`Stop::PioRead`] and [`Stop::MmioRead`] call [`Cpu::reply`] first.
    pub fn run(&mut self, max_instructions: u64) -> Stop {
        self.with_code(|cpu, code| cpu.run_inner(code, max_instructions))
    }

    /// Executes the instruction that asked for it with [`Stop::Alone`]; to be called while no other vCPU executes.
    pub fn run_alone(&mut self) -> Option<Stop> {
        self.alone = true;
        let result = self.with_code(Self::step);
        self.alone = false;
        result.err()
    }

    /// Executes: the code cache is lent to `f`.
    pub(crate) fn with_code<R>(&mut self, f: impl FnOnce(&mut Self, &mut CodeCache) -> R) -> R {
        self.mmu.enter();
        let _executing = self.mmu.executing();
        let mut code = self.code.take().unwrap_or_default();
        let result = f(self, &mut code);
        self.code = Some(code);
        self.mmu.leave();
        result
    }

    /// What a serialising instruction is to other vCPUs (SDM vol. 3, 9.3): its stores are seen before later loads
    /// are made. Asked for after all instructions that end a block with [`End::System`], which include those.
    #[inline(always)]
    pub(crate) fn serialise(&self) {
        if self.has_peers {
            fence(Ordering::SeqCst);
        }
    }

    /// Finishes an instruction that an access of the outside interrupted, without executing another
    /// one. `None`: done (or nothing was open); otherwise it needs one more access.
    pub fn settle(&mut self) -> Option<Stop> {
        if !self.io.is_active() {
            return None;
        }
        self.with_code(Self::resume).err()
    }

    /// Drops all decoded code (after a restore).
    pub(crate) fn forget_code(&mut self) {
        if let Some(mut code) = self.code.take() {
            code.clear(self);
            self.code = Some(code);
        }
    }

    fn run_inner(&mut self, code: &mut CodeCache, max: u64) -> Stop {
        let limit = self.insn_count.saturating_add(max);
        if self.io.is_active()
            && let Err(stop) = self.resume(code)
        {
            return stop;
        }
        self.attention = true;
        loop {
            match self.turn(code, limit) {
                Ok(()) => {}
                Err(stop) => return stop,
            }
        }
    }

    /// Runs the half-done instruction to its end.
    fn resume(&mut self, code: &mut CodeCache) -> Result<(), Stop> {
        self.io.rewind();
        let result = self.step(code);
        if !matches!(result, Err(Stop::PioRead { .. } | Stop::PioWrite { .. }))
            && !matches!(result, Err(Stop::MmioRead { .. } | Stop::MmioWrite { .. }))
        {
            self.io.clear();
        }
        result
    }

    /// One look at events, then blocks until the next look.
    fn turn(&mut self, code: &mut CodeCache, limit: u64) -> Result<(), Stop> {
        if let Some(stop) = self.outbox.take() {
            return Err(stop);
        }
        self.poll_events()?;
        if self.insn_count >= limit {
            return Err(Stop::Budget);
        }
        if self.mp_state != MpState::Runnable {
            return Err(Stop::Halt);
        }
        if self.flags.system_bit(Rflags::TF) || self.in_shadow() {
            return self.step(code);
        }
        let tick = self.insn_count.saturating_add(TICK);
        self.blocks(code, tick, limit)
    }

    #[inline(always)]
    fn in_shadow(&self) -> bool {
        self.events.sti_shadow || self.events.movss_shadow
    }

    /// Runs blocks until an event wants to be seen, `tick` has passed or exactly `limit` is reached.
    fn blocks(&mut self, code: &mut CodeCache, tick: u64, limit: u64) -> Result<(), Stop> {
        let until = tick.min(limit);
        let mut tag = link_tag(self);
        let mut ip_mask = self.ip_mask();
        let mut index = match code.find(self, false) {
            Ok(index) => index,
            Err(trap) => return self.trapped(trap),
        };
        let mut translate = code.jit.is_on();
        loop {
            if !code.is_valid(self, index) {
                index = match code.find(self, false) {
                    Ok(index) => index,
                    Err(trap) => return self.trapped(trap),
                };
            }
            if translate && let Some(turn) = self.jit_turn(code, index, limit) {
                if self.attention || self.poll.is_raised() || self.insn_count >= until {
                    return Ok(());
                }
                (tag, ip_mask) = (link_tag(self), self.ip_mask());
                index = match code.find(self, turn == Turn::Single) {
                    Ok(index) => index,
                    Err(trap) => return self.trapped(trap),
                };
                translate = turn == Turn::Next;
                continue;
            }
            translate = code.jit.is_on();
            let block = code.block(index);
            if u64::from(block.insns) > limit - self.insn_count {
                // The budget ends inside this block.
                return self.step(code);
            }
            self.mmu_sync();
            let start = self.rip;
            self.gpr[usize::from(REG_START)] = start;
            self.rip = start.wrapping_add(u64::from(block.bytes)) & ip_mask;
            let exit = match self.ops_loop(start, code.ops(block)) {
                Ran::Whole => {
                    self.insn_count += u64::from(block.insns);
                    Exit::End
                }
                Ran::Taken(exit, done) => {
                    self.insn_count += u64::from(done);
                    Exit::Side(exit)
                }
                Ran::Part => return Ok(()),
                Ran::Trapped(trap) => return self.trapped(trap),
            };
            if self.attention || self.poll.is_raised() || self.insn_count >= until {
                return Ok(());
            }
            if self.rip == start && exit != Exit::End {
                // A loop of one block: nothing else can have changed.
                continue;
            }
            if block.end == End::System && exit == Exit::End {
                self.serialise();
                (tag, ip_mask) = (link_tag(self), self.ip_mask());
            } else if let Some(next) = code.linked(self, index, exit, tag) {
                index = next;
                continue;
            }
            index = match code.follow(self, index, exit) {
                Ok(index) => index,
                Err(trap) => return self.trapped(trap),
            };
        }
    }

    /// Executes one instruction (with its traps) at `rip`.
    pub(crate) fn step(&mut self, code: &mut CodeCache) -> Result<(), Stop> {
        let index = match code.find(self, true) {
            Ok(index) => index,
            Err(trap) => return self.trapped(trap),
        };
        let trap_flag = self.flags.system_bit(Rflags::TF);
        let shadow = (self.events.sti_shadow, self.events.movss_shadow);
        self.events.sti_shadow = false;
        self.events.movss_shadow = false;
        self.mmu_sync();
        let start = self.rip;
        self.gpr[usize::from(REG_START)] = start;
        let block = code.block(index);
        self.rip = start.wrapping_add(u64::from(block.bytes)) & self.ip_mask();
        self.attention = true;
        // What enters the kernel clears TF, which then also takes back the trap.
        let transfers = block.end == End::System;
        match self.ops_loop(start, code.ops(block)) {
            Ran::Whole | Ran::Taken(..) => {
                self.serialise();
                self.insn_count += 1;
            }
            Ran::Part => {}
            Ran::Trapped(trap) => {
                let done = self.trapped(trap);
                if done.is_err() {
                    // Neither retired nor delivered: the shadow still covers it.
                    (self.events.sti_shadow, self.events.movss_shadow) = shadow;
                }
                return done;
            }
        }
        let still = !transfers || self.flags.system_bit(Rflags::TF);
        if trap_flag && still && !self.events.movss_shadow {
            return self.single_step_trap();
        }
        Ok(())
    }

    /// The loop that everything above exists for. On [`Ran::Part`] and [`Ran::Trapped`] the count and
    /// `rip` are right already.
    #[inline(always)]
    fn ops_loop(&mut self, start: u64, ops: &[Op]) -> Ran {
        for op in ops {
            let done = (op.run)(self, op);
            if done == Err(Trap::Taken) {
                return Ran::Taken(op.exit, op.before + op.insns);
            }
            if done.is_err() || self.leave {
                return self.left_early(start, ops, op, done);
            }
        }
        Ran::Whole
    }

    #[cold]
    #[inline(never)]
    fn left_early(&mut self, start: u64, ops: &[Op], op: &Op, done: Result<(), Trap>) -> Ran {
        self.leave = false;
        match done {
            Err(trap) => {
                self.insn_count += u64::from(op.before);
                self.rip = start.wrapping_add(u64::from(op.at)) & self.ip_mask();
                let stack = trap == Trap::gp(0) && self.is_stack_fault(op);
                Ran::Trapped(if stack { Trap::ss(0) } else { trap })
            }
            Ok(()) if ops.last().is_some_and(|last| last.at == op.at) => Ran::Whole,
            Ok(()) => {
                self.insn_count += u64::from(op.before + op.insns);
                self.rip = start.wrapping_add(op.end()) & self.ip_mask();
                Ran::Part
            }
        }
    }

    /// Whether a #GP(0) of `op` is for a non-canonical address that goes by SS: that is #SS(0)
    /// (SDM vol. 3, 6.15). The MMU cannot know; nothing has changed yet, so it is found out here.
    fn is_stack_fault(&self, op: &Op) -> bool {
        let bad = |address: u64| !is_canonical(address) || !is_canonical(address.wrapping_add(15));
        if !self.is_long() {
            return false;
        }
        let has_memory = op.base != REG_ZERO || op.index != REG_ZERO;
        // Another segment takes only the explicit operand off the stack.
        let by_stack = op.seg == SEG_FLAT && (usize::from(op.base) == RSP || usize::from(op.base) == RBP);
        let address = self.offset(op).wrapping_add(self.seg[usize::from(op.seg & 7)].base);
        if has_memory && (bad(address) || op.scale & FAR_BITS != 0) {
            return by_stack;
        }
        let rsp = self.gpr[RSP];
        let by_rsp = bad(rsp) || bad(rsp.wrapping_sub(8));
        op.scale & STACK != 0 && (by_rsp || (op.scale & FRAME != 0 && bad(self.gpr[RBP])))
    }

    /// Acts on a trap; `rip` is the instruction's start.
    fn trapped(&mut self, trap: Trap) -> Result<(), Stop> {
        match trap {
            Trap::Exception { vector, error } => {
                self.io.clear();
                self.events.sti_shadow = false;
                self.events.movss_shadow = false;
                self.deliver_exception(vector, error)
            }
            Trap::Io => Err(self.io.take_request().unwrap_or_else(|| self.failed())),
            Trap::Unsupported => Err(self.failed()),
            Trap::Alone => Err(Stop::Alone),
            Trap::Pause | Trap::Taken => {
                self.attention = true;
                Ok(())
            }
        }
    }

    fn failed(&mut self) -> Stop {
        let what = self.failure.take().unwrap_or_else(|| "internal: a trap without a reason".into());
        Stop::Unsupported(format!("{what} (vCPU {} at {:#x})", self.id, self.rip))
    }

    /// Mask of the instruction pointer's width.
    #[inline(always)]
    fn ip_mask(&self) -> u64 {
        if self.is_long() { u64::MAX } else { 0xffff_ffff }
    }

    /// Linear address of code at `rip`; checks the CS limit outside of 64-bit mode.
    pub(crate) fn code_address(&mut self, rip: u64) -> Result<u64, Trap> {
        if self.is_long() {
            return Ok(rip);
        }
        let cs = &self.seg[seg::CS];
        if rip > u64::from(cs.limit) {
            return Err(Trap::gp(0));
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }
}
