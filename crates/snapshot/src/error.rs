//! Why a snapshot cannot be written or used.

use thiserror::Error;

/// A snapshot's failure.
#[derive(Debug, Error)]
pub enum Error {
    /// The file's own failure, with its path.
    #[error(transparent)]
    File(#[from] artifact::Error),
    /// A state of another version.
    #[error(
        "the {what} in this file has version {found}; this smolvm reads version {reads}: use the smolvm that wrote it"
    )]
    Version { what: &'static str, found: u32, reads: u32 },
    /// Bytes that are no state.
    #[error("the {what} in this file cannot be read: {why}; rebuild the file")]
    Malformed { what: &'static str, why: String },
    /// The machine's memory at the instant of the snapshot was lost.
    #[error("saving the machine's memory failed: {0}; is there room on the disk?")]
    Keep(#[source] std::io::Error),
    /// No snapshot of that name.
    #[error("there is no snapshot `{name}`; {there}")]
    NoSnapshot { name: String, there: String },
    /// Mapping pages failed on this host.
    #[error(
        "mapping {pages} pages of the machine's memory failed: {source}; is the host out of mappings (vm.max_map_count)?"
    )]
    Map {
        pages: u64,
        #[source]
        source: std::io::Error,
    },
}
