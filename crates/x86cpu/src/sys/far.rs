//! Far transfers: JMP, CALL, RET between code segments, and what IRET shares with them
//! (SDM vol. 3, 5.8; vol. 2, each instruction).
//!
//! Call gates and task switches are refused by name: no 64-bit system uses them.

use arch::x86_64::regs::{gpr, seg};
use arch::x86_64::state::Segment;

use super::descriptor::{Descriptor, attr, index, is_null, np, null_segment, rpl};
use crate::cpu::{Cpu, Mode, Trap};
use crate::mmu::{Intent, is_canonical};

/// A stack that is being popped: nothing is committed before the caller takes `sp`.
pub(super) struct Stack {
    segment: Segment,
    pub(super) sp: u64,
    mask: u64,
    user: bool,
}

impl Cpu {
    /// The current stack.
    pub(super) fn stack(&self) -> Stack {
        Stack {
            segment: self.seg[seg::SS],
            sp: self.gpr[gpr::RSP],
            mask: self.stack_mask(),
            user: self.cpl == 3,
        }
    }

    /// A stack other than the current one: for privilege `cpl`.
    pub(super) fn other_stack(segment: Segment, sp: u64, long: bool, cpl: u8) -> Stack {
        let big = segment.attr & attr::BIG != 0;
        let mask = if long {
            u64::MAX
        } else if big {
            0xffff_ffff
        } else {
            0xffff
        };
        Stack { segment, sp, mask, user: cpl == 3 }
    }

    fn stack_address(&self, stack: &Stack, sp: u64) -> u64 {
        if stack.mask == u64::MAX {
            sp
        } else {
            stack.segment.base.wrapping_add(sp & stack.mask) & 0xffff_ffff
        }
    }

    /// Pops one item of `size` bytes (2, 4, 8), zero-extended.
    pub(super) fn pop_item(&mut self, stack: &mut Stack, size: u8) -> Result<u64, Trap> {
        let at = self.stack_address(stack, stack.sp);
        let mut raw = [0; 8];
        self.load_bytes(at, &mut raw[..usize::from(size)], Intent::Read, stack.user).map_err(stack_fault)?;
        stack.sp = bump(stack, u64::from(size));
        Ok(u64::from_le_bytes(raw))
    }

    /// Pushes items of `size` bytes each, the first one first; all or nothing.
    pub(super) fn push_items(&mut self, stack: &mut Stack, size: u8, items: &[u64]) -> Result<(), Trap> {
        let size = usize::from(size);
        let mut raw = [0u8; 64];
        let len = size * items.len();
        for (slot, item) in raw[..len].chunks_exact_mut(size).zip(items.iter().rev()) {
            slot.copy_from_slice(&item.to_le_bytes()[..size]);
        }
        let sp = bump(stack, (len as u64).wrapping_neg());
        let at = self.stack_address(stack, sp);
        self.store_bytes(at, &raw[..len], stack.user).map_err(stack_fault)?;
        stack.sp = sp;
        Ok(())
    }

    /// Puts the stack pointer that `stack` came to into RSP, as wide as the stack is.
    pub(super) fn commit_sp(&mut self, stack: &Stack) {
        self.gpr[gpr::RSP] = match stack.mask {
            0xffff => (self.gpr[gpr::RSP] & !0xffff) | (stack.sp & 0xffff),
            mask => stack.sp & mask,
        };
    }

    /// Checks a code selector for a jump or call at the current privilege.
    fn code_for_jump(&mut self, selector: u16) -> Result<Descriptor, Trap> {
        if is_null(selector) {
            return Err(Trap::gp(0));
        }
        let descriptor = self.read_descriptor(selector)?;
        if !descriptor.is_code() {
            if matches!(descriptor.system(), Some(1 | 4 | 5 | 9 | 12)) && !self.in_long_mode()
                || descriptor.system() == Some(12)
            {
                return Err(self.unsupported("a far transfer through a call gate or a task"));
            }
            return Err(Trap::gp(index(selector)));
        }
        let allowed = if descriptor.is_conforming() {
            descriptor.dpl() <= self.cpl
        } else {
            rpl(selector) <= self.cpl && descriptor.dpl() == self.cpl
        };
        if !allowed || (self.in_long_mode() && descriptor.has(attr::LONG | attr::BIG)) {
            return Err(Trap::gp(index(selector)));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(np(index(selector)));
        }
        Ok(descriptor)
    }

    /// Checks where in a code segment a transfer goes.
    pub(super) fn check_target(&self, descriptor: &Descriptor, offset: u64) -> Result<(), Trap> {
        let good = if self.in_long_mode() && descriptor.has(attr::LONG) {
            is_canonical(offset)
        } else {
            offset <= u64::from(descriptor.limit())
        };
        if good { Ok(()) } else { Err(Trap::gp(0)) }
    }

    /// Loads CS and the instruction pointer; the last step of a far transfer.
    pub(super) fn enter_code(&mut self, descriptor: &Descriptor, selector: u16, cpl: u8, offset: u64) {
        self.seg[seg::CS] = descriptor.segment((selector & !3) | u16::from(cpl));
        self.rip = offset;
        self.update_mode();
    }

    fn enter_real(&mut self, selector: u16, offset: u64) {
        self.seg[seg::CS].selector = selector;
        self.seg[seg::CS].base = u64::from(selector) << 4;
        self.rip = offset;
        self.update_mode();
    }

