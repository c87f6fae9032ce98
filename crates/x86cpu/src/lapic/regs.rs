//! The register view: MSR numbers and page offsets, what can be read and written (SDM vol. 3, tables
//! 11-1 and 11-6).

use super::timer::timer_mode;
use super::{Effect, Lapic};
use crate::clock::Clock;

/// Register numbers: xAPIC offset / 16.
pub(super) mod reg {
    pub const ID: usize = 0x02;
    pub const VERSION: usize = 0x03;
    pub const TPR: usize = 0x08;
    pub const APR: usize = 0x09;
    pub const PPR: usize = 0x0a;
    pub const EOI: usize = 0x0b;
    pub const RRD: usize = 0x0c;
    pub const LDR: usize = 0x0d;
    pub const DFR: usize = 0x0e;
    pub const SVR: usize = 0x0f;
    pub const ISR: usize = 0x10;
    pub const TMR: usize = 0x18;
    pub const IRR: usize = 0x20;
    pub const ESR: usize = 0x28;
    pub const ICR: usize = 0x30;
    pub const ICR_HIGH: usize = 0x31;
    pub const LVT_TIMER: usize = 0x32;
    pub const LVT_THERMAL: usize = 0x33;
    pub const LVT_LINT0: usize = 0x35;
    pub const LVT_LINT1: usize = 0x36;
    pub const LVT_ERROR: usize = 0x37;
    pub const INITIAL_COUNT: usize = 0x38;
    pub const CURRENT_COUNT: usize = 0x39;
    pub const DIVIDE: usize = 0x3e;
    pub const SELF_IPI: usize = 0x3f;
    /// All local vector table entries.
    pub const LVTS: std::ops::RangeInclusive<usize> = LVT_TIMER..=LVT_ERROR;
}

/// Version 0x14, six local vector table entries (what KVM's shows, too).
pub(super) const VERSION: u32 = 0x0005_0014;
pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const SVR_ENABLE: u32 = 1 << 8;

/// Logical id in x2APIC mode (SDM vol. 3, 11.12.10.2).
pub(super) fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

/// A register access that does not exist: #GP in x2APIC mode, ignored in the xAPIC page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRegister;

/// Bits of a local vector table entry that can be written.
fn lvt_bits(reg: usize) -> u32 {
    match reg {
        reg::LVT_TIMER => 0x0007_00ff,
        reg::LVT_LINT0 | reg::LVT_LINT1 => 0x0001_a7ff,
        reg::LVT_ERROR => 0x0001_00ff,
        _ => 0x0001_07ff,
    }
}

impl Lapic {
    /// Reads a register by number.
    pub(crate) fn read(&mut self, number: usize, clock: &Clock) -> Result<u64, NoRegister> {
        self.sync();
        let value = match number {
            reg::PPR => self.ppr(),
            reg::CURRENT_COUNT => self.timer.current(clock, self.regs[reg::DIVIDE]),
            reg::EOI | reg::SELF_IPI => return Err(NoRegister),
            reg::ICR if self.x2apic() => {
                return Ok(u64::from(self.regs[reg::ICR]) | u64::from(self.regs[reg::ICR_HIGH]) << 32);
            }
            reg::APR | reg::RRD | reg::DFR | reg::ICR_HIGH if self.x2apic() => return Err(NoRegister),
            reg::ID
            | reg::VERSION
            | reg::TPR
            | reg::APR
            | reg::RRD
            | reg::LDR..=reg::ESR
            | reg::ICR..=reg::INITIAL_COUNT
            | reg::DIVIDE => self.regs[number],
            _ => return Err(NoRegister),
        };
        Ok(u64::from(value))
    }

    /// Writes a register by number; `value` has 64 bits for the x2APIC ICR only.
    pub(crate) fn write(&mut self, number: usize, value: u64, clock: &Clock) -> Result<Effect, NoRegister> {
        let x2apic = self.x2apic();
        if x2apic && number != reg::ICR && value >> 32 != 0 {
            return Err(NoRegister);
        }
        let low = value as u32;
        match number {
            reg::TPR => {
                self.checked(low, 0xff)?;
                self.regs[reg::TPR] = low & 0xff;
            }
            reg::EOI => {
                self.checked(low, 0)?;
                self.sync();
                return Ok(self.end_of_interrupt());
            }
            reg::LDR if !x2apic => {
                self.regs[reg::LDR] = low & 0xff00_0000;
                self.publish();
            }
            reg::DFR if !x2apic => {
                self.regs[reg::DFR] = low | 0x0fff_ffff;
                self.publish();
            }
            reg::SVR => self.write_svr(low)?,
            reg::ESR => {
                self.checked(low, 0)?;
                self.regs[reg::ESR] = 0;
            }
            reg::ICR => self.write_icr(value)?,
            reg::ICR_HIGH if !x2apic => self.regs[reg::ICR_HIGH] = low & 0xff00_0000,
            reg::LVT_TIMER => self.write_lvt_timer(low)?,
            reg::LVT_THERMAL..=reg::LVT_ERROR => {
                // Delivery status (12) and remote IRR (14) are read-only.
                self.checked(low, lvt_bits(number) | 0x5000)?;
                self.regs[number] = self.masked_if_disabled(low & lvt_bits(number));
            }
            reg::INITIAL_COUNT => self.write_count(low, clock),
            reg::DIVIDE => {
                self.checked(low, 0xb)?;
                self.rescale(low & 0xb, clock);
            }
            reg::SELF_IPI if x2apic => {
                self.checked(low, 0xff)?;
                self.accept(low as u8);
            }
            _ => return Err(NoRegister),
        }
        Ok(Effect::default())
    }

