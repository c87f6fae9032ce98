//! Segment descriptors: the two tables, the checks that all loads share (SDM vol. 3, 3.4.5, 5.2).

use arch::x86_64::regs::Efer;
use arch::x86_64::state::Segment;

use crate::cpu::{Cpu, Trap};

/// Access rights as [`Segment::attr`] holds them.
pub(super) mod attr {
    pub const ACCESSED: u32 = 1;
    /// Data: writable; code: readable.
    pub const RW: u32 = 1 << 1;
    /// Code: conforming; data: grows down.
    pub const CONFORMING: u32 = 1 << 2;
    pub const CODE: u32 = 1 << 3;
    /// Code or data, not a system segment.
    pub const S: u32 = 1 << 4;
    pub const PRESENT: u32 = 1 << 7;
    pub const LONG: u32 = 1 << 13;
    pub const BIG: u32 = 1 << 14;
    pub const GRANULAR: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}

/// System descriptor types (SDM vol. 3, table 3-2).
pub(super) mod system {
    pub const LDT: u32 = 2;
    pub const TSS_AVAILABLE: u32 = 9;
    pub const TSS_BUSY: u32 = 11;
    pub const INTERRUPT_GATE: u32 = 14;
    pub const TRAP_GATE: u32 = 15;
}

/// #TS, #NP.
pub(super) const fn ts(selector: u16) -> Trap {
    Trap::Exception { vector: 10, error: Some(selector) }
}
pub(super) const fn np(selector: u16) -> Trap {
    Trap::Exception { vector: 11, error: Some(selector) }
}

/// A descriptor as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Linear address of it.
    pub at: u64,
    pub raw: u64,
    pub attr: u32,
}

impl Descriptor {
    fn new(at: u64, raw: u64) -> Self {
        Self { at, raw, attr: ((raw >> 40) & 0xf0ff) as u32 }
    }

    pub fn base(&self) -> u64 {
        ((self.raw >> 16) & 0xff_ffff) | ((self.raw >> 56) << 24)
    }

    /// Effective limit, in bytes.
    pub fn limit(&self) -> u32 {
        let raw = (self.raw & 0xffff) as u32 | (((self.raw >> 48) & 0xf) << 16) as u32;
        if self.attr & attr::GRANULAR != 0 { raw << 12 | 0xfff } else { raw }
    }

    pub fn dpl(&self) -> u8 {
        ((self.attr >> 5) & 3) as u8
    }

    pub fn has(&self, bits: u32) -> bool {
        self.attr & bits == bits
    }

    pub fn is_code(&self) -> bool {
        self.has(attr::S | attr::CODE)
    }

    pub fn is_conforming(&self) -> bool {
        self.has(attr::S | attr::CODE | attr::CONFORMING)
    }

    pub fn is_writable_data(&self) -> bool {
        self.has(attr::S | attr::RW) && self.attr & attr::CODE == 0
    }

    pub fn is_readable(&self) -> bool {
        self.has(attr::S) && (self.attr & attr::CODE == 0 || self.has(attr::RW))
    }

    /// Type of a system descriptor.
    pub fn system(&self) -> Option<u32> {
        (self.attr & attr::S == 0).then_some(self.attr & 0xf)
    }

    /// The register that this descriptor loads.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), attr: self.attr }
    }
}

/// A selector without its RPL: what error codes carry.
pub(super) const fn index(selector: u16) -> u16 {
    selector & 0xfffc
}

pub(super) const fn is_null(selector: u16) -> bool {
    index(selector) == 0
}

pub(super) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A null segment register (SDM vol. 3, 3.4.2); `dpl` matters for SS, where it is the CPL.
pub(super) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, attr: attr::UNUSABLE | u32::from(dpl) << 5 }
}

impl Cpu {
    pub(super) fn in_long_mode(&self) -> bool {
        self.msrs.efer & Efer::LMA.bits() != 0
    }

    /// Reads the descriptor of a selector that is not null; `None` when the table has none.
    ///
    /// # Errors
    /// A page fault of the table.
    pub(super) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Trap> {
        let (base, limit) = if selector & 4 != 0 {
            if self.ldtr.attr & attr::UNUSABLE != 0 || is_null(self.ldtr.selector) {
                return Ok(None);
            }
            (self.ldtr.base, self.ldtr.limit)
        } else {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        };
        let offset = u32::from(selector & 0xfff8);
        if offset + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(u64::from(offset));
        let at = if self.in_long_mode() { at } else { at & 0xffff_ffff };
        let raw = self.read_sys_u64(at)?;
        Ok(Some(Descriptor::new(at, raw)))
    }

    /// [`Cpu::find_descriptor`] for a load: no such descriptor is #GP(selector).
    pub(super) fn read_descriptor(&mut self, selector: u16) -> Result<Descriptor, Trap> {
        self.find_descriptor(selector)?.ok_or(Trap::gp(index(selector)))
    }

    /// High half of a 16-byte system descriptor of long mode: base bits 63:32.
    pub(super) fn read_high_base(&mut self, descriptor: &Descriptor) -> Result<u64, Trap> {
        let high = self.read_sys_u64(descriptor.at.wrapping_add(8))?;
        // Bits 12:8 of the upper half must be zero (SDM vol. 3, figure 7-4).
        if (high >> 40) & 0x1f != 0 {
            return Err(Trap::gp(0));
        }
        Ok(high << 32)
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(super) fn touch_descriptor(&mut self, descriptor: &mut Descriptor) -> Result<(), Trap> {
        if descriptor.attr & attr::ACCESSED == 0 {
            descriptor.attr |= attr::ACCESSED;
            let access = (descriptor.attr & 0xff) as u8;
            self.write_sys_u8(descriptor.at.wrapping_add(5), access)?;
        }
        Ok(())
    }
}
