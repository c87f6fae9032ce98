//! What can go wrong with a delta.

use std::io;
use std::path::{Path, PathBuf};

use artifact::Digest;
use thiserror::Error;

/// A failure: what, on what, why, and what to do.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no delta of smolvm; `smolvm delta create OLD NEW -o D` makes one", path = path.display())]
    Foreign { path: PathBuf },
    #[error("{path} is a delta of version {found}, this smolvm reads {reads}: update smolvm", path = path.display())]
    Version { path: PathBuf, found: u32, reads: u32 },
    #[error("{path} is damaged: {why}; copy or download it again", path = path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "{delta} changes the machine file {wanted}, and {old} is {found}: another one, or another build of it",
        delta = delta.display(), old = old.display(), wanted = wanted.short(), found = found.short()
    )]
    OtherOld { delta: PathBuf, old: PathBuf, wanted: Digest, found: Digest },
    #[error(transparent)]
    File(#[from] artifact::Error),
}

/// [`Error::Io`] in one call.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io { what, path: path.to_owned(), source }
}
