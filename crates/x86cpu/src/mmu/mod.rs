//! Memory as instructions see it: translation, permission, the way to the bytes.
//!
//! Problem: every guest access goes through paging and through guestmem's write gate, and most of
//! the CPU's time goes here.
//!
//! Strategy: `tlb` makes a hit an index, a compare and an add; `access` is the hit path, inlined
//! into the instructions; `slow` is everything else (misses, page crossings, devices, the local
//! APIC's page); `walk` reads the page tables; `bulk` moves pages for string instructions.
//!
//! Invariants: no host pointer leaves this module; a store reaches RAM only through guestmem's gate
//! or through a write tag, which says that the gate was passed (see `tlb`).

#![allow(unsafe_code)] // Opted in for the TLB's hit path (DESIGN.md §4); only `raw` uses it.

mod access;
mod bulk;
mod raw;
mod slow;
mod tlb;
mod walk;

use std::mem::offset_of;
use std::sync::Arc;

use arch::x86_64::regs::{Cr0, Cr4, Efer};
use guestmem::GuestMemory;

pub(crate) use self::raw::Table;
use self::tlb::{BANKS, ENTRIES, Entry, Tlb};
pub(crate) use self::tlb::{STACK_LIMITS, StackPage};
pub(crate) use self::walk::Intent;
use crate::peers::Peers;

const PAGE_SHIFT: u32 = 12;
const PAGE_MASK: u64 = !0xfff;

/// A page that instructions can be fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodePage {
    /// guestmem's page index.
    pub(crate) page: usize,
    /// Guest-physical address of the page.
    pub(crate) gpa: u64,
    /// The translation survives CR3 loads.
    pub(crate) global: bool,
}

/// What the control registers say about paging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Paging {
    on: bool,
    cr3: u64,
    wp: bool,
    pge: bool,
    smep: bool,
    smap: bool,
    nxe: bool,
    /// 1 GiB pages exist (CPUID 0x80000001 EDX bit 26).
    gb_pages: bool,
    /// Address bits below MAXPHYADDR.
    phys_mask: u64,
}

/// One vCPU's memory management unit.
pub(crate) struct Mmu {
    memory: GuestMemory,
    tlb: Tlb,
    /// First slot of the bank that the running privilege uses.
    bank: usize,
    paging: Paging,
    /// The write epoch that the write tags belong to.
    write_epoch: u32,
    /// By bank: moves whenever a translation that instructions were fetched by may have changed.
    epochs: [u32; BANKS],
    /// The one of the running privilege.
    pub(crate) map_epoch: u32,
    pub(crate) counters: MmuCounters,
    /// Pages that held code when this vCPU wrote to them: as many as the code epoch moved for it, or too many to tell.
    pub(crate) overwritten: Vec<u32>,
    /// Where other vCPUs write, too.
    shared: Option<Shared>,
}

/// What an MMU did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuCounters {
    /// Walks of the page tables, for data and for code.
    pub walks: u64,
    /// Loads of CR3.
    pub switches: u64,
    /// Times that all translations were dropped, and that one was (INVLPG).
    pub flushes: u64,
    pub page_flushes: u64,
    /// Times that remembered jumps became void, with one of the above.
    pub epochs: u64,
}

/// Guest memory is written by others, too (see [`crate::peers`]).
struct Shared {
    id: u32,
    peers: Arc<Peers>,
    /// Pages that this vCPU claims.
    claims: Vec<u32>,
}

/// See [`Mmu::executing`].
pub(crate) struct Executing {
    id: u32,
    peers: Arc<Peers>,
}

impl Drop for Executing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.peers.leave(self.id, 0);
        }
    }
}

/// Pages of code that were written and are told apart.
pub(crate) const MAX_OVERWRITTEN: usize = 64;

/// Claims after which all are dropped.
const MAX_CLAIMS: usize = 8192;

impl std::fmt::Debug for Mmu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mmu({:?})", self.paging)
    }
}

/// log2 of a TLB entry's size and the number of entries of a privilege's bank, for translated code.
pub(crate) const TLB_SHAPE: (u8, u32) = (size_of::<Entry>().trailing_zeros() as u8, ENTRIES as u32);

/// Bytes of a privilege's bank.
pub(crate) const TLB_BYTES: usize = ENTRIES * size_of::<Entry>();

