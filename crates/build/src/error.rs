//! Why a build failed.

use std::path::PathBuf;

use thiserror::Error;

/// A build's failure. Nothing is left under the output's name.
#[derive(Debug, Error)]
pub enum Error {
    #[error("there is no definition {path}; `smolvm init` writes a first one", path = .path.display())]
    NoDefinition { path: PathBuf },
    #[error("{path}: {source}", path = .path.display())]
    Definition {
        path: PathBuf,
        #[source]
        source: spec::DefinitionError,
    },
    #[error("{path}: {what}", path = .path.display())]
    Lock { path: PathBuf, what: String },
    #[error("{path} cannot be built again: {what}", path = .path.display())]
    Rebuild { path: PathBuf, what: String },
    #[error(
        "configuring the packages inside the machine ended with exit code {code}; the last output:\n{tail}"
    )]
    Configure { code: u8, tail: String },
    #[error("the service did not become ready: {why}\nits last output:\n{tail}")]
    NotReady { why: String, tail: String },
    #[error(transparent)]
    Container(#[from] image::oci::OciError),
    #[error(transparent)]
    Debian(#[from] image::DebianError),
    #[error(transparent)]
    Source(#[from] image::SourceError),
    #[error("the root archive: {0}")]
    Archive(#[from] image::ArchiveError),
    #[error(transparent)]
    Erofs(#[from] image::ErofsError),
    #[error(transparent)]
    Image(#[from] image::ReadError),
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
