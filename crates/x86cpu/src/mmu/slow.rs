//! What the hit path cannot do: misses, page crossings, devices, the local APIC's page, faults.

use super::raw::Word;
use super::tlb::{ENTRIES, Tlb, info};
use super::walk::{Intent, walk};
use super::{CodePage, Mmu, PAGE_MASK, is_canonical};
use crate::cpu::{Cpu, Stop, Trap};

/// Why a translation failed.
pub(super) enum Miss {
    NonCanonical,
    /// With the page-fault error code.
    Page(u32),
}

impl Mmu {
    /// Guest-physical address of a linear one, for data; fills the TLB.
    pub(super) fn translate(&mut self, lin: u64, intent: Intent, user: bool) -> Result<u64, Miss> {
        let bank = if user { 0 } else { ENTRIES };
        let entry = &self.tlb.data[Tlb::slot(bank, lin)];
        if entry.read == lin & PAGE_MASK && (intent == Intent::Read || entry.info & info::WRITABLE != 0) {
            return Ok((entry.info & PAGE_MASK) | (lin & !PAGE_MASK));
        }
        self.counters.walks += 1;
        let info = self.walk(lin, intent, user)?;
        self.fill(bank, lin, info);
        Ok((info & PAGE_MASK) | (lin & !PAGE_MASK))
    }

    fn walk(&self, lin: u64, intent: Intent, user: bool) -> Result<u64, Miss> {
        if !self.paging.on {
            return Ok((lin & PAGE_MASK & self.paging.phys_mask) | info::GLOBAL | info::WRITABLE);
        }
        if !is_canonical(lin) {
            return Err(Miss::NonCanonical);
        }
        walk(&self.memory, &self.paging, lin, intent, user).map(|w| w.info).map_err(Miss::Page)
    }

    fn translate_fetch(&mut self, lin: u64, user: bool) -> Result<u64, Miss> {
        let bank = if user { 0 } else { ENTRIES };
        if let Some(info) = self.tlb.exec(bank, lin) {
            return Ok(info);
        }
        self.counters.walks += 1;
        let info = self.walk(lin, Intent::Fetch, user)?;
        self.tlb.fill_exec(bank, lin, info);
        Ok(info)
    }
}

impl Cpu {
    fn is_user(&self) -> bool {
        self.cpl == 3
    }

    fn memory_fault(&mut self, lin: u64, miss: Miss) -> Trap {
        match miss {
            Miss::NonCanonical => Trap::gp(0),
            Miss::Page(code) => {
                self.cr2 = lin;
                Trap::Exception { vector: 14, error: Some((code & 0xffff) as u16) }
            }
        }
    }

    fn translate(&mut self, lin: u64, intent: Intent, user: bool) -> Result<u64, Trap> {
        self.mmu.translate(lin, intent, user).map_err(|miss| self.memory_fault(lin, miss))
    }

    /// The page that an instruction byte is fetched from.
    pub(crate) fn fetch_page(&mut self, lin: u64) -> Result<CodePage, Trap> {
        let user = self.is_user();
        let found = self.mmu.translate_fetch(lin, user).map_err(|miss| self.memory_fault(lin, miss))?;
        let gpa = found & PAGE_MASK;
        match self.memory.page_index(gpa) {
            Some(page) => Ok(CodePage { page, gpa, global: found & info::GLOBAL != 0 }),
            None => Err(self.unsupported(format!(
                "the guest executes at guest-physical {gpa:#x} (linear {lin:#x}), which is not RAM"
            ))),
        }
    }

