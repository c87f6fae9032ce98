//! What can go wrong with a running machine.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A failure, told whole: what was attempted, on what, why, and what to do.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no instance `{name}`; `smolvm ps -a` lists them{near}")]
    NoInstance { name: String, near: String },
    #[error(
        "the name `{name}` is taken by a {state} instance; `smolvm start {name}` goes on with it, `smolvm exec {name} …` runs in it, `smolvm rm {name}` frees the name"
    )]
    NameTaken { name: String, state: &'static str },
    #[error("`{0}` cannot name an instance; allowed: [a-z0-9][a-z0-9_.-]{{0,62}}")]
    BadName(String),
    #[error("instance `{name}` is {state}, not running; `smolvm start {name}` starts it")]
    NotRunning { name: String, state: &'static str },
    #[error("instance `{name}` is running; `smolvm stop {name}` first")]
    Running { name: String },
    #[error(
        "port {address} on the host {} ({source}); choose another with -p HOST:GUEST",
        why_no_port(source)
    )]
    PortTaken {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the record of instance `{name}` cannot be read: {why}; `smolvm rm -f {name}` removes it")]
    BadRecord { name: String, why: String },
    #[error("the guest's agent did not answer within {seconds} s; its last output:\n{tail}")]
    AgentSilent { seconds: u64, tail: String },
    #[error("the machine {outcome} before it was up; its last output:\n{tail}")]
    Died { outcome: String, tail: String },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Agent(#[from] agent_protocol::ClientError),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error(transparent)]
    File(#[from] artifact::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn why_no_port(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "is not for this user: ports below 1024 are root's, mostly",
        io::ErrorKind::AddrNotAvailable => "cannot be had: this host has no such address",
        _ => "is taken",
    }
}

/// [`Error::Io`] in one call.
pub fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io { what, path: path.to_owned(), source }
}
