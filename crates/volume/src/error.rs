//! What can go wrong with a volume.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A failure: what was attempted, on what, why, and what to do.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "`{0}` is no volume's name: write 1 to 63 lower-case letters, digits, `_` or `-`, with a letter or digit first"
    )]
    BadName(String),
    #[error("there is no volume `{name}`; `smolvm volume create {name}` makes it{near}")]
    None { name: String, near: String },
    #[error("there is a volume `{0}` already; `smolvm volume rm {0}` removes it with its data")]
    Taken(String),
    #[error(
        "volume `{name}` is in use{by}; one machine writes at a time, or several read: stop that one, or use `:ro` in all of them"
    )]
    InUse { name: String, by: String },
    #[error("a volume of {size} bytes is not possible: {min} MiB to {max} GiB in whole MiB are", min = crate::MIN_SIZE >> 20, max = disk::MAX_SIZE >> 30)]
    Size { size: u64 },
    #[error("volume `{name}` has {have} MiB and cannot shrink; `smolvm volume snapshot` copies it", have = have >> 20)]
    Shrink { name: String, have: u64 },
    #[error(
        "volume `{name}` was in use when its machine ended without a shutdown; run a machine with it once without `:ro`, which puts it right"
    )]
    NeedsRecovery { name: String },
    #[error(
        "volume `{name}` was written since this machine was frozen with it, so the frozen state does not fit it any more; `smolvm rm` the machine and run it anew with the volume"
    )]
    Changed { name: String },
    #[error("what is written about volume `{name}` cannot be read: {why}; its data is in {path}", path = path.display())]
    BadInfo { name: String, why: String, path: PathBuf },
    #[error("the built-in blank volume is damaged: {0}")]
    Blank(#[from] disk::SparseError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    File(#[from] artifact::Error),
}

/// [`Error::Io`] in one call.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io { what, path: path.to_owned(), source }
}
