//! What a machine finds in memory when its first vCPU starts: kernel, command line, boot
//! parameters, ACPI tables, page tables. Everything here is guest bytes; no engine, no device.
//!
//! Next on way (d): `machine/builder.rs` calls [`load`] and gives [`Loaded::vcpu`] to the engine.
#![forbid(unsafe_code)]

mod acpi;
mod bzimage;
mod elf;
pub mod layout;
mod load;
mod params;
mod start;

pub use acpi::{AcpiConfig, VirtioSlot};
pub use bzimage::BzImage;
pub use elf::inspect;
pub use load::{BootConfig, Error, Loaded, load};
