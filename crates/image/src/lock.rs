//! What a root was made from, in a form that stands in `Smolfile.lock`.
//!
//! No host name, no path of the host: the same lock is right everywhere.

use serde::{Deserialize, Serialize};

/// One Debian package, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageLock {
    pub name: String,
    /// With epoch and revision, as dpkg writes it.
    pub version: String,
    /// Debian's name of the architecture, or `all`.
    pub arch: String,
    /// SHA-256 of the .deb, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Bytes of the .deb.
    pub size: u64,
}

/// A directory, tar or set of files, by the digest of the tree it gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceLock {
    pub kind: SourceKind,
    /// BLAKE3 of the tree (see [`crate::Tree::digest`]), 64 lower-case hexadecimal digits.
    pub blake3: String,
}

/// A container image, exactly. Each is `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageLock {
    /// The manifest for linux/amd64; not that of an index.
    pub manifest: String,
    pub config: String,
    /// The layers as they are transferred, from the lowest.
    pub layers: Vec<String>,
}

/// Which of the sources a [`SourceLock`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The root that smolvm brings.
    #[serde(rename = "built-in")]
    BuiltIn,
    Dir,
    Tar,
    Files,
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}
