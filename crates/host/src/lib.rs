//! The host's operating system behind names that do not change between hosts: mappings, events,
//! timers, vCPU kick, code memory. `sys/{linux,macos}/` hold the same file names.

pub mod sys;

pub use sys::mapping::Mapping;
