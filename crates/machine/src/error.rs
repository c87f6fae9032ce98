//! Why a machine cannot be built, saved or restored.

use thiserror::Error;

/// A machine's failure.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error(transparent)]
    Engine(#[from] hv::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error(transparent)]
    File(#[from] artifact::Error),
    #[error(transparent)]
    Part(#[from] bus::RestoreError),
    #[error(transparent)]
    Bus(#[from] bus::InsertError),
    #[error("the saved machine does not fit: {0}; it was written by another version of smolvm")]
    Mismatch(String),
    #[error(
        "the frozen machine needs what is missing here: {0}; `smolvm doctor FILE` says more, `smolvm run --cold` boots its \
         base instead"
    )]
    Missing(String),
    #[error(
        "the machine was frozen without a network device and cannot be given one; boot its base with --cold, or \
         rebuild it with `net = true` in its Smolfile"
    )]
    NoNetworkDevice,
    #[error(
        "the machine was frozen by a smolvm without volumes and cannot be given one; boot its base with --cold, or \
         build it anew"
    )]
    NoVolumeSlots,
    #[error(
        "the machine was frozen by a smolvm without shared folders and cannot be given one; boot its base with \
         --cold, or build it anew"
    )]
    NoFolderDevice,
    #[error(
        "the machine was frozen by a smolvm without a balloon and cannot be asked for memory; boot its base with --cold, or \
         build it anew"
    )]
    NoBalloon,
    #[error("{what} failed: {source}")]
    Host {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("vCPU {0} did not look up from a device for seconds; try again")]
    Busy(usize),
    #[error("the machine has ended ({0}); nothing can be saved")]
    Ended(String),
}

/// [`Error::Host`] in one call.
pub(crate) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Host { what, source }
}
