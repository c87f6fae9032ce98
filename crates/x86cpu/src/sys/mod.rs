//! The privileged half: descriptors, interrupts, control registers, MSRs, ports, events.

mod apic;
mod control;
mod descriptor;
mod exception;
mod far;
mod ident;
mod interrupt;
mod msr;
mod poll;
mod port;
mod segment;
mod syscall;

pub(crate) use self::control::CR0_KNOWN;
pub(crate) use self::msr::{EFER_KNOWN, pat_is_valid};
