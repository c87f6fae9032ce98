//! Stub: identity mapping.
use guestmem::GuestMemory;

use crate::cpu::{Cpu, Trap};

#[derive(Debug)]
pub(crate) struct Mmu {
    pub(crate) map_epoch: u32,
}

impl Mmu {
    pub(crate) fn new(_m: &GuestMemory) -> Self {
        Self { map_epoch: 0 }
    }
    pub(crate) fn mode_changed(&mut self, _cpl: u8, _cr0: u64, _cr4: u64, _efer: u64) {}
}

pub(crate) struct CodePage {
    pub(crate) page: usize,
    pub(crate) gpa: u64,
    pub(crate) global: bool,
}

macro_rules! access {
    ($t:ty, $r:ident, $w:ident, $rmw:ident, $at:ident) => {
        impl Cpu {
            pub(crate) fn $r(&mut self, lin: u64) -> Result<$t, Trap> {
                self.memory.read_le::<$t>(lin).map_err(|_| Trap::gp(0))
            }
            pub(crate) fn $w(&mut self, lin: u64, v: $t) -> Result<(), Trap> {
                self.memory.write_le::<$t>(lin, v).map_err(|_| Trap::gp(0))
            }
            pub(crate) fn $rmw(&mut self, lin: u64) -> Result<$t, Trap> {
                self.$r(lin)
            }
            pub(crate) fn $at(&mut self, lin: u64, mut f: impl FnMut($t) -> $t) -> Result<$t, Trap> {
                let old = self.$r(lin)?;
                self.$w(lin, f(old))?;
                Ok(old)
            }
        }
    };
}
access!(u8, read_u8, write_u8, read_rmw_u8, atomic_u8);
access!(u16, read_u16, write_u16, read_rmw_u16, atomic_u16);
access!(u32, read_u32, write_u32, read_rmw_u32, atomic_u32);
access!(u64, read_u64, write_u64, read_rmw_u64, atomic_u64);
access!(u128, read_u128, write_u128, read_rmw_u128, atomic_u128);

impl Cpu {
    pub(crate) fn mmu_sync(&mut self) {}
    pub(crate) fn probe_write(&mut self, _lin: u64, _len: u64) -> Result<(), Trap> {
        Ok(())
    }
    pub(crate) fn probe_read(&mut self, _lin: u64, _len: u64) -> Result<(), Trap> {
        Ok(())
    }
    pub(crate) fn copy_chunk(&mut self, _dst: u64, _src: u64, _len: usize) -> usize {
        0
    }
    pub(crate) fn fill_chunk(&mut self, _dst: u64, _pattern: u64, _elem: usize, _len: usize) -> usize {
        0
    }
    pub(crate) fn fetch_page(&mut self, lin: u64) -> Result<CodePage, Trap> {
        let page = self.memory.page_index(lin).ok_or(Trap::gp(0))?;
        Ok(CodePage { page, gpa: lin & !0xfff, global: false })
    }
}
