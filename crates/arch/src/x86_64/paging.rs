//! Page-table words for 4-level paging (SDM vol. 3, 4.5).

/// Bits of an entry at any level.
pub mod pte {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    /// Page size: a 2 MiB (level 2) or 1 GiB (level 3) page.
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Physical address bits 51:12, before MAXPHYADDR is applied.
    pub const ADDR: u64 = 0x000f_ffff_ffff_f000;
}

/// Page-fault error code (SDM vol. 3, 4.7).
pub mod fault {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// log2 of the page size in bytes.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
