//! What can go wrong with a machine file: the file, what, where in it, and the way out.
//!
//! A message is complete in its `Display`; there is no chain of sources to print after it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::foreign::Foreign;
use crate::space::words;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A problem with one file.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct Error {
    path: PathBuf,
    problem: Box<Problem>,
}

impl Error {
    /// A problem with the file at `path`.
    pub fn new(path: impl Into<PathBuf>, problem: Problem) -> Error {
        let problem = Box::new(problem);
        Error { path: path.into(), problem }
    }

    /// An input or output error: `attempt` names what was tried, as in "cannot {attempt}".
    pub fn io(path: impl Into<PathBuf>, attempt: impl Into<String>, error: io::Error) -> Error {
        Error::new(path, Problem::io(attempt, error))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// What is wrong with a file. Offsets and lengths are bytes of the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Problem {
    /// Something else than a machine file, recognised or not.
    #[error("this is {what}, not a machine file; {}", what.advice())]
    Foreign {
        /// What it is.
        what: Foreign,
    },
    /// A format version that this reader does not know.
    #[error(
        "made by a newer smolvm (format {found}; this one reads up to {reads}): update smolvm to open it"
    )]
    Newer {
        /// The file's format version.
        found: u32,
        /// The newest version that is read here.
        reads: u32,
    },
    /// Right format version, but it needs something that this reader has not.
    #[error("it needs {what}, which this smolvm does not know: update smolvm to open it")]
    Unsupported {
        /// The feature or section.
        what: String,
    },
    /// Bytes are missing at the end.
    #[error("cut short: {expected} bytes are needed, {actual} are there; copy or download it again")]
    Truncated {
        /// The length it should have, as far as that can be told.
        expected: u64,
        /// The length it has.
        actual: u64,
    },
    /// Bytes are not what they should be.
    #[error(
        "damaged in {place} at byte {offset}: {why}; copy or download it again, or rebuild it with `smolvm build`"
    )]
    Damaged {
        /// The part of the file: header, index, or the section's name.
        place: String,
        /// Where that part, or the wrong byte in it, lies.
        offset: u64,
        /// What was found.
        why: String,
    },
    /// A section that the caller needs is not there.
    #[error("it holds no {section}; `smolvm inspect` lists what it holds")]
    Missing {
        /// The section's kind and instance.
        section: String,
    },
    /// A section is larger than its reader is ready to take into memory.
    #[error("section {section} has {len} bytes, more than the {cap} that are accepted for it")]
    TooBig {
        /// The section's name.
        section: String,
        /// Its length.
        len: u64,
        /// The caller's limit.
        cap: u64,
    },
    /// The file system has not enough room.
    #[error(
        "not enough room in {}: {} are needed, {} are free; `smolvm prune` removes what nothing uses \
         (`smolvm system df` says how much), or choose another place",
        dir.display(), words(*needed), words(*available)
    )]
    NoSpace {
        /// The directory that the file would be in.
        dir: PathBuf,
        /// What it takes.
        needed: u64,
        /// What is free for this user.
        available: u64,
    },
    /// The progress callback asked for an end.
    #[error("interrupted")]
    Cancelled,
    /// The caller asked the writer for something that the format has no place for.
    #[error("cannot be written: {0} (a fault of the program, please report it)")]
    Misuse(String),
    /// The operating system refused something.
    #[error("cannot {attempt}: {error}{}", room(error))]
    Io {
        /// What was tried.
        attempt: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl Problem {
    /// See [`Problem::Io`]. Not enough room and the like keep their [`io::ErrorKind`].
    pub fn io(attempt: impl Into<String>, error: io::Error) -> Problem {
        let attempt = attempt.into();
        Problem::Io { attempt, error }
    }

    pub(crate) fn damaged(place: impl Into<String>, offset: u64, why: impl Into<String>) -> Problem {
        Problem::Damaged { place: place.into(), offset, why: why.into() }
    }

    pub(crate) fn at(self, path: &Path) -> Error {
        Error::new(path, self)
    }
}

/// The way out where the disk got full on the way.
fn room(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; `smolvm prune` removes what nothing uses, or choose another place"
        }
        _ => "",
    }
}
