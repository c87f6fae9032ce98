//! Guest architecture facts, independent of any engine, device or host.
//!
//! Nothing here is the host's: the guest's architecture is never the host's `cfg(target_arch)`.
#![forbid(unsafe_code)]

pub mod x86_64;
