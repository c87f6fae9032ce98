//! The local APIC (SDM vol. 3, chapter 11): one per vCPU, owned by it.
//!
//! Problem: interrupts come from other threads at any time; the vCPU must see them in the right
//! order, in both register views (xAPIC page, x2APIC MSRs), and a snapshot must carry all of it.
//!
//! Strategy: [`Lapic`] is a plain register file that only its vCPU touches; everything from outside
//! goes through the [`bus`]'s mailbox and is taken in by [`Lapic::sync`]. `regs` is the register
//! view, `timer` the timer, `save` the saved form.
//!
//! Invariants: a vector in IRR or ISR is 16 or more; the highest bit of ISR is the interrupt in
//! service; nothing pends in a software-disabled APIC except what was accepted before.

mod bus;
mod regs;
mod save;
mod timer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::x86_64::msr::{APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_X2APIC, APIC_DEFAULT_BASE};

pub(crate) use self::bus::event;
pub use self::bus::{ApicBus, Wake};
use self::bus::{Mailbox, Message, delivery, mode};
use self::regs::reg;
use self::timer::Timer;
use crate::clock::Clock;
use crate::cpu::PollFlag;

/// One vCPU's local APIC.
#[derive(Debug)]
pub(crate) struct Lapic {
    id: u32,
    /// By register number: xAPIC offset / 16, MSR - 0x800. CURRENT_COUNT is worked out when read.
    regs: [u32; 64],
    /// IA32_APIC_BASE.
    base: u64,
    timer: Timer,
    /// How far this vCPU's TSC is ahead of the clock's, wrapping.
    pub(crate) tsc_offset: u64,
    mailbox: Arc<Mailbox>,
    bus: Arc<ApicBus>,
}

/// What a register write asks the CPU to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Tell the IOAPIC that this level-triggered vector ended.
    pub(crate) eoi: Option<u8>,
}

impl Lapic {
    pub(crate) fn new(id: u32, bus: Arc<ApicBus>, poll: Arc<PollFlag>) -> Self {
        let mailbox = bus.mailbox(id);
        mailbox.attach(poll);
        let mut lapic =
            Self { id, regs: [0; 64], base: 0, timer: Timer::default(), tsc_offset: 0, mailbox, bus };
        lapic.power_up();
        lapic
    }

    /// State after power-up (SDM vol. 3, 11.4.7.1), APIC base included.
    pub(crate) fn power_up(&mut self) {
        let bsp = if self.id == 0 { APIC_BASE_BSP } else { 0 };
        self.base = APIC_DEFAULT_BASE | APIC_BASE_ENABLE | bsp;
        self.init();
    }

    /// State after INIT: as after power-up, but the base and the mode stay (SDM vol. 3, 11.4.7.3).
    pub(crate) fn init(&mut self) {
        self.regs = [0; 64];
        self.regs[reg::VERSION] = regs::VERSION;
        self.regs[reg::DFR] = u32::MAX;
        self.regs[reg::SVR] = 0xff;
        for lvt in reg::LVTS {
            self.regs[lvt] = regs::LVT_MASKED;
        }
        self.timer = Timer::default();
        self.set_id();
        self.publish();
    }

    fn set_id(&mut self) {
        if self.x2apic() {
            self.regs[reg::ID] = self.id;
            self.regs[reg::LDR] = regs::x2apic_ldr(self.id);
        } else {
            self.regs[reg::ID] = self.id << 24;
        }
    }

    /// Tells senders how this APIC can be addressed.
    fn publish(&self) {
        let mut flags = 0;
        if self.enabled() {
            flags |= mode::ENABLED;
            if self.regs[reg::SVR] & regs::SVR_ENABLE != 0 {
                flags |= mode::ACCEPTS;
            }
        }
        if self.x2apic() {
            flags |= mode::X2APIC;
        }
        self.mailbox.ldr.store(self.regs[reg::LDR], Ordering::Release);
        self.mailbox.dfr.store(self.regs[reg::DFR], Ordering::Release);
        self.mailbox.mode.store(flags, Ordering::Release);
    }

    fn enabled(&self) -> bool {
        self.base & APIC_BASE_ENABLE != 0
    }

