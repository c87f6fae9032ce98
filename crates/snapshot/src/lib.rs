//! What a frozen run is made of: CPU and device state as data, guest memory as pages.
//!
//! Way (c) through the house: `machine/save.rs` → `devices/<d>/saved_state.rs` → [`write_memory`],
//! [`MachineState::encode`] here → `artifact`. Restoring is the same walk with the same names.
#![forbid(unsafe_code)]

mod ahead;
mod error;
mod hot;
mod memory;
mod pieces;
mod points;
mod rounds;
mod shared;
mod state;
mod still;
mod tripwires;
mod working_set;

pub use ahead::{AheadStats, CopyAhead, Running};
pub use error::Error;
pub use hot::{HotBlocks, MOST_HOT};
pub use memory::{MemoryStats, Origin, Pages, StoredPages, map_memory, stored_pages, write_memory};
pub use points::{Point, SnapshotInfo, UNNAMED, find, points, select};
pub use state::{MachineState, PartState, STATE_VERSION};
pub use still::StillMemory;
pub use working_set::{Touched, WorkingSet, WorkingSetStats, write_laid_out};
