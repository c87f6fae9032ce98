//! Address ranges and what answers at them.
//!
//! Way (a) through the house: `machine/vcpu_thread.rs` → [`Bus`] → `devices/<d>/regs.rs`. A device
//! is a [`BusDevice`]; it interrupts through an [`IrqLine`] that it was given, and is frozen and
//! thawed through [`Saved`].
//!
//! Invariants: ranges never overlap; the guest always gets an answer (all ones where nobody or
//! nothing sensible is); a device returns [`IoResult`] and never panics on what the guest does.
#![forbid(unsafe_code)]

mod io;
mod irq;
mod map;
mod saved;
mod sync;

pub use io::{BusDevice, IoError, IoResult};
pub use irq::{CountingLine, IrqLine, NoLine};
pub use map::{Bus, BusStats, InsertError};
pub use saved::{RestoreError, Saved};
pub use sync::lock;
