//! CPUID, the time-stamp counter, random numbers.

use arch::x86_64::cpuid;
use arch::x86_64::regs::{Cr4, gpr};
use rand::RngCore;

use crate::cpu::{Cpu, Trap};

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
