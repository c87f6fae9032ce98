//! The I/O interrupt controller: 24 pins, each turned into an interrupt message.
//!
//! Facts: Intel 82093AA data sheet (May 1996); the EOI register is that of version 0x20 parts.
//! Messages are those of SDM vol. 3, 11.11, with the destination's bits 8 to 14 where hypervisors
//! agree to have them (redirection entry 49 to 55, message address 5 to 11).
//!
//! An edge on a masked pin is kept and sent when the pin is unmasked: a driver that masks a pin
//! for a moment must not lose the only interrupt that it will get.

mod regs;
mod saved_state;
#[cfg(test)]
mod tests;

pub use regs::{IoApic, Message, MsiSink, PINS, SIZE};
pub use saved_state::IoApicState;
