//! Control and debug registers, and the small privileged instructions (SDM vol. 3, 2.5, 4.1.3, 17.2;
//! vol. 2, each instruction).

use arch::x86_64::cpuid;
use arch::x86_64::regs::{Cr0, Cr4, Efer, Rflags, seg};
use arch::x86_64::state::MpState;

use super::descriptor::attr;
use crate::cpu::{Cpu, Trap};
use crate::mmu::is_canonical;

/// CR0 bits that exist.
pub(crate) const CR0_KNOWN: u64 = 0xe005_003f;
/// DR6 and DR7 bits that read as one (SDM vol. 3, 17.2).
const DR6_ONES: u64 = 0xffff_0ff0;
const DR6_KNOWN: u64 = 0xe00f;
const DR7_ONES: u64 = 0x400;
const DR7_KNOWN: u64 = 0xffff_23ff;

impl Cpu {
    pub(super) fn privileged(&self) -> Result<(), Trap> {
        if self.cpl == 0 { Ok(()) } else { Err(Trap::gp(0)) }
    }

    pub(crate) fn mov_from_cr(&mut self, number: u8) -> Result<u64, Trap> {
        self.privileged()?;
        match number {
            0 => Ok(self.cr0),
            2 => Ok(self.cr2),
            3 => Ok(self.cr3),
            4 => Ok(self.cr4),
            8 => Ok(self.lapic.cr8()),
            _ => Err(Trap::UD),
        }
    }

