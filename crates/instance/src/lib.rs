//! One running machine as a process: its directory and record, its agent, its control socket.
//!
//! There is no daemon. Whoever starts a machine *is* its VMM: `smolvm run` in the foreground, or a
//! child that it leaves behind. Others find it through its directory and talk to its control
//! socket; a lock that dies with the process tells who lives.
//!
//! Ways through: [`Vmm`] starts, freezes and stops (`vmm.rs`, over crate `machine`);
//! [`control::listen`] lets other processes in; [`session::attach`] joins a terminal and a
//! process of the guest.

mod changes;
pub mod control;
mod data;
mod error;
mod export;
mod folders;
pub mod forward;
mod kept_code;
pub mod logs;
mod media;
mod neighbours;
mod net;
mod record;
pub mod session;
mod sizes;
mod terminal;
mod vmm;
mod volumes;
mod watch;

pub use changes::Change;
pub use data::DataStream;
pub use error::{Error, io_error};
pub use export::export_frozen;
pub use folders::{SharedFolder, missing_note};
pub use kept_code::KEPT_CODE;
pub use machine::Template;
pub use media::{BOOT_ZSTD, Media, built_in_spec, differing_pages, read_spec, saved_disk};
pub use neighbours::{Door, Neighbours, open_door};
pub use net::NetOptions;
pub use record::{Health, Instance, Lasting, PLAN, Phase, Record, hold_needed, list, new_name, remove_dead};
pub use sizes::{FileSizes, sizes};
pub use snapshot::{Point, SnapshotInfo, Touched, UNNAMED, WorkingSet, find, points, write_laid_out};
pub use vmm::{
    FreezeReport, Frozen, Main, Own, SnapshotTarget, StartReport, Vmm, VmmOptions, Waking, copy_base,
};
pub use volumes::VolumeMount;
pub use watch::{Event, Watch};
