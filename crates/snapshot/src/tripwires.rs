//! ABI pinned at compile time: a change of what a snapshot keeps must not happen in passing.
//!
//! When one of these fails, the saved form has changed: bump `STATE_VERSION` (and keep reading the
//! old one once a release wrote it), then adjust the number here. tests/golden.rs pins the
//! encoding itself.

use arch::x86_64::state::{Msrs, Segment, TableReg, VCPU_STATE_VERSION};

const _: () = assert!(VCPU_STATE_VERSION == 1);
const _: () = assert!(size_of::<Segment>() == 24);
const _: () = assert!(size_of::<TableReg>() == 16);
const _: () = assert!(size_of::<Msrs>() == 17 * 8);
const _: () = assert!(artifact::PAGE_SIZE == guestmem::PAGE_SIZE);
