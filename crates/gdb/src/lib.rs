//! A debugger's stub: gdb's remote protocol on a TCP port, each vCPU a thread.
//!
//! Problem: a stripped guest has nothing to debug itself with, and its kernel cannot. Strategy: `gdbstub` speaks the
//! protocol, [`target`] answers it from the machine's vCPUs and memory through the engine seam, so that every engine
//! can be debugged. Nothing is patched into guest memory: breakpoints are addresses that the engine looks for.
//! Invariants: the machine stands while gdb asks; when gdb goes, no breakpoint stays and the machine runs on. Who
//! reaches the port governs the guest: it is on loopback unless its user says otherwise.
//! Next: `machine/debug.rs`.
#![forbid(unsafe_code)]

mod registers;
mod serve;
mod target;

pub use serve::serve;
