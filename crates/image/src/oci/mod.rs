//! Container images (OCI image specification 1.1, Docker's schema 2) to a root, without a daemon
//! and without root on the host.
//!
//! Problem: a registry, an archive or a layout directory is somebody else's, and so is every
//! number, digest and path in it. Strategy: whatever the transport ([`origin`]), an image is a
//! manifest, a configuration and layers, each read through a reader that stops at the size its
//! descriptor announced and compares its SHA-256; layers become nodes of a [`crate::Tree`], so no
//! path in them is ever opened on the host. Invariants: no byte is used whose digest is not the
//! descriptor's, and no layer whose expanded bytes are not the configuration's; documents are at
//! most [`MAX_DOCUMENT`] bytes; plain HTTP goes to the loopback only.
//!
//! Next, in the order of work: `name.rs` → `reference.rs` → `origin/` → `document.rs` → `pull.rs` → `cache.rs` →
//! `layer.rs`.

mod cache;
mod checked;
mod document;
mod layer;
mod name;
mod origin;
mod pull;
mod reference;

use std::io;
use std::path::{Path, PathBuf};

pub use document::{Document, defaults, parse_config, parse_document};
pub use layer::{Applier, MAX_ENTRIES};
pub use name::ImageName;
pub use origin::registry::{Certificates, Credentials, RegistryOptions};
pub use pull::{Image, OciOptions};
pub use reference::Reference;

use crate::archive::ArchiveError;
use crate::content::SpoolError;

/// Largest manifest, index or configuration, in bytes; what registries accept.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers of one image.
const MAX_LAYERS: usize = 512;

/// Why an image could not become a root.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error(
        "`{word}` is no image: {why}; write a name like debian:12 or registry.example/app@sha256:…, oci:DIR[:TAG], or docker-archive:FILE"
    )]
    Name { word: String, why: String },
    #[error("image {image}: {problem}")]
    Image { image: String, problem: Box<Problem> },
    #[error("image {image}, layer {number} of {count} ({digest}): {problem}")]
    Layer { image: String, number: usize, count: usize, digest: String, problem: Box<Problem> },
}

/// What is wrong, without saying with what.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("{doing} {path} failed: {source}", path = .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("its {what} is damaged or no such thing: {why}")]
    Document { what: &'static str, why: String },
    #[error("{0}")]
    NotSupported(String),
    #[error("there is no {what}; {advice}")]
    Missing { what: String, advice: String },
    #[error("it is for {offered}, smolvm runs linux/amd64; use a tag or digest that has it")]
    Platform { offered: String },
    #[error("{what}: the bytes have {found}, {wanted} was announced; they are not used{advice}")]
    Digest { what: &'static str, wanted: String, found: String, advice: &'static str },
    #[error("{what}: {found} bytes where {wanted} were announced; the transfer or the file is cut short")]
    Size { what: &'static str, wanted: u64, found: u64 },
    #[error(
        "it expands to more than {limit} bytes from {packed}, as a decompression bomb does; if it is to be trusted, unpack it yourself and use `dir` as the root's source"
    )]
    Bomb { limit: u64, packed: u64 },
    #[error("registry {registry}: {what}")]
    Registry { registry: String, what: String },
    #[error("credentials for {registry}: {what}")]
    Credentials { registry: String, what: String },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Tree(#[from] crate::TreeError),
}

/// [`Problem::Io`] in one call.
fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Problem + use<'a> {
    move |source| Problem::Io { doing, path: path.to_owned(), source }
}

fn document_problem(what: &'static str, why: impl ToString) -> Problem {
    Problem::Document { what, why: why.to_string() }
}