/// Offsets in a TLB entry of the read tag, the write tag, the host page and the rest.
pub(crate) const TLB_FIELDS: (usize, usize, usize, usize) =
    (offset_of!(Entry, read), offset_of!(Entry, write), offset_of!(Entry, host), offset_of!(Entry, info));

/// Offset in an [`Mmu`] of the stack's pages, user and supervisor.
pub(crate) const STACK_PAGES: usize = offset_of!(Mmu, tlb) + offset_of!(Tlb, stack);

/// Whether bits 63:47 are all equal (SDM vol. 1, 3.3.7.1).
#[inline]
pub(crate) fn is_canonical(lin: u64) -> bool {
    ((lin as i64) << 16 >> 16) as u64 == lin
}

/// The first entry of a privilege in the TLB.
fn bank_of(user: bool) -> usize {
    if user { 0 } else { ENTRIES }
}

impl Mmu {
    pub(crate) fn new(memory: &GuestMemory, id: u32, peers: Option<Arc<Peers>>) -> Self {
        Self {
            memory: memory.clone(),
            tlb: Tlb::new(),
            bank: bank_of(false),
            paging: Paging { phys_mask: (1 << 40) - 1, ..Paging::default() },
            write_epoch: memory.write_epoch(),
            epochs: [0; BANKS],
            map_epoch: 0,
            counters: MmuCounters::default(),
            overwritten: Vec::new(),
            shared: peers.map(|peers| Shared { id, peers, claims: Vec::new() }),
        }
    }

    /// What CPUID says about addresses: MAXPHYADDR in bits (32 to 52) and 1 GiB pages.
    pub(crate) fn set_features(&mut self, phys_bits: u32, gb_pages: bool) {
        self.paging.phys_mask = (1 << phys_bits.clamp(32, 52)) - 1;
        self.paging.gb_pages = gb_pages;
        self.flush_all();
    }

    /// Follows the privilege and the control registers; flushes when paging itself changed.
    #[inline]
    pub(crate) fn mode_changed(&mut self, cpl: u8, cr0: u64, cr4: u64, efer: u64) {
        self.bank = bank_of(cpl == 3);
        self.map_epoch = self.epochs[self.bank / ENTRIES];
        let has = |word: u64, bit: u64| word & bit != 0;
        let paging = Paging {
            on: has(cr0, Cr0::PG.bits()),
            wp: has(cr0, Cr0::WP.bits()),
            pge: has(cr4, Cr4::PGE.bits()),
            smep: has(cr4, Cr4::SMEP.bits()),
            smap: has(cr4, Cr4::SMAP.bits()),
            nxe: has(efer, Efer::NXE.bits()),
            ..self.paging
        };
        if paging != self.paging {
            self.paging = paging;
            self.flush_all();
        }
    }

    /// Remembered jumps of a bank's privilege are void.
    fn move_epoch(&mut self, bank: usize) {
        self.counters.epochs += 1;
        self.epochs[bank] = self.epochs[bank].wrapping_add(1);
        self.tlb.fetched[bank].clear();
        self.map_epoch = self.epochs[self.bank / ENTRIES];
    }

    /// The highest map epoch of either privilege so far.
    pub(crate) fn newest_epoch(&self) -> u32 {
        self.epochs.into_iter().max().unwrap_or(0)
    }

    /// Goes on with map epochs from `first`.
    pub(crate) fn begin_epochs(&mut self, first: u32) {
        self.epochs = self.epochs.map(|epoch| epoch.wrapping_add(first));
        self.map_epoch = self.epochs[self.bank / ENTRIES];
    }

    /// Loads CR3; what is not global is forgotten.
    pub(crate) fn set_cr3(&mut self, cr3: u64) {
        self.counters.switches += 1;
        self.paging.cr3 = cr3;
        self.tlb.flush_local();
        for bank in 0..BANKS {
            if !self.tlb.fetched[bank].all_global {
                self.move_epoch(bank);
            }
        }
    }

    /// Forgets every translation.
    pub(crate) fn flush_all(&mut self) {
        self.counters.flushes += 1;
        self.tlb.flush_all();
        (0..BANKS).for_each(|bank| self.move_epoch(bank));
    }

    /// Gives the memory of translations back; they are found again when they are asked for. What was remembered of jumps
    /// holds: no translation has changed.
    pub(crate) fn give_back(&mut self) {
        self.tlb.give_back();
    }