    /// Reserved bits fault in x2APIC mode and are ignored in the xAPIC page.
    fn checked(&self, value: u32, known: u32) -> Result<(), NoRegister> {
        if self.x2apic() && value & !known != 0 { Err(NoRegister) } else { Ok(()) }
    }

    fn masked_if_disabled(&self, lvt: u32) -> u32 {
        if self.regs[reg::SVR] & SVR_ENABLE == 0 { lvt | LVT_MASKED } else { lvt }
    }

    fn write_svr(&mut self, value: u32) -> Result<(), NoRegister> {
        // Focus checking (9) is tolerated; EOI-broadcast suppression (12) is not offered.
        self.checked(value, 0x3ff)?;
        self.regs[reg::SVR] = value & 0x3ff;
        if value & SVR_ENABLE == 0 {
            for lvt in reg::LVTS {
                self.regs[lvt] |= LVT_MASKED;
            }
        }
        self.publish();
        Ok(())
    }

    fn write_icr(&mut self, value: u64) -> Result<(), NoRegister> {
        const KNOWN: u32 = 0x000c_dfff;
        let command = value as u32;
        // Delivery status (12) is read-only and always idle.
        self.checked(command, KNOWN)?;
        self.regs[reg::ICR] = command & KNOWN & !(1 << 12);
        let destination = if self.x2apic() {
            self.regs[reg::ICR_HIGH] = (value >> 32) as u32;
            self.regs[reg::ICR_HIGH]
        } else {
            self.regs[reg::ICR_HIGH] >> 24
        };
        self.send(command, destination);
        Ok(())
    }

    fn timer_mode(&self) -> u32 {
        (self.regs[reg::LVT_TIMER] >> timer_mode::SHIFT) & 3
    }

    fn write_lvt_timer(&mut self, value: u32) -> Result<(), NoRegister> {
        self.checked(value, lvt_bits(reg::LVT_TIMER) | 1 << 12)?;
        let old = self.timer_mode();
        self.regs[reg::LVT_TIMER] = self.masked_if_disabled(value & lvt_bits(reg::LVT_TIMER));
        let new = self.timer_mode();
        // Into or out of TSC-deadline mode disarms (SDM vol. 3, 11.5.4.1).
        if old != new && (old == timer_mode::TSC_DEADLINE || new == timer_mode::TSC_DEADLINE) {
            self.timer.stop();
            self.regs[reg::INITIAL_COUNT] = 0;
        }
        Ok(())
    }

    fn write_count(&mut self, count: u32, clock: &Clock) {
        let mode = self.timer_mode();
        if mode == timer_mode::ONE_SHOT || mode == timer_mode::PERIODIC {
            self.regs[reg::INITIAL_COUNT] = count;
            self.timer.start(clock, count, self.regs[reg::DIVIDE], mode == timer_mode::PERIODIC);
        }
    }

    fn rescale(&mut self, divide_config: u32, clock: &Clock) {
        let left = self.timer.current(clock, self.regs[reg::DIVIDE]);
        self.regs[reg::DIVIDE] = divide_config;
        if self.timer_mode() != timer_mode::TSC_DEADLINE && left != 0 {
            let periodic = self.timer_mode() == timer_mode::PERIODIC;
            self.timer.start_from(clock, self.regs[reg::INITIAL_COUNT], left, divide_config, periodic);
        }
    }

    /// IA32_TSC_DEADLINE as it reads.
    pub(crate) fn tsc_deadline(&self) -> u64 {
        self.timer.deadline()
    }

    /// Writes IA32_TSC_DEADLINE; ignored outside of TSC-deadline mode (SDM vol. 3, 11.5.4.1).
    pub(crate) fn set_tsc_deadline(&mut self, deadline: u64, clock: &Clock) {
        if self.timer_mode() == timer_mode::TSC_DEADLINE {
            self.timer.set_deadline(clock, deadline, self.tsc_offset);
        }
    }

    /// The TSC moved under an armed deadline.
    pub(crate) fn tsc_moved(&mut self, clock: &Clock) {
        let deadline = self.timer.deadline();
        if deadline != 0 {
            self.timer.set_deadline(clock, deadline, self.tsc_offset);
        }
    }
}
