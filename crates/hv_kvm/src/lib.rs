//! The KVM engine behind the seam: `hv::Partition` and `hv::Vcpu` over `/dev/kvm`.
//!
//! Problem: the guest must see the same machine on every host and engine, restored in milliseconds,
//! and some hosts' KVM is a poor one (DESIGN.md §9).
//!
//! Strategy: memory slots first, then a split interrupt controller (the local APICs are KVM's, the
//! IOAPIC is ours); `state` translates between KVM's structures and the neutral [`hv::VcpuState`];
//! `assist` hands an instruction that KVM refuses to `x86cpu`, `entry` finishes system calls where KVM does not; `probe` runs real guest code to find out
//! what this host's KVM is worth before anything depends on it.
//!
//! Invariants: only `vcpu` enters the guest; only `abi`, `events`, `kick`, `vcpu` and `vm` hold `unsafe`.
//! Way (a) through the house: `vcpu.rs` turns KVM's exits into `hv::Exit`s, next is
//! `machine/vcpu_thread.rs`.

mod abi;
mod assist;
mod convert;
mod entry;
mod events;
mod kick;
mod probe;
mod remembered;
mod report;
mod state;
mod vcpu;
mod vm;

pub mod selftest;
pub mod tiny;

pub use probe::{host_tsc_khz, works_well};
pub use remembered::remember_in;
pub use report::{Fact, KvmReport, report};
pub use vm::{KvmPartition, same_rate};
