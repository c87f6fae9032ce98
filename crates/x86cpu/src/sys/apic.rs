//! The CPU's side of its local APIC: the register page, the MSRs, CR8, what a write sets off.

use arch::x86_64::msr::X2APIC_BASE;

use crate::cpu::{Cpu, Stop, Trap};
use crate::lapic::Effect;

impl Cpu {
    /// A load from the xAPIC page. Registers are 32 bits at multiples of 16; what is between reads
    /// as zero.
    pub(crate) fn lapic_mmio_read(&mut self, gpa: u64, size: usize) -> u64 {
        let offset = gpa & 0xfff;
        if offset & 0xf >= 4 || offset >= 0x400 {
            return 0;
        }
        let value = self.lapic.read((offset >> 4) as usize, &self.clock).unwrap_or(0) & 0xffff_ffff;
        let bits = 8 * size.min(4) as u32;
        (value >> (8 * (offset & 3))) & (u64::MAX >> (64 - bits))
    }

    /// A store to the xAPIC page; only whole registers count (SDM vol. 3, 11.4.1).
    pub(crate) fn lapic_mmio_write(&mut self, gpa: u64, size: usize, value: u64) {
        let offset = gpa & 0xfff;
        if size < 4 || offset & 0xf != 0 || offset >= 0x400 {
            return;
        }
        let value = value & 0xffff_ffff;
        if let Ok(effect) = self.lapic.write((offset >> 4) as usize, value, &self.clock) {
            self.lapic_effect(effect);
        }
    }

    /// RDMSR 0x800 to 0x8ff.
    pub(super) fn x2apic_read(&mut self, msr: u32) -> Result<u64, Trap> {
        let number = (msr - X2APIC_BASE) as usize;
        if !self.lapic.x2apic() || number >= 64 {
            return Err(Trap::gp(0));
        }
        self.lapic.read(number, &self.clock).map_err(|_| Trap::gp(0))
    }

    /// WRMSR 0x800 to 0x8ff.
    pub(super) fn x2apic_write(&mut self, msr: u32, value: u64) -> Result<(), Trap> {
        let number = (msr - X2APIC_BASE) as usize;
        if !self.lapic.x2apic() || number >= 64 {
            return Err(Trap::gp(0));
        }
        let effect = self.lapic.write(number, value, &self.clock).map_err(|_| Trap::gp(0))?;
        self.lapic_effect(effect);
        Ok(())
    }

    fn lapic_effect(&mut self, effect: Effect) {
        if let Some(vector) = effect.eoi {
            self.outbox = Some(Stop::IoapicEoi { vector });
        }
        self.attention = true;
        self.leave = true;
    }
}
