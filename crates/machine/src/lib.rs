//! One virtual machine: engine, memory and devices put together; run, paused, saved, restored.
//!
//! Ways through: [`Machine::boot`] and [`Machine::restore`] end in `builder.rs`, which knows every
//! device; `vcpu_thread.rs` is THE loop; `save.rs` and `restore.rs` are the same walk both ways.
//! Next below: `boot`, `devices`, `hv_*`, `snapshot`. Above: `instance`.
#![forbid(unsafe_code)]

mod ahead;
mod builder;
mod counters;
mod debug;
mod doorbells;
mod engine;
mod error;
mod examine;
mod lifecycle;
mod machine;
mod parts;
mod restore;
mod save;
mod selftest;
mod usage;
mod vcpu_thread;

pub use ahead::{Ahead, AheadReport};
pub use builder::VOLUME_SLOTS;
pub use counters::{EngineFigures, VcpuFigures};
pub use engine::{
    EngineChoice, EngineReport, KvmReport, choose, kvm_report, kvm_works_well, remember_kvm_in,
};
pub use error::Error;
pub use examine::{Examined, Seen, Verdict, examine, verdict};
pub use host::memory_bytes as host_memory;
pub use hostfs::{Folder, MAX_FOLDERS, Placed};
pub use hv::{CodeSource, EngineKind, Look, VcpuState, Watch};
pub use lifecycle::Outcome;
pub use machine::{COMMAND_LINE, Machine, MachineConfig, Sink};
pub use restore::Template;
pub use save::{Content, DISK_MAP_VERSION, Drift, SaveStats, StillMachine, decode_disk_map};
pub use selftest::{SelfTest, Skipped, selftest};
pub use usage::{Limited, Usage};
