//! Delivery of interrupts and exceptions, and the way back (SDM vol. 3, 6.12 to 6.14; vol. 2, IRET).
//!
//! Everything that can fault happens before the first register changes: a fault while delivering
//! finds the interrupted state untouched.

use arch::x86_64::regs::{Rflags, gpr, seg};

use super::descriptor::{Descriptor, attr, index, is_null, np, null_segment, rpl, system, ts};
use super::far::Stack;
use crate::cpu::{Cpu, Mode, Trap};
use crate::mmu::is_canonical;

/// Where an interrupt comes from: decides privilege checks and error-code bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// Exceptions, NMI, external interrupts.
    Hardware,
}

/// A gate of the IDT.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    /// Clears IF.
    interrupt: bool,
    /// Pushes 16-bit items (286-style gates).
    narrow: bool,
}

/// RFLAGS bits cleared when a handler is entered.
const CLEARED: u64 = Rflags::TF.bits() | Rflags::NT.bits() | Rflags::RF.bits() | Rflags::VM.bits();

impl Cpu {
    /// Delivers through the IDT, or the vector table in real mode. On error nothing has changed.
    pub(super) fn deliver(&mut self, vector: u8, error: Option<u16>, source: Source) -> Result<(), Trap> {
        if self.mode == Mode::Real16 {
            return self.deliver_real(vector);
        }
        let gate = self.gate(vector, source)?;
        let external = u16::from(source == Source::Hardware);
        if is_null(gate.selector) {
            return Err(Trap::gp(external));
        }
        let mut code =
            self.find_descriptor(gate.selector)?.ok_or(Trap::gp(index(gate.selector) | external))?;
        self.check_handler(&code, gate.selector, external)?;
        self.check_target(&code, gate.offset)?;
        let inward = !code.is_conforming() && code.dpl() < self.cpl;
        let cpl = if inward { code.dpl() } else { self.cpl };
        let long = self.in_long_mode();
        let mut stack = self.handler_stack(&gate, cpl, inward, external)?;
        self.touch_descriptor(&mut code)?;
        self.push_frame(&gate, &mut stack, error, inward || long)?;
        let cleared = CLEARED | if gate.interrupt { Rflags::IF.bits() } else { 0 };
        if inward || long {
            if inward && long {
                self.seg[seg::SS] = null_segment(u16::from(cpl), cpl);
            } else if inward {
                self.seg[seg::SS] = stack.segment;
            }
            self.gpr[gpr::RSP] = stack.stack.sp;
        } else {
            self.commit_sp(&stack.stack);
        }
        self.set_rflags(self.rflags() & !cleared);
        self.enter_code(&code, gate.selector, cpl, gate.offset);
        Ok(())
    }

