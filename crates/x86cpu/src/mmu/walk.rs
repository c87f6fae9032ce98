//! The page walk: 4-level paging (SDM vol. 3, 4.5), permissions (4.6), fault codes (4.7), accessed
//! and dirty bits (4.8).

use arch::x86_64::paging::{fault, pte};
use guestmem::GuestMemory;

use super::tlb::info;
use super::{PAGE_MASK, Paging};

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    Fetch,
}

/// A successful walk.
pub(super) struct Walked {
    /// Guest-physical address of the 4 KiB page and [`info`] bits.
    pub(super) info: u64,
}

/// Entries met on the way, from the top: address and content.
type Path = [(u64, u64); 4];

/// Physical address bits above MAXPHYADDR, within an entry's address field.
fn reserved_address(paging: &Paging) -> u64 {
    pte::ADDR & !paging.phys_mask
}

/// An entry, atomically. Tables outside of RAM read as all ones, as an empty bus would answer: the
/// reserved bits then fault.
fn load(memory: &GuestMemory, gpa: u64) -> u64 {
    memory.read_le::<u64>(gpa).unwrap_or(u64::MAX)
}

/// Translates a canonical address. `user`: the access counts as a user-mode access.
///
/// # Errors
/// The page-fault error code.
pub(super) fn walk(
    memory: &GuestMemory,
    paging: &Paging,
    lin: u64,
    intent: Intent,
    user: bool,
) -> Result<Walked, u32> {
    loop {
        let mut path: Path = [(0, 0); 4];
        let (depth, shift) = descend(memory, paging, lin, &mut path)
            .map_err(|code| code | access_code(paging, intent, user))?;
        let path = &mut path[..depth];
        let rights = Rights::of(path);
        if !rights.allow(paging, intent, user) {
            return Err(fault::PRESENT | access_code(paging, intent, user));
        }
        if mark(memory, path, intent == Intent::Write) {
            return Ok(Walked { info: describe(paging, path, shift, &rights, lin) });
        }
    }
}

/// Error code bits that come from the access itself (SDM vol. 3, 4.7).
fn access_code(paging: &Paging, intent: Intent, user: bool) -> u32 {
    let mut code = 0;
    if intent == Intent::Write {
        code |= fault::WRITE;
    }
    if user {
        code |= fault::USER;
    }
    if intent == Intent::Fetch && (paging.nxe || paging.smep) {
        code |= fault::FETCH;
    }
    code
}

/// Follows the tables to the leaf; gives the number of entries met and log2 of the page size.
fn descend(memory: &GuestMemory, paging: &Paging, lin: u64, path: &mut Path) -> Result<(usize, u32), u32> {
    let mut table = paging.cr3 & pte::ADDR & paging.phys_mask;
    for (depth, slot) in path.iter_mut().enumerate() {
        let shift = 39 - 9 * depth as u32;
        let at = table | ((lin >> shift) & 0x1ff) << 3;
        let entry = load(memory, at);
        if entry & pte::PRESENT == 0 {
            return Err(0);
        }
        let large = entry & pte::LARGE != 0;
        let leaf = depth == 3 || (large && depth > 0);
        let mut reserved = reserved_address(paging);
        if !paging.nxe {
            reserved |= pte::NX;
        }
        if depth == 0 || (depth == 1 && !paging.gb_pages) {
            reserved |= pte::LARGE;
        } else if leaf && depth < 3 {
            // Bit 12 is PAT there; the address bits below the page size must be zero.
            reserved |= ((1 << shift) - 1) & PAGE_MASK & !(1 << 12);
        }
        if entry & reserved != 0 {
            return Err(fault::PRESENT | fault::RESERVED);
        }
        *slot = (at, entry);
        if leaf {
            return Ok((depth + 1, shift));
        }
        table = entry & pte::ADDR;
    }
    Err(fault::PRESENT | fault::RESERVED)
}

/// The rights of all levels together.
struct Rights {
    user: bool,
    write: bool,
    execute: bool,
}

impl Rights {
    fn of(path: &[(u64, u64)]) -> Self {
        let all = path.iter().fold(u64::MAX, |a, (_, e)| a & e);
        let any = path.iter().fold(0, |a, (_, e)| a | e);
        Self { user: all & pte::USER != 0, write: all & pte::WRITE != 0, execute: any & pte::NX == 0 }
    }

    fn allow(&self, paging: &Paging, intent: Intent, user: bool) -> bool {
        if user && !self.user {
            return false;
        }
        match intent {
            Intent::Fetch => self.execute && (user || !self.user || !paging.smep),
            Intent::Read => user || !self.user || !paging.smap,
            Intent::Write => (user || !self.user || !paging.smap) && (self.write || (!user && !paging.wp)),
        }
    }
}

/// Sets the accessed bits, and the dirty bit for a write; false when the tables changed meanwhile.
fn mark(memory: &GuestMemory, path: &mut [(u64, u64)], write: bool) -> bool {
    let last = path.len() - 1;
    for (i, (at, entry)) in path.iter_mut().enumerate() {
        let dirty = if i == last && write { pte::DIRTY } else { 0 };
        let wanted = *entry | pte::ACCESSED | dirty;
        if wanted == *entry {
            continue;
        }
        match memory.compare_exchange_u64(*at, *entry, wanted) {
            Ok(Ok(_)) => *entry = wanted,
            Ok(Err(_)) => return false,
            // Not RAM: `load` gave all ones, which never gets here.
            Err(_) => return false,
        }
    }
    true
}

fn describe(paging: &Paging, path: &[(u64, u64)], shift: u32, rights: &Rights, lin: u64) -> u64 {
    let leaf = path[path.len() - 1].1;
    let inside = (1u64 << shift) - 1;
    let mut out = ((leaf & pte::ADDR & !inside) | (lin & inside)) & PAGE_MASK;
    if leaf & pte::GLOBAL != 0 && paging.pge {
        out |= info::GLOBAL;
    }
    // Without WP the supervisor writes everywhere, so a user's page may be dirty but not writable
    // for him: the entry is in the bank of who asked, and `rights` are judged for him.
    if leaf & pte::DIRTY != 0 {
        out |= if rights.write { info::WRITABLE } else { 0 };
    }
    if shift > 12 {
        out |= info::LARGE;
    }
    if shift == 30 {
        out |= info::HUGE;
    }
    out
}