    /// In x2APIC mode.
    pub(crate) fn x2apic(&self) -> bool {
        self.base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC) == APIC_BASE_ENABLE | APIC_BASE_X2APIC
    }

    /// Whether the xAPIC register page answers at this guest-physical address.
    pub(crate) fn owns(&self, gpa: u64) -> bool {
        self.enabled() && !self.x2apic() && gpa & !0xfff == self.base & !0xfff
    }

    /// IA32_APIC_BASE.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE; false (#GP) for reserved bits and for changes of mode that SDM vol. 3,
    /// figure 11-27 forbids.
    pub(crate) fn set_base(&mut self, value: u64, phys_mask: u64) -> bool {
        const MODE: u64 = APIC_BASE_ENABLE | APIC_BASE_X2APIC;
        let known = (phys_mask & !0xfff) | MODE | APIC_BASE_BSP;
        let (from, to) = (self.base & MODE, value & MODE);
        let forbidden = matches!((from, to), (_, APIC_BASE_X2APIC) | (0, MODE) | (MODE, APIC_BASE_ENABLE));
        if value & !known != 0 || forbidden {
            return false;
        }
        self.base = value;
        if from != to {
            if to == 0 {
                self.init();
            }
            self.set_id();
            self.publish();
        }
        true
    }

    /// Takes in what came from outside. True when vectors came.
    pub(crate) fn sync(&mut self) -> bool {
        let mut any = false;
        for (i, (vectors, level)) in self.mailbox.take_vectors().into_iter().enumerate() {
            if vectors != 0 {
                any = true;
                self.regs[reg::IRR + i] |= vectors;
                self.regs[reg::TMR + i] = (self.regs[reg::TMR + i] & !vectors) | level;
            }
        }
        any
    }

    /// Takes the events that came (see [`event`]).
    pub(crate) fn take_events(&mut self) -> u32 {
        self.mailbox.take_events()
    }

    fn highest(&self, first: usize) -> Option<u8> {
        (0..8).rev().find_map(|i| {
            let word = self.regs[first + i];
            (word != 0).then(|| (i * 32) as u8 + (31 - word.leading_zeros()) as u8)
        })
    }

    /// Processor priority (SDM vol. 3, 11.8.3.1).
    fn ppr(&self) -> u32 {
        let tpr = self.regs[reg::TPR] & 0xff;
        let service = u32::from(self.highest(reg::ISR).unwrap_or(0)) & 0xf0;
        if tpr & 0xf0 >= service { tpr } else { service }
    }

    /// The interrupt that may be delivered now.
    pub(crate) fn pending(&self) -> Option<u8> {
        let vector = self.highest(reg::IRR)?;
        (u32::from(vector) & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// The CPU takes an interrupt that [`Lapic::pending`] named.
    pub(crate) fn acknowledge(&mut self, vector: u8) {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        self.regs[reg::IRR + word] &= !bit;
        self.regs[reg::ISR + word] |= bit;
    }

    /// Accepts a vector of this APIC's own (timer, self-IPI): edge-triggered.
    fn accept(&mut self, vector: u8) {
        if vector >= 16 && self.regs[reg::SVR] & regs::SVR_ENABLE != 0 {
            let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
            self.regs[reg::IRR + word] |= bit;
            self.regs[reg::TMR + word] &= !bit;
        }
    }

    /// End of interrupt (SDM vol. 3, 11.8.5).
    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.highest(reg::ISR) else { return Effect::default() };
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        self.regs[reg::ISR + word] &= !bit;
        let level = self.regs[reg::TMR + word] & bit != 0;
        Effect { eoi: level.then_some(vector) }
    }

    /// Task priority, class only: CR8 (SDM vol. 3, 11.8.6).
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.regs[reg::TPR] >> 4) & 0xf
    }

    pub(crate) fn set_cr8(&mut self, class: u64) {
        self.regs[reg::TPR] = ((class & 0xf) << 4) as u32;
    }

    /// Sends an interprocessor interrupt (SDM vol. 3, 11.6.1); `destination` has 32 bits in x2APIC
    /// mode and 8 in xAPIC mode.
    fn send(&mut self, command: u32, destination: u32) {
        const LEVEL_ASSERT: u32 = 1 << 14;
        let delivery = (command >> 8) & 7;
        if delivery == delivery::INIT && command & (LEVEL_ASSERT | 1 << 15) == 1 << 15 {
            return; // INIT level de-assert: nothing on processors of this kind.
        }
        let mut message = Message {
            destination,
            logical: command & (1 << 11) != 0,
            narrow: !self.x2apic(),
            delivery,
            vector: command as u8,
            level: false,
        };
        let own = self.id;
        match (command >> 18) & 3 {
            0 => self.bus.send(&message, |_| true),
            1 => self.bus.send(&Message { destination: own, logical: false, ..message }, |id| id == own),
            shorthand => {
                message.logical = false;
                message.narrow = false;
                message.destination = u32::MAX;
                self.bus.send(&message, |id| shorthand == 2 || id != own);
            }
        }
    }

    /// Accepts the timer's interrupt when it is due.
    pub(crate) fn poll_timer(&mut self, clock: &Clock) {
        let now = clock.now_ns();
        if self.timer.expire(now) {
            let lvt = self.regs[reg::LVT_TIMER];
            if lvt & regs::LVT_MASKED == 0 {
                self.accept(lvt as u8);
            }
        }
    }

    /// When the timer is due, in clock nanoseconds.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        let masked = self.regs[reg::LVT_TIMER] & regs::LVT_MASKED != 0;
        self.timer.due().filter(|_| !masked)
    }
}
