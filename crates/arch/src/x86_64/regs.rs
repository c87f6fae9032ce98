//! Register numbers and control-register bits (SDM vol. 3, 2.5; vol. 2, 2.1.5).

use bitflags::bitflags;

/// General-purpose registers in instruction-encoding order; indexes [`super::state::VcpuState::gpr`].
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// Segment registers in instruction-encoding order; indexes [`super::state::VcpuState::seg`].
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

bitflags! {
    /// CR0 (SDM vol. 3, 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        const PE = 1; const MP = 1 << 1; const EM = 1 << 2; const TS = 1 << 3; const ET = 1 << 4;
        const NE = 1 << 5; const WP = 1 << 16; const AM = 1 << 18; const NW = 1 << 29;
        const CD = 1 << 30; const PG = 1 << 31;
    }
    /// CR4 (SDM vol. 3, 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        const VME = 1; const PVI = 1 << 1; const TSD = 1 << 2; const DE = 1 << 3; const PSE = 1 << 4;
        const PAE = 1 << 5; const MCE = 1 << 6; const PGE = 1 << 7; const PCE = 1 << 8;
        const OSFXSR = 1 << 9; const OSXMMEXCPT = 1 << 10; const UMIP = 1 << 11; const LA57 = 1 << 12;
        const FSGSBASE = 1 << 16; const PCIDE = 1 << 17; const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20; const SMAP = 1 << 21; const PKE = 1 << 22;
    }
    /// IA32_EFER (SDM vol. 3, 2.2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        const SCE = 1; const LME = 1 << 8; const LMA = 1 << 10; const NXE = 1 << 11;
    }
    /// RFLAGS (SDM vol. 1, 3.4.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rflags: u64 {
        const CF = 1; const ONE = 1 << 1; const PF = 1 << 2; const AF = 1 << 4; const ZF = 1 << 6;
        const SF = 1 << 7; const TF = 1 << 8; const IF = 1 << 9; const DF = 1 << 10; const OF = 1 << 11;
        const IOPL = 3 << 12; const NT = 1 << 14; const RF = 1 << 16; const VM = 1 << 17;
        const AC = 1 << 18; const VIF = 1 << 19; const VIP = 1 << 20; const ID = 1 << 21;
    }
}
