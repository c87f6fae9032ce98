//! Readers that count and hash what passes, so that nothing is used that was not announced.

use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256};

use super::Problem;
use crate::lock::hex;

/// The 64 hexadecimal digits of a SHA-256 digest: the only ones that are taken, and the only part
/// of a descriptor that becomes a file's name.
pub(super) fn sha256_hex(digest: &Digest) -> Result<&str, Problem> {
    let hex = digest.digest();
    let fine = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if *digest.algorithm() != DigestAlgorithm::Sha256 || hex.len() != 64 || !hex.bytes().all(fine) {
        let shown: String = digest.as_ref().chars().take(80).flat_map(char::escape_debug).collect();
        return Err(Problem::NotSupported(format!(
            "the digest `{shown}` is none of SHA-256; only that is read"
        )));
    }
    Ok(hex)
}

/// `sha256:` and the digits of `bytes`.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Whether `bytes` are what `digest` (`sha256:…`) names.
pub(super) fn verify(what: &'static str, bytes: &[u8], digest: &str) -> Result<(), Problem> {
    let found = digest_of(bytes);
    if found == digest {
        return Ok(());
    }
    Err(Problem::Digest { what, wanted: digest.to_owned(), found, advice: "" })
}

/// Hashes and counts; fails where more than `limit` bytes come.
pub(super) struct Checked<R> {
    inner: R,
    hasher: Sha256,
    seen: u64,
    limit: u64,
    exceeded: bool,
}

impl<R: Read> Checked<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self { inner, hasher: Sha256::new(), seen: 0, limit, exceeded: false }
    }

    /// Whether more than the limit came.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Reads what is left; the digest of everything.
    pub(super) fn digest(&mut self) -> io::Result<String> {
        io::copy(self, &mut io::sink())?;
        Ok(format!("sha256:{}", hex(&self.hasher.clone().finalize())))
    }

    /// Reads what is left and compares size and digest with the descriptor's.
    pub(super) fn compare(
        &mut self,
        what: &'static str,
        wanted: &Descriptor,
        advice: &'static str,
    ) -> Result<(), Problem> {
        let size = |found| Problem::Size { what, wanted: wanted.size(), found };
        let found = match self.digest() {
            Ok(found) => found,
            Err(_) if self.exceeded => return Err(size(self.seen)),
            Err(e) => return Err(crate::ArchiveError::Io(e).into()),
        };
        if self.seen != wanted.size() {
            return Err(size(self.seen));
        }
        match found == wanted.digest().as_ref() {
            true => Ok(()),
            false => Err(Problem::Digest { what, wanted: wanted.digest().to_string(), found, advice }),
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // One byte more than is allowed, to notice that there is one.
        let want = (self.limit - self.seen).saturating_add(1).min(buf.len() as u64) as usize;
        let got = self.inner.read(&mut buf[..want])?;
        if self.seen + got as u64 > self.limit {
            self.exceeded = true;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("there are more than {} bytes", self.limit),
            ));
        }
        self.hasher.update(&buf[..got]);
        self.seen += got as u64;
        Ok(got)
    }
}
