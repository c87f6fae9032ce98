//! Disks as layers of bytes; knows no virtio and no machine file format.
//!
//! ```text
//!   Overlay      what this instance changed: a private sparse file, 4 KiB clusters
//!     │ else
//!   frozen deltas what snapshots changed: sections of machine files, shared, read-only
//!     │ else
//!   base         a section of the machine file, or a blank file system that is mostly nothing
//! ```
//!
//! Problem: an instance may cost only what it changed, and so may its snapshot.
//!
//! Strategy: each cluster has one source, looked up from the top; a write moves it to the private
//! file, a discard to "zeros, stored nowhere". [`StillDisk::write_delta`] walks the upper layers as
//! one, so a snapshot of a resumed snapshot is complete with respect to the same base; it does so
//! while the guest writes (`still.rs`).
//!
//! Invariants: lower layers are never written; a cluster is marked only after its bytes are in
//! the file; no range reaches beyond the disk.
#![forbid(unsafe_code)]

mod api;
mod bits;
mod delta;
mod file;
mod live;
mod nothing;
mod overlay;
mod private;
mod sparse;
mod still;

pub use api::{Disk, MAX_SIZE, SECTOR};
pub use delta::{CLUSTER, Delta, DeltaError, DeltaMap, Extent, ExtentKind};
pub use file::FileDisk;
pub use live::{LiveCopy, LiveDisk};
pub use nothing::NoDisk;
pub use overlay::{Overlay, OverlayStats};
pub use private::{Private, private_file};
pub use sparse::{SparseDisk, SparseError};
pub use still::StillDisk;