    /// Reads and checks the IDT's entry (SDM vol. 3, 6.11, 6.14.1).
    fn gate(&mut self, vector: u8, source: Source) -> Result<Gate, Trap> {
        let long = self.in_long_mode();
        let size = if long { 16 } else { 8 };
        // Error code: index, IDT bit, external bit.
        let code = u16::from(vector) << 3 | 2 | u16::from(source == Source::Hardware);
        let offset = u32::from(vector) * size;
        if offset + size - 1 > u32::from(self.idtr.limit) {
            return Err(Trap::gp(code));
        }
        let at = self.idtr.base.wrapping_add(u64::from(offset));
        let low = self.read_sys_u64(at)?;
        let high = if long { self.read_sys_u64(at.wrapping_add(8))? } else { 0 };
        let kind = ((low >> 40) & 0x1f) as u32;
        let narrow = !long && matches!(kind, 6 | 7);
        if kind == 5 && !long {
            return Err(self.unsupported("an interrupt through a task gate"));
        }
        if !matches!(kind, system::INTERRUPT_GATE | system::TRAP_GATE) && !narrow {
            return Err(Trap::gp(code));
        }
        if source == Source::Software && ((low >> 45) & 3) < u64::from(self.cpl) {
            return Err(Trap::gp(code));
        }
        if low >> 47 & 1 == 0 {
            return Err(np(code));
        }
        let mut target = (low & 0xffff) | (high << 32);
        if !narrow {
            target |= (low >> 32) & 0xffff_0000;
        }
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset: target,
            ist: if long { (low >> 32) as u8 & 7 } else { 0 },
            interrupt: kind & 1 == 0,
            narrow,
        })
    }

    fn check_handler(&self, code: &Descriptor, selector: u16, external: u16) -> Result<(), Trap> {
        let wrong_size = self.in_long_mode() && (!code.has(attr::LONG) || code.has(attr::BIG));
        if !code.is_code() || code.dpl() > self.cpl || wrong_size {
            return Err(Trap::gp(index(selector) | external));
        }
        if !code.has(attr::PRESENT) {
            return Err(np(index(selector) | external));
        }
        Ok(())
    }

    /// The stack that a handler at privilege `cpl` runs on.
    fn handler_stack(&mut self, gate: &Gate, cpl: u8, inward: bool, external: u16) -> Result<Handler, Trap> {
        if self.in_long_mode() {
            let sp = match (gate.ist, inward) {
                (0, false) => self.gpr[gpr::RSP],
                (0, true) => self.tss_u64(4 + 8 * u64::from(cpl), external)?,
                (ist, _) => self.tss_u64(0x24 + 8 * u64::from(ist - 1), external)?,
            };
            if !is_canonical(sp) {
                return Err(Trap::ss(external));
            }
            let segment = null_segment(u16::from(cpl), cpl);
            return Ok(Handler { segment, stack: Self::other_stack(segment, sp & !0xf, true, cpl) });
        }
        if !inward {
            return Ok(Handler { segment: self.seg[seg::SS], stack: self.stack() });
        }
        // 32-bit TSS: ESPn at 4 + 8n, SSn behind it (SDM vol. 3, figure 7-2).
        let at = 4 + 8 * u64::from(cpl);
        let esp = self.tss_u64(at, external)? & 0xffff_ffff;
        let ss = (self.tss_u64(at, external)? >> 32) as u16;
        let segment = self.stack_segment(ss, cpl, ts)?;
        Ok(Handler { segment, stack: Self::other_stack(segment, esp, false, cpl) })
    }

    fn tss_u64(&mut self, offset: u64, external: u16) -> Result<u64, Trap> {
        if offset + 7 > u64::from(self.tr.limit) {
            return Err(ts(index(self.tr.selector) | external));
        }
        self.read_sys_u64(self.tr.base.wrapping_add(offset))
    }

    fn push_frame(
        &mut self,
        gate: &Gate,
        handler: &mut Handler,
        error: Option<u16>,
        with_stack: bool,
    ) -> Result<(), Trap> {
        let mut items = [0; 6];
        let mut count = 0;
        let mut add = |item: u64| {
            items[count] = item;
            count += 1;
        };
        if with_stack {
            add(u64::from(self.seg[seg::SS].selector));
            add(self.gpr[gpr::RSP]);
        }
        add(self.rflags());
        add(u64::from(self.seg[seg::CS].selector));
        add(self.rip);
        if let Some(error) = error {
            add(u64::from(error));
        }
        let size = match (self.in_long_mode(), gate.narrow) {
            (true, _) => 8,
            (false, false) => 4,
            (false, true) => 2,
        };
        self.push_items(&mut handler.stack, size, &items[..count])
    }

    fn deliver_real(&mut self, vector: u8) -> Result<(), Trap> {
        let offset = u64::from(vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return Err(Trap::gp(0));
        }
        let target = self.read_sys_u32(self.idtr.base.wrapping_add(offset))?;
        let mut stack = self.stack();
        let frame = [self.rflags(), u64::from(self.seg[seg::CS].selector), self.rip];
        self.push_items(&mut stack, 2, &frame)?;
        self.commit_sp(&stack);
        let cleared = Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF;
        self.set_rflags(self.rflags() & !cleared.bits());
        self.far_jump((target >> 16) as u16, u64::from(target & 0xffff), 2)
    }

    pub(crate) fn soft_int(&mut self, vector: u8) -> Result<(), Trap> {
        self.deliver(vector, None, Source::Software)
    }

    pub(crate) fn int3(&mut self) -> Result<(), Trap> {
        self.deliver(3, None, Source::Software)
    }

    pub(crate) fn into(&mut self) -> Result<(), Trap> {
        if self.is_long() {
            return Err(Trap::UD);
        }
        if self.flags.of() { self.deliver(4, None, Source::Software) } else { Ok(()) }
    }

    /// IRET with an operand size of 2, 4 or 8 bytes. Lets NMIs in again.
    pub(crate) fn iret(&mut self, size: u8) -> Result<(), Trap> {
        if self.mode == Mode::Real16 {
            return self.iret_real(size);
        }
        if self.flags.system_bit(Rflags::NT) {
            return if self.in_long_mode() {
                Err(Trap::gp(0))
            } else {
                Err(self.unsupported("IRET from a nested task"))
            };
        }
        let mut stack = self.stack();
        let offset = self.pop_item(&mut stack, size)?;
        let selector = self.pop_item(&mut stack, size)? as u16;
        let flags = self.pop_item(&mut stack, size)?;
        if !self.in_long_mode() && self.cpl == 0 && flags & Rflags::VM.bits() != 0 {
            return Err(self.unsupported("virtual-8086 mode"));
        }
        let mut code = self.code_for_return(selector)?;
        self.check_target(&code, offset)?;
        let (old_cpl, cpl) = (self.cpl, rpl(selector));
        if self.is_long() || cpl > old_cpl {
            let sp = self.pop_item(&mut stack, size)?;
            let ss = self.pop_item(&mut stack, size)? as u16;
            self.return_outward(&mut code, selector, offset, ss, sp)?;
        } else {
            self.touch_descriptor(&mut code)?;
            self.commit_sp(&stack);
            self.enter_code(&code, selector, cpl, offset);
        }
        self.return_flags(flags, size, old_cpl);
        Ok(())
    }

    /// RFLAGS from an IRET frame, as far as the old privilege may change them.
    fn return_flags(&mut self, image: u64, size: u8, old_cpl: u8) {
        let mut may = Rflags::CF | Rflags::PF | Rflags::AF | Rflags::ZF | Rflags::SF | Rflags::TF;
        may |= Rflags::DF | Rflags::OF | Rflags::NT;
        if size > 2 {
            // RF would hold off instruction breakpoints, which do not exist here.
            may |= Rflags::AC | Rflags::ID;
        }
        let now = self.rflags();
        if u64::from(old_cpl) <= (now & Rflags::IOPL.bits()) >> 12 {
            may |= Rflags::IF;
        }
        if old_cpl == 0 {
            may |= Rflags::IOPL;
            if size > 2 {
                may |= Rflags::VIF | Rflags::VIP;
            }
        }
        self.set_rflags((now & !may.bits()) | (image & may.bits()));
        self.events.nmi_masked = false;
        self.attention = true;
    }

    fn iret_real(&mut self, size: u8) -> Result<(), Trap> {
        let mut stack = self.stack();
        let offset = self.pop_item(&mut stack, size)?;
        let selector = self.pop_item(&mut stack, size)? as u16;
        let flags = self.pop_item(&mut stack, size)?;
        self.commit_sp(&stack);
        self.far_jump(selector, offset, size)?;
        self.return_flags(flags, size, 0);
        Ok(())
    }
}

/// A handler's stack and the register that goes with it.
struct Handler {
    segment: arch::x86_64::state::Segment,
    stack: Stack,
}