    /// Faults as a write of `len` bytes would; afterwards such a write cannot fault.
    pub(crate) fn probe_write(&mut self, lin: u64, len: u64) -> Result<(), Trap> {
        if len == 0 {
            return Ok(());
        }
        let user = self.is_user();
        self.translate(lin, Intent::Write, user)?;
        let pages = (lin.wrapping_add(len - 1) & PAGE_MASK).wrapping_sub(lin & PAGE_MASK) / 4096;
        for page in 1..=pages {
            self.translate((lin & PAGE_MASK).wrapping_add(page * 4096), Intent::Write, user)?;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(super) fn read_slow<T: Word>(&mut self, lin: u64) -> Result<T, Trap> {
        let user = self.is_user();
        let mut raw = [0; 16];
        self.load_bytes(lin, &mut raw[..T::SIZE], Intent::Read, user)?;
        Ok(T::from_le(&raw[..T::SIZE]))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn read_rmw_slow<T: Word>(&mut self, lin: u64) -> Result<T, Trap> {
        let user = self.is_user();
        let mut raw = [0; 16];
        self.load_bytes(lin, &mut raw[..T::SIZE], Intent::Write, user)?;
        Ok(T::from_le(&raw[..T::SIZE]))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn write_slow<T: Word>(&mut self, lin: u64, value: T) -> Result<(), Trap> {
        let user = self.is_user();
        let mut raw = [0; 16];
        value.to_le(&mut raw[..T::SIZE]);
        self.store_bytes(lin, &raw[..T::SIZE], user)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn atomic_slow<T: Word>(&mut self, lin: u64, mut f: impl FnMut(T) -> T) -> Result<T, Trap> {
        // The gate first, so that the hit path can do it atomically; code pages included, since
        // nothing decodes before this instruction is over.
        self.probe_write(lin, T::BYTES)?;
        self.open_for_write(lin);
        if let Some(old) = self.mmu.hit_update(lin, &mut f) {
            return Ok(old);
        }
        let split = (lin & !PAGE_MASK) + T::BYTES > 4096;
        if split && self.has_peers && !self.alone && !self.io.is_active() {
            return Err(Trap::Alone);
        }
        let old = self.read_rmw_slow(lin)?;
        self.write_slow(lin, f(old))?;
        Ok(old)
    }

    /// Passes guestmem's gate for the (translated, writable) page of `lin` when it is RAM, and lets
    /// further writes hit. Leaves the running block when the page held code.
    fn open_for_write(&mut self, lin: u64) {
        let bank = self.mmu.bank;
        let entry = &self.mmu.tlb.data[Tlb::slot(bank, lin)];
        if entry.read != lin & PAGE_MASK {
            return;
        }
        if let Some(page) = self.memory.page_index(entry.info & PAGE_MASK) {
            self.mmu.claim(page);
            let generation = self.memory.code_generation(page);
            self.memory.before_write(page);
            self.leave |= self.mmu.note_written(page, generation);
            self.mmu.tlb.grant_write(bank, lin);
        }
    }

    /// Makes the TLB hit for `size` bytes at `lin`, for translated code. False when it will not: they are
    /// on two pages, would fault, are not RAM, or are written to a page that holds code. Nothing but the
    /// TLB and the accessed and dirty bits has changed then.
    pub(crate) fn open_page(&mut self, lin: u64, size: u8, write: bool) -> bool {
        if lin & !PAGE_MASK > 4096 - u64::from(size) {
            return false;
        }
        let intent = if write { Intent::Write } else { Intent::Read };
        self.leave = false;
        if !self.try_open(lin, intent) || std::mem::take(&mut self.leave) {
            return false;
        }
        let entry = &self.mmu.tlb.data[Tlb::slot(self.mmu.bank, lin)];
        let tag = if write { entry.write } else { entry.read };
        tag == lin & PAGE_MASK
    }

    /// [`Cpu::open_for_write`] of a page that was not translated yet; false when it would fault or
    /// is not RAM. Used before bulk moves.
    pub(super) fn try_open(&mut self, lin: u64, intent: Intent) -> bool {
        let user = self.is_user();
        if self.mmu.translate(lin, intent, user).is_err() {
            return false;
        }
        if intent == Intent::Write {
            self.open_for_write(lin);
        }
        true
    }

    /// Reads bytes at a linear address: the general way. Both pages are translated before either is
    /// read.
    pub(crate) fn load_bytes(
        &mut self,
        lin: u64,
        to: &mut [u8],
        intent: Intent,
        user: bool,
    ) -> Result<(), Trap> {
        let (first, second) = self.two_pages(lin, to.len(), intent, user)?;
        let split = split_at(lin, to.len());
        let (low, high) = to.split_at_mut(split);
        self.load_phys(first, low)?;
        if let Some(second) = second {
            self.load_phys(second, high)?;
        }
        Ok(())
    }

    /// Writes bytes at a linear address: the general way. Both pages are translated before either is
    /// written.
    pub(crate) fn store_bytes(&mut self, lin: u64, from: &[u8], user: bool) -> Result<(), Trap> {
        let (first, second) = self.two_pages(lin, from.len(), Intent::Write, user)?;
        let (low, high) = from.split_at(split_at(lin, from.len()));
        self.store_phys(first, low)?;
        if let Some(second) = second {
            self.store_phys(second, high)?;
        }
        if user == self.is_user() {
            self.mmu.tlb.grant_write(self.mmu.bank, lin);
            if second.is_some() {
                self.mmu.tlb.grant_write(self.mmu.bank, lin.wrapping_add(from.len() as u64 - 1));
            }
        }
        Ok(())
    }

    fn two_pages(
        &mut self,
        lin: u64,
        len: usize,
        intent: Intent,
        user: bool,
    ) -> Result<(u64, Option<u64>), Trap> {
        debug_assert!((1..=4096).contains(&len));
        let first = self.translate(lin, intent, user)?;
        let end = lin.wrapping_add(len as u64 - 1);
        if end & PAGE_MASK == lin & PAGE_MASK {
            return Ok((first, None));
        }
        let second = self.translate(end & PAGE_MASK, intent, user)?;
        Ok((first, Some(second)))
    }

    fn load_phys(&mut self, gpa: u64, to: &mut [u8]) -> Result<(), Trap> {
        if self.memory.read(gpa, to).is_ok() {
            return Ok(());
        }
        let mut done = 0;
        while done < to.len() {
            let at = gpa + done as u64;
            let size = device_size(at, to.len() - done);
            let value = self.device_read(at, size)?.to_le_bytes();
            to[done..done + size].copy_from_slice(&value[..size]);
            done += size;
        }
        Ok(())
    }

    pub(super) fn store_phys(&mut self, gpa: u64, from: &[u8]) -> Result<(), Trap> {
        if let Some(page) = self.memory.page_index(gpa) {
            self.mmu.claim(page);
            let generation = self.memory.code_generation(page);
            if self.memory.write(gpa, from).is_ok() {
                self.leave |= self.mmu.note_written(page, generation);
                return Ok(());
            }
        }
        let mut done = 0;
        while done < from.len() {
            let at = gpa + done as u64;
            let size = device_size(at, from.len() - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&from[done..done + size]);
            self.device_write(at, size, u64::from_le_bytes(value))?;
            done += size;
        }
        Ok(())
    }

    fn device_read(&mut self, gpa: u64, size: usize) -> Result<u64, Trap> {
        if self.lapic.owns(gpa) {
            return Ok(self.lapic_mmio_read(gpa, size));
        }
        let request = || Stop::MmioRead { gpa, size: size as u8 };
        self.io.access(request).ok_or(Trap::Io)
    }

    fn device_write(&mut self, gpa: u64, size: usize, value: u64) -> Result<(), Trap> {
        if self.lapic.owns(gpa) {
            self.lapic_mmio_write(gpa, size, value);
            return Ok(());
        }
        let request = || Stop::MmioWrite { gpa, size: size as u8, value };
        self.io.access(request).map(|_| ()).ok_or(Trap::Io)
    }
}

/// Bytes of an access that lie in its first page.
fn split_at(lin: u64, len: usize) -> usize {
    len.min(4096 - (lin & !PAGE_MASK) as usize)
}

/// The next device access: the largest power of two up to 8 that is aligned and not too long.
fn device_size(gpa: u64, left: usize) -> usize {
    let aligned = 1 << gpa.trailing_zeros().min(3);
    let mut size = 8;
    while size > left || size > aligned {
        size /= 2;
    }
    size
}

/// Supervisor accesses that the processor makes itself: descriptor tables, TSS, interrupt stacks
/// (SDM vol. 3, 4.6: implicit supervisor-mode accesses).
impl Cpu {
    fn read_sys<const N: usize>(&mut self, lin: u64) -> Result<[u8; N], Trap> {
        let mut raw = [0; N];
        self.load_bytes(lin, &mut raw, Intent::Read, false)?;
        Ok(raw)
    }

    pub(crate) fn read_sys_u16(&mut self, lin: u64) -> Result<u16, Trap> {
        self.read_sys(lin).map(u16::from_le_bytes)
    }

    pub(crate) fn read_sys_u32(&mut self, lin: u64) -> Result<u32, Trap> {
        self.read_sys(lin).map(u32::from_le_bytes)
    }

    pub(crate) fn read_sys_u64(&mut self, lin: u64) -> Result<u64, Trap> {
        self.read_sys(lin).map(u64::from_le_bytes)
    }

    pub(crate) fn write_sys_u8(&mut self, lin: u64, value: u8) -> Result<(), Trap> {
        self.store_bytes(lin, &[value], false)
    }
}
