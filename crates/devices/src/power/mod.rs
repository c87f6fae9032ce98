//! The registers with which a hardware-reduced ACPI guest powers off and resets
//! (ACPI 6.5, 4.8.3.7 sleep control and status, 4.8.3.6 reset register).

mod regs;
#[cfg(test)]
mod tests;

pub use regs::{Power, PowerEvent, RESET, RESET_VALUE, SIZE, SLEEP_CONTROL, SLEEP_STATUS, SLP_TYP_S5};
