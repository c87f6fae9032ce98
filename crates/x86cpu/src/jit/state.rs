//! What translated code and the rest of the CPU hand to each other.

use crate::mmu::Table;

/// Entries of the jump cache of one privilege.
pub(crate) const JUMPS: usize = 8192;

/// "Virtual address `rip` is translated at `code`."
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct JumpEntry {
    pub rip: u64,
    /// Host address.
    pub code: u64,
}

/// Empties an entry of a jump cache: it has an address that belongs to another slot. (An address that no instruction
/// is at would not do: a guest may branch to any.) The addresses 0 and 2 belong to the slots 0 and 1.
pub(crate) fn clear_jump(bank: &mut [JumpEntry], slot: u16) {
    if let Some(entry) = bank.get_mut(usize::from(slot)) {
        *entry = JumpEntry { rip: if slot == 0 { 2 } else { 0 }, code: 0 };
    }
}

/// Jump caches: user, supervisor. Emptied when the map epoch of the privilege moves. Nothing at all before the first
/// translation: most of the start of a machine, and of the life of an idle one.
pub(crate) type Jumps = Option<[Table<JumpEntry>; 2]>;

pub(crate) fn empty_jumps() -> [Table<JumpEntry>; 2] {
    std::array::from_fn(|_| {
        let mut bank = Table::within_reach(JUMPS);
        clear_jump(&mut bank, 0);
        bank
    })
}

/// The state of translated code that is not the guest's. It lies right below `Cpu::gpr`, within reach
/// of one-byte displacements from the state pointer.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct JitState {
    /// Instructions that may still run; negative: leave.
    pub budget: i64,
    /// Operands of the operation that the flags follow from (see `cc`).
    pub a: u64,
    pub b: u64,
    pub c: u64,
    /// Operand of the operation that changed some of them later.
    pub r: u64,
    /// That operation, and the later one.
    pub op: u8,
    pub over: u8,
    /// Guest XMM registers and MXCSR are in the host's.
    pub live: u8,
    /// They may be: SSE is enabled and all its exceptions are masked.
    pub sse_ok: u8,
    /// MXCSR of Rust code.
    pub host_mxcsr: u32,
    /// A value that has to survive a TLB look-up.
    pub tmp: u64,
    pad: u32,
    /// Where the guest's x87 registers are, by [`x87`].
    pub x87: u8,
    /// They may be in the host's: the x87 is enabled and all its exceptions are masked.
    pub x87_ok: u8,
    pad2: u16,
    /// Address of the running `CodeCache`, for the helpers.
    pub code: usize,
    pub tmp2: u64,
    /// The address of a look-up that missed.
    pub lin: u64,
    /// Address of the TLB's first entry of the running privilege.
    pub tlb: usize,
    /// Address of the jump cache of the running privilege.
    pub jumps: usize,
    /// Number of the site or the exit that a helper was called for.
    pub site: u64,
    /// Host address of the translation that a helper has found.
    pub target: u64,
    /// Linear address of the page that the running translation begins in: its own addresses are relative to it.
    pub page: u64,
}

/// Where the guest's x87 state is.
pub(crate) mod x87 {
    /// In `Cpu::fpu`.
    pub const HOME: u8 = 0;
    /// In the host's registers.
    pub const LIVE: u8 = 1;
    /// In [`super::X87Image`], as FNSAVE left it.
    pub const SAVED: u8 = 2;
}

/// What FNSAVE writes and FRSTOR reads in 64-bit mode (SDM vol. 1, figure 8-9).
#[derive(Debug)]
#[repr(C, align(8))]
pub(crate) struct X87Image(pub [u8; 108]);

impl Default for X87Image {
    fn default() -> Self {
        Self([0; 108])
    }
}

const _: () = assert!(size_of::<JitState>() == 128);
