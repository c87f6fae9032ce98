//! A 16550A UART at the port of COM1: the console of early boot.
//!
//! The transmitter is always empty: a byte goes to the [`crate::Output`] when it is written.
//! Facts: National Semiconductor PC16550D data sheet (June 1995).

mod regs;
mod saved_state;
#[cfg(test)]
mod tests;

pub use regs::{SIZE, Serial};
pub use saved_state::SerialState;
