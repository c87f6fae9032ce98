//! The engine seam: what executes guest instructions, behind two traits.
//!
//! Nothing above this crate knows which engine runs. Way (a) through the house starts here:
//! `hv_*/vcpu.rs run() -> Exit<'_>` → `machine/vcpu_thread.rs` → `bus` → `devices/<d>/regs.rs`.
#![forbid(unsafe_code)]

mod error;
mod exit;
mod partition;
mod stops;
mod vcpu;
mod watch;

pub use arch::x86_64::cpuid::CpuidLeaf;
pub use arch::x86_64::hot::{CodeMode, HotBlock};
pub use arch::x86_64::state::VcpuState;
pub use error::Error;
pub use exit::Exit;
pub use partition::{ClockState, CodeSource, EngineKind, HotSource, Msi, Partition, PartitionConfig, Writes};
pub use stops::Stops;
pub use vcpu::{Counters, Kick, Learnt, Vcpu};
pub use watch::{Look, See, Watch};
