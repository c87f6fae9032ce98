//! The soft engine behind the seam: `hv::Partition` and `hv::Vcpu` over `x86cpu`.
//!
//! vCPUs of one partition execute at once (docs/adr/0086), or take turns, handed on fairly by the
//! [`baton`]; HLT waits outside of both. Way (a) through the house: `vcpu.rs` turns `x86cpu::Stop`s into
//! `hv::Exit`s, next is `machine/vcpu_thread.rs`.
#![forbid(unsafe_code)]

mod baton;
mod counters;
mod foretold;
mod kept;
mod partition;
mod rounds;
mod vcpu;

pub use partition::SoftPartition;
