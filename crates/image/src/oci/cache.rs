//! Layers and configurations on disk under their digest: transferred once, shared by all images
//! that have them. Files come in by rename, whole and checked, so a transfer that was cut off
//! leaves nothing, and several processes may fill the cache at once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, MediaType};

use super::checked::{Checked, digest_of, sha256_hex};
use super::{MAX_DOCUMENT, Problem, document_problem, failed};

/// The cache's directory.
pub(super) struct BlobCache {
    dir: PathBuf,
}

impl BlobCache {
    /// Uses `dir`, making it when it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, Problem> {
        let blobs = dir.join("sha256");
        fs::create_dir_all(&blobs).map_err(failed("making the directory", &blobs))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, blob: &Descriptor) -> Result<PathBuf, Problem> {
        Ok(self.dir.join("sha256").join(sha256_hex(blob.digest())?))
    }

    /// Opens the blob, if it is there in its full length. Its digest is for the reader to check,
    /// who reads it anyway.
    pub(super) fn get(&self, blob: &Descriptor) -> Result<Option<File>, Problem> {
        let path = self.path(blob)?;
        match File::open(&path) {
            Ok(file) => {
                let len = file.metadata().map_err(failed("looking at", &path))?.len();
                Ok((len == blob.size()).then_some(file))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("opening", &path)(e)),
        }
    }

    /// A document (`sha256:…`) that is there and whole.
    pub(super) fn document(&self, digest: &str) -> Option<Vec<u8>> {
        let digest = Digest::try_from(digest).ok()?;
        let file = File::open(self.dir.join("sha256").join(sha256_hex(&digest).ok()?)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).ok()?;
        (digest_of(&bytes) == digest.as_ref()).then_some(bytes)
    }

    /// Keeps a document that was checked.
    pub(super) fn keep_document(&self, digest: &str, bytes: &[u8]) -> Result<(), Problem> {
        let digest = Digest::try_from(digest).map_err(|e| document_problem("digest", e))?;
        let size = bytes.len() as u64;
        let blob = Descriptor::new(MediaType::ImageManifest, size, digest);
        match self.get(&blob)? {
            Some(_) => Ok(()),
            None => self.put(&blob, bytes),
        }
    }

    /// Keeps what `from` gives, if it is what the descriptor says.
    pub(super) fn put(&self, blob: &Descriptor, from: impl Read) -> Result<(), Problem> {
        let path = self.path(blob)?;
        let mut temp = tempfile::Builder::new()
            .prefix("part-")
            .tempfile_in(&self.dir)
            .map_err(failed("making a temporary file in", &self.dir))?;
        let mut checked = Checked::new(from, blob.size());
        let mut piece = vec![0; 256 << 10];
        loop {
            let got = match checked.read(&mut piece) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if checked.exceeded() => break, // told below
                Err(e) => return Err(crate::ArchiveError::Io(e).into()),
            };
            temp.write_all(&piece[..got]).map_err(failed("writing a layer to", &self.dir))?;
        }
        checked.compare("what came", blob, "; somebody or something changed them on the way")?;
        temp.as_file().sync_all().map_err(failed("writing a layer to", &self.dir))?;
        temp.persist(&path).map_err(|e| failed("keeping", &path)(e.error))?;
        Ok(())
    }

    /// Refuses blobs of so many bytes that are to come when they do not fit.
    pub(super) fn room(&self, bytes: u64) -> Result<(), Problem> {
        let asked = failed("asking for free space in", &self.dir);
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| asked(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if bytes <= free {
            return Ok(());
        }
        let what = format!(
            "{} KiB are needed, {} KiB are free; `smolvm prune` removes what nothing uses",
            bytes >> 10,
            free >> 10
        );
        let full = io::Error::new(io::ErrorKind::StorageFull, what);
        Err(failed("making room for layers in", &self.dir)(full))
    }

    /// Takes a blob out that turned out damaged, so that the next run fetches it again.
    pub(super) fn forget(&self, blob: &Descriptor) {
        if let Ok(path) = self.path(blob) {
            let _ = fs::remove_file(path); // the error that led here says what matters
        }
    }
}
