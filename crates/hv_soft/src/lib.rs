//! The soft engine behind the seam: `hv::Partition` and `hv::Vcpu` over `x86cpu`.
//!
//! vCPUs of one partition take turns (docs/adr/0002): one executes at a time, handed on fairly by the
//! [`baton`]; HLT waits without it. Way (a) through the house: `vcpu.rs` turns `x86cpu::Stop`s into
//! `hv::Exit`s, next is `machine/vcpu_thread.rs`.
#![forbid(unsafe_code)]

mod baton;
mod partition;
mod vcpu;

pub use partition::SoftPartition;