    pub(crate) fn far_jump(&mut self, selector: u16, offset: u64, size: u8) -> Result<(), Trap> {
        let offset = truncate(offset, size);
        if self.mode == Mode::Real16 {
            self.enter_real(selector, offset);
            return Ok(());
        }
        let mut descriptor = self.code_for_jump(selector)?;
        self.check_target(&descriptor, offset)?;
        self.touch_descriptor(&mut descriptor)?;
        self.enter_code(&descriptor, selector, self.cpl, offset);
        Ok(())
    }

    pub(crate) fn far_call(&mut self, selector: u16, offset: u64, size: u8) -> Result<(), Trap> {
        let offset = truncate(offset, size);
        let frame = [u64::from(self.seg[seg::CS].selector), self.rip];
        let mut stack = self.stack();
        if self.mode == Mode::Real16 {
            self.push_items(&mut stack, size, &frame)?;
            self.commit_sp(&stack);
            self.enter_real(selector, offset);
            return Ok(());
        }
        let mut descriptor = self.code_for_jump(selector)?;
        self.check_target(&descriptor, offset)?;
        self.touch_descriptor(&mut descriptor)?;
        self.push_items(&mut stack, size, &frame)?;
        self.commit_sp(&stack);
        self.enter_code(&descriptor, selector, self.cpl, offset);
        Ok(())
    }

    pub(crate) fn far_ret(&mut self, size: u8, pop_bytes: u16) -> Result<(), Trap> {
        let mut stack = self.stack();
        let offset = self.pop_item(&mut stack, size)?;
        let selector = self.pop_item(&mut stack, size)? as u16;
        stack.sp = bump(&stack, u64::from(pop_bytes));
        if self.mode == Mode::Real16 {
            self.commit_sp(&stack);
            self.enter_real(selector, offset);
            return Ok(());
        }
        let mut code = self.code_for_return(selector)?;
        self.check_target(&code, offset)?;
        let cpl = rpl(selector);
        if cpl == self.cpl {
            self.touch_descriptor(&mut code)?;
            self.commit_sp(&stack);
            self.enter_code(&code, selector, cpl, offset);
            return Ok(());
        }
        let sp = self.pop_item(&mut stack, size)?;
        let ss = self.pop_item(&mut stack, size)? as u16;
        self.return_outward(&mut code, selector, offset, ss, sp.wrapping_add(u64::from(pop_bytes)))
    }

    /// Checks a code selector from the stack (RETF, IRET): never inward.
    pub(super) fn code_for_return(&mut self, selector: u16) -> Result<Descriptor, Trap> {
        if is_null(selector) {
            return Err(Trap::gp(0));
        }
        let descriptor = self.read_descriptor(selector)?;
        let cpl = rpl(selector);
        let fits = if descriptor.is_conforming() { descriptor.dpl() <= cpl } else { descriptor.dpl() == cpl };
        let both = self.in_long_mode() && descriptor.has(attr::LONG | attr::BIG);
        if !descriptor.is_code() || cpl < self.cpl || !fits || both {
            return Err(Trap::gp(index(selector)));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(np(index(selector)));
        }
        Ok(descriptor)
    }

    /// The stack register that a return to `code` with RPL `cpl` loads.
    pub(super) fn stack_for_return(&mut self, code: &Descriptor, cpl: u8, ss: u16) -> Result<Segment, Trap> {
        if is_null(ss) {
            let long = self.in_long_mode() && code.has(attr::LONG);
            let allowed = long && cpl != 3 && rpl(ss) == cpl;
            return if allowed { Ok(null_segment(ss, cpl)) } else { Err(Trap::gp(0)) };
        }
        self.stack_segment(ss, cpl, Trap::gp)
    }

    /// Commits a return that loads SS and RSP, too, and drops data segments that the new privilege
    /// may not have (SDM vol. 2, RET and IRET).
    pub(super) fn return_outward(
        &mut self,
        code: &mut Descriptor,
        selector: u16,
        offset: u64,
        ss: u16,
        sp: u64,
    ) -> Result<(), Trap> {
        let cpl = rpl(selector);
        let stack = self.stack_for_return(code, cpl, ss)?;
        self.touch_descriptor(code)?;
        let long = self.in_long_mode() && code.has(attr::LONG);
        let outward = cpl > self.cpl;
        self.seg[seg::SS] = stack;
        self.gpr[gpr::RSP] = if long || self.is_long() { sp } else { sp & 0xffff_ffff };
        self.enter_code(code, selector, cpl, offset);
        if outward {
            for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
                let held = self.seg[number];
                let open = held.attr & (attr::CODE | attr::CONFORMING) == attr::CODE | attr::CONFORMING;
                let dpl = ((held.attr >> 5) & 3) as u8;
                if !open && dpl < cpl {
                    // The bases of FS and GS stay: 64-bit systems set them through MSRs.
                    self.seg[number] = Segment { base: held.base, ..null_segment(0, 0) };
                }
            }
        }
        Ok(())
    }
}

/// The stack pointer moved by `by`, within its width.
fn bump(stack: &Stack, by: u64) -> u64 {
    let moved = stack.sp.wrapping_add(by);
    (stack.sp & !stack.mask) | (moved & stack.mask)
}

pub(super) fn truncate(offset: u64, size: u8) -> u64 {
    match size {
        2 => offset & 0xffff,
        4 => offset & 0xffff_ffff,
        _ => offset,
    }
}

/// A non-canonical stack address is #SS, not #GP.
pub(super) fn stack_fault(trap: Trap) -> Trap {
    if trap == Trap::gp(0) { Trap::ss(0) } else { trap }
}
