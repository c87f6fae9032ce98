//! The engine-neutral state of one vCPU: what a snapshot keeps and every engine can load.
//!
//! It is a plain value without engine-specific encodings. Order of restoring it is the engine's
//! (DESIGN.md §3): CPUID, control and segment registers with the APIC base, TSC, other MSRs, LAPIC,
//! deadline, pending events, run state last. A change here is a format change: bump
//! [`VCPU_STATE_VERSION`].

use serde::{Deserialize, Serialize};

/// Version of [`VcpuState`]'s layout and meaning.
pub const VCPU_STATE_VERSION: u32 = 1;

/// A segment register with its hidden part (SDM vol. 3, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// Effective limit in bytes (already scaled by G).
    pub limit: u32,
    /// Access rights as in descriptor bits 40-55, shifted down: type 3:0, S 4, DPL 6:5, P 7,
    /// AVL 12, L 13, D/B 14, G 15 (the layout that LAR and VMX use). Bit 16: unusable (null).
    pub attr: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReg {
    pub base: u64,
    pub limit: u16,
}

/// MSRs that a snapshot carries by name. FS and GS bases live in the segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub apic_base: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    /// KVM_SYSTEM_TIME_NEW: guest-physical address of the pvclock page | 1 when enabled.
    pub kvm_system_time: u64,
    /// KVM_WALL_CLOCK_NEW as last written.
    pub kvm_wall_clock: u64,
}

/// What is being or will be delivered (SDM vol. 3, 6.7 to 6.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// An exception whose delivery had begun: vector, error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// An external interrupt that was taken from the LAPIC and not yet delivered.
    pub interrupt: Option<u8>,
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// Shadow of STI (interrupts inhibited for one instruction).
    pub sti_shadow: bool,
    /// Shadow of MOV SS / POP SS.
    pub movss_shadow: bool,
}

/// Run state of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    #[default]
    Runnable,
    /// HLT executed, waiting for an interrupt.
    Halted,
    /// An application processor waiting for INIT.
    Uninitialized,
    /// INIT received, waiting for a start-up IPI.
    WaitForSipi,
}

/// The local APIC's registers (SDM vol. 3, 11.4.1): byte i of the xAPIC register page at offset i,
/// also in x2APIC mode, with the 32-bit x2APIC id at offset 0x20 in that mode (as KVM_GET_LAPIC
/// with KVM_CAP_X2APIC_API returns it).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// 1024 bytes.
    pub regs: Vec<u8>,
    /// TSC-deadline timer: guest TSC ticks that remain, `None` when disarmed. Re-armed relative to
    /// the moment of resuming.
    pub deadline_ticks: Option<u64>,
}

/// One vCPU, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// In encoding order: see [`super::regs::gpr`].
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// In encoding order: see [`super::regs::seg`].
    pub seg: [Segment; 6],
    pub tr: Segment,
    pub ldtr: Segment,
    pub gdtr: TableReg,
    pub idtr: TableReg,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    /// DR0-DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// FXSAVE64 image, 512 bytes (SDM vol. 1, 10.5.1), MXCSR_MASK 0xffff.
    pub fxsave: Vec<u8>,
    pub msrs: Msrs,
    /// Guest TSC at the moment of saving.
    pub tsc: u64,
    pub lapic: LapicState,
    pub events: Events,
    pub mp_state: MpState,
}
