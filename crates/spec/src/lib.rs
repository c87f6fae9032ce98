//! One description of a machine: the Smolfile (what people write) and [`MachineSpec`] (what it
//! means, kept in the machine file).
//!
//! Next on way (d): `bin/smolvm/resolve.rs` turns words and a Smolfile into a [`MachineSpec`];
//! `machine/builder.rs` takes it from there.
#![forbid(unsafe_code)]

mod definition;
mod image;
mod locate;
mod machine;
mod nearest;
mod parse;
mod quantity;

pub use definition::{
    BuildDef, Command, CpuProfile, Hooks, KernelDef, NetDef, NetSpec, ReadyDef, RootDef, RunDef, Smolfile,
    SnapshotDef, SnapshotPoint,
};
pub use image::{ImageDefaults, signal_number};
pub use locate::locate;
pub use machine::{MachineSpec, Ready, ReadyCheck, SPEC_VERSION, Service};
pub use nearest::nearest;
pub use parse::{DefinitionError, json_schema, parse, valid_name};
pub use quantity::{Duration, Size};