    pub(crate) fn mov_to_cr(&mut self, number: u8, value: u64) -> Result<(), Trap> {
        self.privileged()?;
        match number {
            0 => self.write_cr0(value),
            2 => {
                self.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value > 15 => Err(Trap::gp(0)),
            8 => {
                self.lapic.set_cr8(value);
                self.attention = true;
                Ok(())
            }
            _ => Err(Trap::UD),
        }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Trap> {
        let new = Cr0::from_bits_retain(value & CR0_KNOWN) | Cr0::ET;
        let has_paging = new.contains(Cr0::PG);
        let bad = value >> 32 != 0
            || (has_paging && !new.contains(Cr0::PE))
            || (new.contains(Cr0::NW) && !new.contains(Cr0::CD))
            || (!has_paging && self.is_long());
        if bad {
            return Err(Trap::gp(0));
        }
        let old = Cr0::from_bits_retain(self.cr0);
        if has_paging && !old.contains(Cr0::PG) {
            if self.msrs.efer & Efer::LME.bits() == 0 {
                return Err(self.unsupported("paging outside of long mode"));
            }
            let cs_long = self.seg[seg::CS].attr & attr::LONG != 0;
            if self.cr4 & Cr4::PAE.bits() == 0 || cs_long {
                return Err(Trap::gp(0));
            }
            self.msrs.efer |= Efer::LMA.bits();
        } else if !has_paging {
            self.msrs.efer &= !Efer::LMA.bits();
        }
        self.cr0 = new.bits();
        self.update_mode();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Trap> {
        if self.in_long_mode() && value & !self.mmu.phys_mask() != 0 {
            return Err(Trap::gp(0));
        }
        self.cr3 = value;
        self.mmu.set_cr3(value);
        Ok(())
    }

    /// CR4 bits that the CPU template offers.
    pub(crate) fn cr4_known(&self) -> u64 {
        let leaf7 = cpuid::lookup(&self.cpuid, 7, 0);
        let mut known = Cr4::VME | Cr4::PVI | Cr4::TSD | Cr4::DE | Cr4::PSE | Cr4::PAE | Cr4::MCE;
        known |= Cr4::PGE | Cr4::PCE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
        let mut offer = |offered: u32, bit: Cr4| known |= if offered != 0 { bit } else { Cr4::empty() };
        offer(leaf7.ebx & 1, Cr4::FSGSBASE);
        offer(leaf7.ebx & 1 << 7, Cr4::SMEP);
        offer(leaf7.ecx & 1 << 2, Cr4::UMIP);
        known.bits()
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Trap> {
        let losing_pae = self.in_long_mode() && value & Cr4::PAE.bits() == 0;
        if value & !self.cr4_known() != 0 || losing_pae {
            return Err(Trap::gp(0));
        }
        self.cr4 = value;
        self.update_mode();
        Ok(())
    }

    /// DR4 and DR5 are DR6 and DR7, unless CR4.DE makes them #UD.
    fn debug_register(&self, number: u8) -> Result<usize, Trap> {
        let aliased = matches!(number, 4 | 5);
        if number > 7 || (aliased && self.cr4 & Cr4::DE.bits() != 0) {
            return Err(Trap::UD);
        }
        self.privileged()?;
        Ok(match number {
            0..=3 => usize::from(number),
            4 | 6 => 4,
            _ => 5,
        })
    }

    pub(crate) fn mov_from_dr(&mut self, number: u8) -> Result<u64, Trap> {
        let at = self.debug_register(number)?;
        Ok(self.dr[at])
    }

    /// Stored and read back; breakpoints themselves are not executed by this CPU.
    pub(crate) fn mov_to_dr(&mut self, number: u8, value: u64) -> Result<(), Trap> {
        let at = self.debug_register(number)?;
        if at >= 4 && value >> 32 != 0 {
            return Err(Trap::gp(0));
        }
        self.dr[at] = match at {
            4 => (value & DR6_KNOWN) | DR6_ONES,
            5 => (value & DR7_KNOWN) | DR7_ONES,
            _ => value,
        };
        Ok(())
    }

    pub(crate) fn clts(&mut self) -> Result<(), Trap> {
        self.privileged()?;
        self.cr0 &= !Cr0::TS.bits();
        self.update_mode();
        Ok(())
    }

    /// LMSW: PE, MP, EM, TS; PE cannot be cleared.
    pub(crate) fn lmsw(&mut self, value: u16) -> Result<(), Trap> {
        self.privileged()?;
        let low = u64::from(value) & 0xf | self.cr0 & 1;
        self.write_cr0((self.cr0 & !0xf) | low)
    }

    pub(crate) fn smsw(&mut self) -> Result<u64, Trap> {
        if self.cpl != 0 && self.cr4 & Cr4::UMIP.bits() != 0 {
            return Err(Trap::gp(0));
        }
        Ok(self.cr0)
    }

    pub(crate) fn invlpg(&mut self, lin: u64) -> Result<(), Trap> {
        self.privileged()?;
        if is_canonical(lin) {
            self.mmu.flush_page(lin);
        }
        Ok(())
    }

    /// INVPCID is not offered.
    pub(crate) fn invpcid(&mut self, _kind: u64, _lin: u64) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    /// WBINVD and INVD: there are no caches to write back.
    pub(crate) fn wbinvd(&mut self) -> Result<(), Trap> {
        self.privileged()
    }

    pub(crate) fn hlt(&mut self) -> Result<(), Trap> {
        self.privileged()?;
        self.mp_state = MpState::Halted;
        self.attention = true;
        Ok(())
    }

    /// CLAC and STAC belong to SMAP, which is not offered.
    pub(crate) fn clac(&mut self) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    pub(crate) fn stac(&mut self) -> Result<(), Trap> {
        Err(Trap::UD)
    }

    fn iopl_allows(&self) -> Result<(), Trap> {
        let iopl = (self.flags.system & Rflags::IOPL.bits()) >> 12;
        if u64::from(self.cpl) <= iopl { Ok(()) } else { Err(Trap::gp(0)) }
    }

    pub(crate) fn cli(&mut self) -> Result<(), Trap> {
        self.iopl_allows()?;
        self.flags.set_system_bit(Rflags::IF, false);
        Ok(())
    }

    /// STI; the instruction after it still runs without interrupts when they were off.
    pub(crate) fn sti(&mut self) -> Result<(), Trap> {
        self.iopl_allows()?;
        if !self.flags.system_bit(Rflags::IF) {
            self.flags.set_system_bit(Rflags::IF, true);
            self.events.sti_shadow = true;
            self.attention = true;
        }
        Ok(())
    }
}
