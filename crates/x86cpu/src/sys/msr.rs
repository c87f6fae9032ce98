//! RDMSR and WRMSR: the registers that a Linux guest needs; any other is #GP, which Linux's probing
//! accesses expect (SOFTCPU.md).

use arch::x86_64::msr::*;
use arch::x86_64::regs::{Cr0, Efer, gpr, seg};

use crate::cpu::{Cpu, Trap};
use crate::mmu::is_canonical;

/// Not in `arch`: read as zero (SDM vol. 4).
const IA32_PLATFORM_ID: u32 = 0x17;
const IA32_DEBUGCTL: u32 = 0x1d9;
/// EFER bits that can be set.
pub(crate) const EFER_KNOWN: u64 = Efer::SCE.bits() | Efer::LME.bits() | Efer::LMA.bits() | Efer::NXE.bits();
/// Fast strings; IA32_MISC_ENABLE after reset.
pub(crate) const MISC_ENABLE_RESET: u64 = 1;
/// Microcode revision 1: in the upper half of IA32_BIOS_SIGN_ID.
const MICROCODE: u64 = 1 << 32;
/// KVM_SYSTEM_TIME_NEW and KVM_WALL_CLOCK_NEW: bit 0 enables, bit 1 is reserved.
pub(crate) const SYSTEM_TIME_ENABLE: u64 = 1;

/// Memory types that a PAT entry may hold (SDM vol. 3, table 12-10).
pub(crate) fn pat_is_valid(value: u64) -> bool {
    value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4 | 5 | 6 | 7))
}

fn canonical(value: u64) -> Result<u64, Trap> {
    if is_canonical(value) { Ok(value) } else { Err(Trap::gp(0)) }
}

impl Cpu {
    pub(crate) fn rdmsr(&mut self) -> Result<(), Trap> {
        self.privileged()?;
        let value = self.read_msr(self.gpr[gpr::RCX] as u32)?;
        self.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.gpr[gpr::RDX] = value >> 32;
        Ok(())
    }

    pub(crate) fn wrmsr(&mut self) -> Result<(), Trap> {
        self.privileged()?;
        let value = (self.gpr[gpr::RAX] & 0xffff_ffff) | (self.gpr[gpr::RDX] << 32);
        self.write_msr(self.gpr[gpr::RCX] as u32, value)
    }

    /// This vCPU's TSC.
    pub(crate) fn tsc(&self) -> u64 {
        self.clock.tsc().wrapping_add(self.lapic.tsc_offset)
    }

    fn read_msr(&mut self, msr: u32) -> Result<u64, Trap> {
        let m = &self.msrs;
        Ok(match msr {
            IA32_TSC => self.tsc(),
            IA32_APIC_BASE => self.lapic.base(),
            IA32_TSC_DEADLINE => self.lapic.tsc_deadline(),
            X2APIC_BASE..=0x8ff => self.x2apic_read(msr)?,
            IA32_EFER => m.efer,
            IA32_STAR => m.star,
            IA32_LSTAR => m.lstar,
            IA32_CSTAR => m.cstar,
            IA32_FMASK => m.fmask,
            IA32_FS_BASE => self.seg[seg::FS].base,
            IA32_GS_BASE => self.seg[seg::GS].base,
            IA32_KERNEL_GS_BASE => m.kernel_gs_base,
            IA32_TSC_AUX => m.tsc_aux,
            IA32_SYSENTER_CS => m.sysenter_cs,
            IA32_SYSENTER_ESP => m.sysenter_esp,
            IA32_SYSENTER_EIP => m.sysenter_eip,
            IA32_PAT => m.pat,
            IA32_MISC_ENABLE => m.misc_enable,
            IA32_BIOS_SIGN_ID => MICROCODE,
            IA32_PLATFORM_ID | IA32_DEBUGCTL => 0,
            KVM_SYSTEM_TIME_NEW => m.kvm_system_time,
            KVM_WALL_CLOCK_NEW => m.kvm_wall_clock,
            _ => return Err(Trap::gp(0)),
        })
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), Trap> {
        match msr {
            IA32_TSC => self.set_tsc(value),
            IA32_APIC_BASE => {
                if !self.lapic.set_base(value, self.mmu.phys_mask()) {
                    return Err(Trap::gp(0));
                }
                self.mmu.flush_all();
                self.attention = true;
            }
            IA32_TSC_DEADLINE => {
                self.lapic.set_tsc_deadline(value, &self.clock);
                self.attention = true;
            }
            X2APIC_BASE..=0x8ff => self.x2apic_write(msr, value)?,
            IA32_EFER => self.write_efer(value)?,
            IA32_STAR => self.msrs.star = value,
            IA32_LSTAR => self.msrs.lstar = canonical(value)?,
            IA32_CSTAR => self.msrs.cstar = canonical(value)?,
            IA32_FMASK => self.msrs.fmask = value & 0xffff_ffff,
            IA32_FS_BASE => self.seg[seg::FS].base = canonical(value)?,
            IA32_GS_BASE => self.seg[seg::GS].base = canonical(value)?,
            IA32_KERNEL_GS_BASE => self.msrs.kernel_gs_base = canonical(value)?,
            IA32_TSC_AUX if value >> 32 == 0 => self.msrs.tsc_aux = value,
            IA32_SYSENTER_CS => self.msrs.sysenter_cs = value,
            IA32_SYSENTER_ESP => self.msrs.sysenter_esp = canonical(value)?,
            IA32_SYSENTER_EIP => self.msrs.sysenter_eip = canonical(value)?,
            IA32_PAT if pat_is_valid(value) => self.msrs.pat = value,
            IA32_MISC_ENABLE => self.msrs.misc_enable = value,
            IA32_BIOS_SIGN_ID => {}
            IA32_DEBUGCTL if value == 0 => {}
            KVM_SYSTEM_TIME_NEW => {
                self.msrs.kvm_system_time = value;
                self.publish_clock();
            }
            KVM_WALL_CLOCK_NEW => {
                self.msrs.kvm_wall_clock = value;
                self.clock.write_wall_clock(&self.memory, value & !1);
            }
            _ => return Err(Trap::gp(0)),
        }
        Ok(())
    }

    /// Writes the pvclock page when the guest has one: when it asks, and when the clock or the TSC
    /// was set.
    pub(crate) fn publish_clock(&mut self) {
        let at = self.msrs.kvm_system_time;
        if at & SYSTEM_TIME_ENABLE != 0 {
            self.clock.write_pvclock(&self.memory, at & !1, self.lapic.tsc_offset);
        }
    }

    fn set_tsc(&mut self, value: u64) {
        self.lapic.tsc_offset = value.wrapping_sub(self.clock.tsc());
        self.lapic.tsc_moved(&self.clock);
        self.publish_clock();
    }

    /// EFER: LMA follows LME and CR0.PG; LME cannot change while paging (SDM vol. 3, 4.1.1).
    fn write_efer(&mut self, value: u64) -> Result<(), Trap> {
        let changed = value ^ self.msrs.efer;
        let paging = self.cr0 & Cr0::PG.bits() != 0;
        if value & !EFER_KNOWN != 0 || (paging && changed & Efer::LME.bits() != 0) {
            return Err(Trap::gp(0));
        }
        self.msrs.efer = (value & !Efer::LMA.bits()) | (self.msrs.efer & Efer::LMA.bits());
        self.update_mode();
        Ok(())
    }
}