    /// Forgets the translation of one address (INVLPG).
    pub(crate) fn flush_page(&mut self, lin: u64) {
        self.counters.page_flushes += 1;
        self.tlb.flush_page(lin);
        for bank in 0..BANKS {
            if self.tlb.fetched[bank].may_hold(lin) {
                self.move_epoch(bank);
            }
        }
    }

    /// Address of the first TLB entry of the running privilege, for translated code.
    pub(crate) fn tlb_bank(&mut self) -> usize {
        self.tlb_from(self.bank)
    }

    /// The same of a privilege, whichever runs.
    pub(crate) fn tlb_bank_of(&mut self, user: bool) -> usize {
        self.tlb_from(bank_of(user))
    }

    fn tlb_from(&mut self, bank: usize) -> usize {
        self.tlb.data[bank..].as_mut_ptr().expose_provenance()
    }

    /// Physical address bits that exist.
    pub(crate) fn phys_mask(&self) -> u64 {
        self.paging.phys_mask
    }

    /// Drops write tags when somebody moved the write epoch.
    #[inline(always)]
    pub(crate) fn sync(&mut self) {
        let epoch = self.memory.write_epoch();
        if epoch != self.write_epoch {
            self.epoch_moved(epoch);
        }
    }

    #[cold]
    #[inline(never)]
    fn epoch_moved(&mut self, epoch: u32) {
        self.write_epoch = epoch;
        self.tlb.drop_writers();
        if let Some(shared) = &mut self.shared {
            for page in shared.claims.drain(..) {
                self.memory.drop_claim(page as usize, shared.id);
            }
            shared.peers.enter(shared.id, epoch);
        }
    }

    /// To be called before guestmem's gate is passed for a page: others may have to wait for the write.
    #[inline]
    fn claim(&mut self, page: usize) {
        let Some(shared) = &mut self.shared else { return };
        if self.memory.claim_write(page, shared.id) {
            shared.claims.push(page as u32);
            if shared.claims.len() == MAX_CLAIMS {
                // Not at once: what is being written now counts on its claim.
                self.memory.move_write_epoch();
            }
        }
    }

    /// A page was written; `before`: its code generation before. Whether it held code.
    fn note_written(&mut self, page: usize, before: u32) -> bool {
        let held = self.memory.code_generation(page) != before;
        if held && self.overwritten.len() <= MAX_OVERWRITTEN {
            self.overwritten.push(page as u32);
        }
        held
    }

    /// Between this and [`Mmu::leave`] the vCPU executes.
    pub(crate) fn enter(&mut self) {
        if let Some(shared) = &self.shared {
            shared.peers.enter(shared.id, self.write_epoch);
            self.sync();
        }
    }

    /// To be kept while the vCPU executes: one that panics does not any more, and nobody waits for it.
    pub(crate) fn executing(&self) -> Option<Executing> {
        self.shared.as_ref().map(|shared| Executing { id: shared.id, peers: Arc::clone(&shared.peers) })
    }

    pub(crate) fn leave(&self) {
        if let Some(shared) = &self.shared {
            shared.peers.leave(shared.id, self.write_epoch);
        }
    }

    /// [`GuestMemory::watch_code`] by this vCPU itself: only the page's own write tags are dropped
    /// here, unless others moved the epoch meanwhile.
    pub(crate) fn watch_code(&mut self, page: usize) -> u32 {
        self.sync();
        if let Some(shared) = &self.shared {
            let (generation, new, writers) = self.memory.watch_claimed_code(page);
            let others = writers & !(1 << shared.id);
            if others != 0 {
                let peers = Arc::clone(&shared.peers);
                self.leave();
                peers.wait_for(others, &self.memory);
                self.enter();
            }
            // Not only then: who has just marked it may not have come to telling this vCPU.
            if new || others != writers {
                self.tlb.drop_writers_of(self.memory.page_gpa(page));
            }
            return generation;
        }
        let generation = self.memory.watch_code(page);
        let epoch = self.memory.write_epoch();
        if epoch == self.write_epoch.wrapping_add(1) {
            self.write_epoch = epoch;
            self.tlb.drop_writers_of(self.memory.page_gpa(page));
        } else {
            self.sync();
        }
        generation
    }
}
