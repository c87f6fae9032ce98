//! Why a build failed.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A build's failure. Nothing is left under the output's name.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {source}", path = .path.display())]
    Definition {
        path: PathBuf,
        #[source]
        source: spec::DefinitionError,
    },
    #[error("{path}: {what}", path = .path.display())]
    Lock { path: PathBuf, what: String },
    #[error("step {number} (`{line}`) ended with exit code {code}; its output is above")]
    Step { number: usize, line: String, code: u8 },
    #[error(
        "configuring the packages inside the machine ended with exit code {code}; the last output:\n{tail}"
    )]
    Configure { code: u8, tail: String },
    #[error("the service did not become ready: {why}\nits last output:\n{tail}")]
    NotReady { why: String, tail: String },
    #[error("memory = \"{asked} MiB\", but this host has {have} MiB; lower it")]
    TooMuchMemory { asked: u64, have: u64 },
    #[error("{0} is planned; one snapshot at = \"ready\" (or none: the same) works today")]
    NotYet(String),
    #[error(transparent)]
    Debian(#[from] image::DebianError),
    #[error(transparent)]
    Source(#[from] image::SourceError),
    #[error("the root archive: {0}")]
    Archive(#[from] image::ArchiveError),
    #[error(transparent)]
    Erofs(#[from] image::ErofsError),
    #[error(transparent)]
    Spool(#[from] image::SpoolError),
    #[error("the root: {0}")]
    Tree(#[from] image::TreeError),
    #[error(transparent)]
    Instance(#[from] instance::Error),
    #[error("the guest's agent: {0}")]
    Agent(#[from] agent_protocol::ClientError),
    #[error(transparent)]
    File(#[from] artifact::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// [`Error::Io`] in one call.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io { what, path: path.to_owned(), source }
}
