//! CPUID, hypercalls, the time-stamp counter, random numbers.

use arch::x86_64::cpuid;
use arch::x86_64::regs::{Cr4, gpr};
use rand::RngCore;

use crate::cpu::{Cpu, Mode, Trap};

/// CPUID's leaf of hypervisors, and what EBX has there under KVM (Linux: Documentation/virt/kvm/x86/cpuid.rst).
const HYPERVISOR: u32 = 0x4000_0000;
const KVM: u32 = u32::from_le_bytes(*b"KVMK");
/// The hypercall that only lets events be looked for, and the answers to those that are refused
/// (linux/kvm_para.h: KVM_HC_VAPIC_POLL_IRQ, KVM_EPERM, KVM_ENOSYS).
const POLL_IRQ: u64 = 1;
const NOT_PERMITTED: i64 = -1;
const NOT_THERE: i64 = -1000;

impl Cpu {
    pub(crate) fn cpuid_insn(&mut self) -> Result<(), Trap> {
        let (eax, ecx) = (self.gpr[gpr::RAX] as u32, self.gpr[gpr::RCX] as u32);
        let answer = cpuid::lookup(&self.cpuid, eax, ecx);
        self.gpr[gpr::RAX] = u64::from(answer.eax);
        self.gpr[gpr::RBX] = u64::from(answer.ebx);
        self.gpr[gpr::RCX] = u64::from(answer.ecx);
        self.gpr[gpr::RDX] = u64::from(answer.edx);
        Ok(())
    }

    /// VMCALL and VMMCALL as KVM answers them where it offers nothing beyond: a guest that finds KVM by CPUID may ask
    /// (Linux's ptp_kvm does, without a feature bit) and goes by the number it gets. Without KVM in CPUID: #UD.
    pub(crate) fn vmcall(&mut self) -> Result<(), Trap> {
        if cpuid::lookup(&self.cpuid, HYPERVISOR, 0).ebx != KVM {
            return Err(Trap::UD);
        }
        let wide = self.mode == Mode::Long64;
        let call = self.gpr[gpr::RAX] & if wide { u64::MAX } else { 0xffff_ffff };
        let answer = match (self.cpl, call) {
            (0, POLL_IRQ) => 0,
            (0, _) => NOT_THERE,
            _ => NOT_PERMITTED,
        };
        self.gpr[gpr::RAX] = if wide { answer as u64 } else { u64::from(answer as u32) };
        Ok(())
    }

    pub(crate) fn rdtsc(&mut self) -> Result<(), Trap> {
        if self.cpl != 0 && self.cr4 & Cr4::TSD.bits() != 0 {
            return Err(Trap::gp(0));
        }
        let tsc = self.tsc();
        self.gpr[gpr::RAX] = tsc & 0xffff_ffff;
        self.gpr[gpr::RDX] = tsc >> 32;
        Ok(())
    }

    pub(crate) fn rdtscp(&mut self) -> Result<(), Trap> {
        self.rdtsc()?;
        self.gpr[gpr::RCX] = self.msrs.tsc_aux;
        Ok(())
    }

    /// No performance counters are offered.
    pub(crate) fn rdpmc(&mut self) -> Result<(), Trap> {
        Err(Trap::gp(0))
    }

    /// A random number from the host's generator, or of the sequence that repeats.
    pub(crate) fn rdrand(&mut self) -> Result<u64, Trap> {
        Ok(match &mut self.seeded {
            Some(sequence) => sequence.next_u64(),
            None => rand::rng().next_u64(),
        })
    }

    /// As RDRAND: the host's generator is seeded from its entropy, and reseeds itself.
    pub(crate) fn rdseed(&mut self) -> Result<u64, Trap> {
        self.rdrand()
    }
}
