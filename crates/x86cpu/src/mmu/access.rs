//! The hit path: typed loads and stores at linear addresses. Everything else is in `slow`.

use super::raw::Word;
use crate::cpu::{Cpu, Trap};

impl Cpu {
    #[inline(always)]
    pub(crate) fn read<T: Word>(&mut self, lin: u64) -> Result<T, Trap> {
        match self.mmu.hit_read(lin) {
            Some(value) => Ok(value),
            None => self.read_slow(lin),
        }
    }

    #[inline(always)]
    pub(crate) fn write<T: Word>(&mut self, lin: u64, value: T) -> Result<(), Trap> {
        if self.mmu.hit_write(lin, value) { Ok(()) } else { self.write_slow(lin, value) }
    }

    /// Reads with the intent to write: a fault says so, and a write to the same place that follows
    /// cannot fault.
    #[inline(always)]
    pub(crate) fn read_rmw<T: Word>(&mut self, lin: u64) -> Result<T, Trap> {
        match self.mmu.hit_read_rmw(lin) {
            Some(value) => Ok(value),
            None => self.read_rmw_slow(lin),
        }
    }

    /// Atomic read-modify-write (LOCK); gives the old value. `f` may run more than once.
    #[inline(always)]
    pub(crate) fn atomic<T: Word>(&mut self, lin: u64, mut f: impl FnMut(T) -> T) -> Result<T, Trap> {
        match self.mmu.hit_update(lin, &mut f) {
            Some(old) => Ok(old),
            None => self.atomic_slow(lin, f),
        }
    }

    /// Reads when the TLB allows it at once; else nothing has happened.
    #[inline(always)]
    pub(crate) fn quick_read<T: Word>(&self, lin: u64) -> Option<T> {
        self.mmu.hit_read(lin)
    }

    /// [`Cpu::read_rmw`] when the TLB allows it at once; else nothing has happened.
    #[inline(always)]
    pub(crate) fn quick_read_rmw<T: Word>(&self, lin: u64) -> Option<T> {
        self.mmu.hit_read_rmw(lin)
    }

    /// Writes when the TLB allows it at once; else (false) nothing has happened.
    #[inline(always)]
    pub(crate) fn quick_write<T: Word>(&self, lin: u64, value: T) -> bool {
        self.mmu.hit_write(lin, value)
    }

    /// Before every block: write tags follow guestmem's write epoch.
    #[inline(always)]
    pub(crate) fn mmu_sync(&mut self) {
        self.mmu.sync();
    }
}

macro_rules! typed {
    ($($t:ty: $read:ident $write:ident $atomic:ident $($rmw:ident)?;)*) => {
        impl Cpu {$(
            #[inline(always)]
            pub(crate) fn $read(&mut self, lin: u64) -> Result<$t, Trap> {
                self.read(lin)
            }
            #[inline(always)]
            pub(crate) fn $write(&mut self, lin: u64, value: $t) -> Result<(), Trap> {
                self.write(lin, value)
            }
            $(#[inline(always)]
            pub(crate) fn $rmw(&mut self, lin: u64) -> Result<$t, Trap> {
                self.read_rmw(lin)
            })?
            #[inline(always)]
            pub(crate) fn $atomic(&mut self, lin: u64, f: impl FnMut($t) -> $t) -> Result<$t, Trap> {
                self.atomic(lin, f)
            }
        )*}
    };
}
typed! {
    u8: read_u8 write_u8 atomic_u8 read_rmw_u8;
    u16: read_u16 write_u16 atomic_u16 read_rmw_u16;
    u32: read_u32 write_u32 atomic_u32 read_rmw_u32;
    u64: read_u64 write_u64 atomic_u64 read_rmw_u64;
    u128: read_u128 write_u128 atomic_u128;
}
