//! The single file: `.smolmachine`.
//!
//! A header page, page-aligned sections, an index written last; every byte covered by a BLAKE3 digest.
//! docs/formats/machine-file.md is the specification, this crate its reader and writer. It knows no machine:
//! what a section's bytes mean belongs to the crates above (`snapshot`, `spec`, `image`).
//!
//! Ways through: writing is [`MachineFileWriter`] (`writer.rs`, on top of `temp.rs`), reading is
//! [`MachineFile::open`] (`reader.rs`, on top of `format/`), the once-per-file check is
//! [`MachineFile::verify_all`] (`verify.rs`). Next on the way of a first use: crate `store`.

pub mod copy;
mod early;
mod error;
pub mod extents;
mod foreign;
pub mod format;
pub mod hash;
mod kind;
mod reader;
pub mod relay;
pub mod space;
pub mod temp;
mod verify;
mod writer;

pub use error::{Error, Problem, Result};
pub use extents::{Extent, ExtentMap, PageSet, Source, plan_extents};
pub use foreign::Foreign;
pub use format::{FORMAT_VERSION, PAGE_SIZE, Section, SectionFlags};
pub use hash::Digest;
pub use kind::SectionKind;
pub use reader::{MachineFile, open_quietly};
pub use verify::{Progress, VerifyOptions};
pub use writer::{CopyCheck, MachineFileWriter, SectionHead, SectionWriter, WriterOptions, Written};
