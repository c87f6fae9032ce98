//! Operands: registers by width, memory by width, addresses.
//!
//! Widths are const parameters in bits (8, 16, 32, 64); values travel as zero-extended `u64`.
//! Address kinds are const parameters too: [`FLAT`] and [`SEG`] are 64-bit mode with 64-bit
//! addresses without and with FS or GS, [`ANY`] is everything else.

use arch::x86_64::regs::seg;

use crate::cpu::{Cpu, Mode, Trap};
use crate::op::Op;

/// Address kind: 64-bit mode, no segment base.
pub(crate) const FLAT: u8 = 0;
/// Address kind: 64-bit mode, FS or GS.
pub(crate) const SEG: u8 = 1;
/// Address kind: any mode, any address size.
pub(crate) const ANY: u8 = 2;

/// All ones in the low `B` bits.
#[inline(always)]
pub(crate) const fn mask<const B: u32>() -> u64 {
    u64::MAX >> (64 - B)
}

/// Sign-extends the low `B` bits.
#[inline(always)]
pub(crate) const fn sext<const B: u32>(v: u64) -> u64 {
    (((v << (64 - B)) as i64) >> (64 - B)) as u64
}

/// Mask of an address of `size` bytes (2, 4 or 8).
#[inline(always)]
pub(crate) const fn addr_mask(size: u8) -> u64 {
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Cpu {
    /// Reads a register operand.
    #[inline(always)]
    pub(crate) fn reg<const B: u32>(&self, r: u8) -> u64 {
        if B == 8 {
            (self.gpr[usize::from(r & 15)] >> (r >> 4)) & 0xff
        } else {
            self.gpr[usize::from(r & 31)] & mask::<B>()
        }
    }

    /// Writes a register operand: 32-bit writes zero-extend, narrower ones merge.
    #[inline(always)]
    pub(crate) fn set_reg<const B: u32>(&mut self, r: u8, v: u64) {
        match B {
            8 => {
                let shift = r >> 4;
                let slot = &mut self.gpr[usize::from(r & 15)];
                *slot = (*slot & !(0xff << shift)) | ((v & 0xff) << shift);
            }
            16 => {
                let slot = &mut self.gpr[usize::from(r & 31)];
                *slot = (*slot & !0xffff) | (v & 0xffff);
            }
            _ => self.gpr[usize::from(r & 31)] = v & mask::<B>(),
        }
    }

    /// [`Cpu::reg`] with the width in bytes known only now.
    #[inline]
    pub(crate) fn reg_sized(&self, r: u8, size: u8) -> u64 {
        match size {
            1 => self.reg::<8>(r),
            2 => self.reg::<16>(r),
            4 => self.reg::<32>(r),
            _ => self.reg::<64>(r),
        }
    }

    /// [`Cpu::set_reg`] with the width in bytes known only now.
    #[inline]
    pub(crate) fn set_reg_sized(&mut self, r: u8, size: u8, v: u64) {
        match size {
            1 => self.set_reg::<8>(r, v),
            2 => self.set_reg::<16>(r, v),
            4 => self.set_reg::<32>(r, v),
            _ => self.set_reg::<64>(r, v),
        }
    }

    #[inline(always)]
    pub(crate) fn load<const B: u32>(&mut self, lin: u64) -> Result<u64, Trap> {
        match B {
            8 => self.read_u8(lin).map(u64::from),
            16 => self.read_u16(lin).map(u64::from),
            32 => self.read_u32(lin).map(u64::from),
            _ => self.read_u64(lin),
        }
    }

    #[inline(always)]
    pub(crate) fn store<const B: u32>(&mut self, lin: u64, v: u64) -> Result<(), Trap> {
        match B {
            8 => self.write_u8(lin, v as u8),
            16 => self.write_u16(lin, v as u16),
            32 => self.write_u32(lin, v as u32),
            _ => self.write_u64(lin, v),
        }
    }

    /// A load that hits the TLB; `None`: nothing has happened, take the full way.
    ///
    /// Handlers of memory operands try the quick ways first and call their full version last: the
    /// call is then a jump, and the hit needs no stack frame.
    #[inline(always)]
    pub(crate) fn quick_load<const B: u32>(&self, lin: u64) -> Option<u64> {
        match B {
            8 => self.quick_read::<u8>(lin).map(u64::from),
            16 => self.quick_read::<u16>(lin).map(u64::from),
            32 => self.quick_read::<u32>(lin).map(u64::from),
            _ => self.quick_read::<u64>(lin),
        }
    }

    /// [`Cpu::quick_load`] with write permission.
    #[inline(always)]
    pub(crate) fn quick_load_rmw<const B: u32>(&self, lin: u64) -> Option<u64> {
        match B {
            8 => self.quick_read_rmw::<u8>(lin).map(u64::from),
            16 => self.quick_read_rmw::<u16>(lin).map(u64::from),
            32 => self.quick_read_rmw::<u32>(lin).map(u64::from),
            _ => self.quick_read_rmw::<u64>(lin),
        }
    }

    /// A store that hits the TLB; false: nothing has happened, take the full way.
    #[inline(always)]
    pub(crate) fn quick_store<const B: u32>(&self, lin: u64, v: u64) -> bool {
        match B {
            8 => self.quick_write(lin, v as u8),
            16 => self.quick_write(lin, v as u16),
            32 => self.quick_write(lin, v as u32),
            _ => self.quick_write(lin, v),
        }
    }

    /// Address of the memory operand for the kinds [`FLAT`] and [`SEG`].
    #[inline(always)]
    pub(crate) fn quick_address<const A: u8>(&self, op: &Op) -> u64 {
        let sum = self.gpr[usize::from(op.base & 31)]
            .wrapping_add(self.gpr[usize::from(op.index & 31)] << (op.scale & 3))
            .wrapping_add(op.disp);
        if A == SEG { sum.wrapping_add(self.seg[usize::from(op.seg & 7)].base) } else { sum }
    }

    /// A load that will be followed by a store to the same place.
    #[inline(always)]
    pub(crate) fn load_rmw<const B: u32>(&mut self, lin: u64) -> Result<u64, Trap> {
        match B {
            8 => self.read_rmw_u8(lin).map(u64::from),
            16 => self.read_rmw_u16(lin).map(u64::from),
            32 => self.read_rmw_u32(lin).map(u64::from),
            _ => self.read_rmw_u64(lin),
        }
    }

    /// Atomic read-modify-write; returns the old value. `f` may run more than once.
    #[inline]
    pub(crate) fn atomic_op<const B: u32>(&mut self, lin: u64, f: impl Fn(u64) -> u64) -> Result<u64, Trap> {
        match B {
            8 => self.atomic_u8(lin, |v| f(u64::from(v)) as u8).map(u64::from),
            16 => self.atomic_u16(lin, |v| f(u64::from(v)) as u16).map(u64::from),
            32 => self.atomic_u32(lin, |v| f(u64::from(v)) as u32).map(u64::from),
            _ => self.atomic_u64(lin, f),
        }
    }

    /// [`Cpu::load`] with the width in bytes known only now.
    #[inline]
    pub(crate) fn load_sized(&mut self, lin: u64, size: u8) -> Result<u64, Trap> {
        match size {
            1 => self.load::<8>(lin),
            2 => self.load::<16>(lin),
            4 => self.load::<32>(lin),
            _ => self.load::<64>(lin),
        }
    }

    /// [`Cpu::store`] with the width in bytes known only now.
    #[inline]
    pub(crate) fn store_sized(&mut self, lin: u64, size: u8, v: u64) -> Result<(), Trap> {
        match size {
            1 => self.store::<8>(lin, v),
            2 => self.store::<16>(lin, v),
            4 => self.store::<32>(lin, v),
            _ => self.store::<64>(lin, v),
        }
    }

    /// Offset of the memory operand in its segment.
    #[inline(always)]
    pub(crate) fn offset(&self, op: &Op) -> u64 {
        let sum = self.gpr[usize::from(op.base & 31)]
            .wrapping_add(self.gpr[usize::from(op.index & 31)] << (op.scale & 3))
            .wrapping_add(op.disp);
        sum & addr_mask(op.addr_size)
    }

    /// Linear address of the memory operand, `bytes` long.
    #[inline(always)]
    pub(crate) fn address<const A: u8>(&self, op: &Op, bytes: u32, write: bool) -> Result<u64, Trap> {
        if A == ANY {
            return self.linear(op.seg, self.offset(op), bytes, write);
        }
        Ok(self.quick_address::<A>(op))
    }

    /// Segmentation (SDM vol. 3, 5.3): the linear address of `bytes` bytes at `offset`.
    #[inline]
    pub(crate) fn linear(&self, segment: u8, offset: u64, bytes: u32, write: bool) -> Result<u64, Trap> {
        if self.is_long() {
            let base =
                if usize::from(segment) < seg::FS { 0 } else { self.seg[usize::from(segment & 7)].base };
            return Ok(base.wrapping_add(offset));
        }
        self.linear_checked(segment, offset, bytes, write)
    }

    #[inline(never)]
    fn linear_checked(&self, segment: u8, offset: u64, bytes: u32, write: bool) -> Result<u64, Trap> {
        let s = &self.seg[usize::from(segment & 7)];
        let trap = if usize::from(segment) == seg::SS { Trap::ss(0) } else { Trap::gp(0) };
        let last = offset + u64::from(bytes.max(1)) - 1;
        let (code, expand_down, writable) = (s.attr & 8 != 0, s.attr & 0xc == 4, s.attr & 2 != 0);
        if self.mode != Mode::Real16 {
            let readable = !code || s.attr & 2 != 0;
            if s.attr & (1 << 16) != 0 || (write && (code || !writable)) || (!write && !readable) {
                return Err(trap);
            }
        }
        let ok = if expand_down && !code {
            let top = if s.attr & (1 << 14) != 0 { 0xffff_ffff } else { 0xffff };
            offset > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        if !ok {
            return Err(trap);
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }
}
