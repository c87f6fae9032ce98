//! The half of the engine benchmark that does the work: one static program that is PID 1 in a guest,
//! and the same program in a chroot of the same root natively.
//!
//! `devices.rs` is what the benchmarks of networks and folders call, `hold.rs` a service that one of resumes uses.
//!
//! `table.rs` lists the workloads; `micro/` holds the small ones, `programs.rs` the Debian programs;
//! `serve.rs` does what lines on a channel ask for; `boot.rs` is PID 1. Next: crate `engine`, which asks.

#[cfg(target_os = "linux")]
pub mod boot;
pub mod devices;
#[cfg(target_os = "linux")]
pub mod hold;
pub mod micro;
pub mod programs;
pub mod protocol;
pub mod serve;
mod sys;
pub mod table;
