//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use artifact::Digest;
use thiserror::Error;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Messages are complete in `Display`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine file is at fault, or cannot be read or written.
    #[error("{0}")]
    File(#[from] artifact::Error),
    /// The operating system refused something.
    #[error("{}: cannot {attempt}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// A directory that must be this user's alone is not.
    #[error("{}: {why}; two users never share it: set SMOLVM_HOME to a directory of your own", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Whose it is, or who may write to it.
        why: String,
    },
    /// Neither SMOLVM_HOME nor HOME says where to keep things.
    #[error("no home directory is known: set HOME, or SMOLVM_HOME to a directory of your own")]
    NoHome,
    /// A text that cannot be a name in the store.
    #[error(
        "{name:?} cannot be a name: it starts with a letter or digit and goes on with those and . _ - / : @, \
         in at most 80 characters"
    )]
    BadName {
        /// The text.
        name: String,
    },
    /// Nothing of that name or id.
    #[error("nothing in the store is called {name:?}; `smolvm images` lists what is there")]
    NoSuchName {
        /// The name, id or beginning of an id.
        name: String,
    },
    /// An id's beginning that several objects share.
    #[error("{prefix:?} is the beginning of several ids in the store: give more digits")]
    Ambiguous {
        /// The digits given.
        prefix: String,
    },
    /// The object is not in the store, or not any more.
    #[error("machine {} is not in the store; run it from its file to put it there again", id.short())]
    Gone {
        /// The object.
        id: Digest,
    },
    /// A file that builds on another one, which is not in the store.
    #[error(
        "{}: it holds only what changed since machine {parent}, which is not in the store; \
         `smolvm import` that machine's file first", path.display()
    )]
    NoParent {
        /// The file.
        path: PathBuf,
        /// What it builds on.
        parent: Digest,
    },
    /// The object cannot be removed now.
    #[error(
        "machine {} is in use by {user}; remove that first (`smolvm ps -a` lists instances)", id.short()
    )]
    InUse {
        /// The object.
        id: Digest,
        /// Who uses it.
        user: String,
    },
    /// A file that cannot be moved into the store.
    #[error("{}: it cannot be moved into the store: {why}", path.display())]
    NotMovable {
        /// The user's file.
        path: PathBuf,
        /// What is in the way, and what to do.
        why: &'static str,
    },
    /// The user's file was written to while it was copied.
    #[error("{}: it changed while it was being copied; wait until it is written and try again", path.display())]
    Changed {
        /// The user's file.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, attempt: &'static str, error: io::Error) -> Error {
        Error::Io { path: path.to_owned(), attempt, error }
    }
}
