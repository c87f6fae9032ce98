//! "Virtual Machine Generation ID" (Microsoft, August 2012) and the event register that tells of
//! it (generic event device: ACPI 6.5, 5.6.9).
//!
//! The identifier is 16 bytes of guest RAM whose address the boot tables give; it differs between
//! any two runs of the same memory. The guest's kernel mixes a new one into its random pool before
//! it does anything else with the news.

mod regs;
mod saved_state;
#[cfg(test)]
mod tests;

pub use regs::{Events, Ged, SIZE, VmGenId};
pub use saved_state::GedState;
