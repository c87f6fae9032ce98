//! Where an image's documents and blobs come from. An origin is not trusted: whoever asks
//! compares what comes with the descriptor.
//!
//! Next: `layout.rs` (directories on the host), `archive.rs` (`docker save`), `registry.rs`.

pub(super) mod archive;
mod auth;
mod certificates;
mod challenge;
mod credentials;
mod http;
pub(super) mod layout;
pub(super) mod registry;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::image::Descriptor;

use super::{MAX_DOCUMENT, Problem, document_problem, failed};

/// A place that has an image.
pub(super) trait Origin: Sync {
    /// The document that the image's name means; with `digest`, the one that has it.
    fn find(&self, digest: Option<&str>) -> Result<Vec<u8>, Problem>;

    /// A manifest that an index names; at most [`MAX_DOCUMENT`] bytes.
    fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, Problem>;

    /// A configuration or layer.
    fn blob(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Problem>;

    /// Whether blobs are on this host already, so that keeping them again is waste.
    fn is_local(&self) -> bool {
        true
    }
}

/// Opens a regular file; what hangs on opening (a FIFO) or is no file is an error.
fn open_regular(path: &Path) -> Result<File, Problem> {
    let no_block = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(no_block)
        .open(path)
        .map_err(failed("opening", path))?;
    match file.metadata().map_err(failed("looking at", path))?.is_file() {
        true => Ok(file),
        false => Err(document_problem("file", format!("{} is not a regular file", path.display()))),
    }
}

/// A small document from a reader.
pub(super) fn read_document(what: &'static str, from: impl Read) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    from.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| document_problem(what, e))?;
    match bytes.len() as u64 > MAX_DOCUMENT {
        true => Err(document_problem(what, format!("it is larger than {} MiB", MAX_DOCUMENT >> 20))),
        false => Ok(bytes),
    }
}
