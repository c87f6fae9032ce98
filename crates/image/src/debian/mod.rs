//! Debian packages to a root, as an ordinary user and without running a line of theirs.
//!
//! Problem: dpkg wants root and a chroot. Strategy: apt, with the system's own configuration but
//! an empty state, says which packages are needed and what their hashes are; their archives are
//! unpacked into a [`crate::Tree`] with dpkg's database laid down in the state "unpacked"; the
//! maintainer scripts run later, inside the machine, by the script that [`DebianRoot`] brings
//! along. Invariants: no byte is used whose SHA-256 is not the lock's; no host name is kept;
//! what is in the cache needs no apt.
//!
//! Next, in the order of work: `request.rs` → `apt.rs` → `cache.rs` → `package.rs` →
//! `unpack.rs` → `database.rs` → `order.rs` → `configure.rs`; beside it `offers.rs`: what there is by now.

mod apt;
mod cache;
mod configure;
mod control;
mod database;
mod offers;
mod order;
mod package;
mod request;
mod unpack;
mod version;

use std::io;
use std::path::PathBuf;

use apt::Apt;
pub use apt::resolve;
pub use cache::{Cache, fetch};
pub use offers::{Offer, offers};

pub use request::{PackageSpec, Request};
pub use unpack::{DebianRoot, unpack};

use crate::archive::ArchiveError;
use crate::content::SpoolError;
use crate::tree::TreeError;

/// Why a root could not be made from packages.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    #[error(
        "`{spec}` is not a package name with an optional version: {why}; write `name`, `name=15.2-1` or `name=15*`"
    )]
    Spec { spec: String, why: &'static str },
    #[error(
        "running {program} failed: {source}; Debian packages are found through this system's apt. Use `dir` or `tar` as the root's source where there is none, or build from a lock whose packages are in the cache"
    )]
    NoApt { program: String, source: io::Error },
    #[error("this system's package lists are empty; run `apt-get update` (as root) and build again")]
    NoLists,
    #[error("there is no package `{name}` in this system's package lists{hint}")]
    NoPackage { name: String, hint: String },
    #[error("package `{name}` has no version `{version}` in this system's package lists; there is {offered}")]
    NoVersion { name: String, version: String, offered: String },
    #[error("apt cannot satisfy the packages together:\n{said}")]
    Unsatisfiable { said: String },
    #[error("{doing} failed; apt says:\n{said}")]
    Apt { doing: &'static str, said: String },
    #[error("apt gives no SHA-256 for {package}; its repository is too old to be trusted")]
    NoHash { package: String },
    #[error(
        "the lock wants {packages}, which this system's package lists no longer offer and the cache does not have; run `apt-get update`, or remove the lock to take the current versions"
    )]
    Gone { packages: String },
    #[error("{package}: the file that came has SHA-256 {found}, the lock says {wanted}; it is not used")]
    Hash { package: String, wanted: String, found: String },
    #[error("{doing} {path} failed: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("package {package}: {source}")]
    Archive { package: String, source: ArchiveError },
    #[error("package {package} is damaged: {what}")]
    Package { package: String, what: &'static str },
    #[error("package {package}: {source}")]
    Tree { package: String, source: TreeError },
    #[error("package {package}: {source}")]
    Spool { package: String, source: SpoolError },
}

fn io_error(doing: &'static str, path: &std::path::Path, source: io::Error) -> DebianError {
    DebianError::Io { doing, path: path.to_owned(), source }
}
