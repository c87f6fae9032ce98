//! `Smolfile.lock`: exactly what a base was made from. The same lock gives the same base, bit for
//! bit; no host name and no path of the host is in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use artifact::hash::Digest;
use artifact::temp::write_whole;
use image::{ImageLock, PackageLock, SourceKind, SourceLock};
use instance::io_error;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::kernel::KernelLock;

/// What a lock says of smolvm's kernel.
const KERNEL_KEYS: [&str; 3] = ["kernel_release", "vmlinux_blake3", "kernel_config_blake3"];
/// Version of the lock's form.
const VERSION: u32 = 1;

/// The lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// 1.
    pub version: u32,
    /// BLAKE3 of the definition's part that it was resolved from: another definition, another lock.
    pub definition: String,
    /// Versions and hashes of the guest that smolvm brings (kernel, agent, busybox).
    #[serde(default)]
    pub guest: BTreeMap<String, String>,
    /// The definition's own kernel, in the place of smolvm's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelLock>,
    #[serde(default, rename = "package", skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageLock>,
    /// The container image that the root is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageLock>,
    #[serde(default, rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceLock>,
    /// BLAKE3 of the build steps; absent without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<String>,
    /// BLAKE3 of the finished root image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl Lock {
    /// An empty lock for a definition.
    pub fn new(definition: String) -> Self {
        let hashed = |key: &str| key == "kernel_release" || key.ends_with("_blake3");
        let guest = assets::build_info().iter().filter(|(key, _)| hashed(key));
        let guest = guest.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { version: VERSION, definition, guest, ..Self::default() }
    }

    /// Says that the kernel is the definition's own, and nothing more of smolvm's.
    pub(crate) fn own_kernel(&mut self, kernel: KernelLock) {
        self.guest.retain(|key, _| !KERNEL_KEYS.contains(&key.as_str()));
        self.kernel = Some(kernel);
    }

    /// Reads one; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Lock`]: not a lock of this version.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("read", path)(e).into()),
        };
        Self::parse(&text).map(Some).map_err(|what| Error::Lock { path: path.to_owned(), what })
    }

    /// Reads a lock's text.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lock: Self =
            toml::from_str(text).map_err(|e| format!("{}; remove the file to resolve anew", e.message()))?;
        match lock.version {
            VERSION => Ok(lock),
            other => Err(format!("lock version {other} is not read here ({VERSION} is)")),
        }
    }

    /// Digest of everything that goes into the root: guest, packages, sources.
    ///
    /// # Errors
    /// As [`Lock::text`].
    pub(crate) fn inputs(&self) -> Result<Digest, Error> {
        let inputs = Self { definition: String::new(), root: None, ..self.clone() };
        Ok(Digest::of(inputs.text()?.as_bytes()))
    }

    /// What came from the host that it was built on. (Not what smolvm brings.)
    pub(crate) fn host_sources(&self) -> Vec<&SourceLock> {
        self.sources.iter().filter(|source| source.kind != SourceKind::BuiltIn).collect()
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`Error::Lock`] when it cannot be encoded.
    pub fn text(&self) -> Result<String, Error> {
        let text = toml::to_string(self)
            .map_err(|e| Error::Lock { path: "Smolfile.lock".into(), what: e.to_string() })?;
        Ok(format!(
            "# Written by smolvm build. The same lock gives the same base; keep it with the Smolfile.\n{text}"
        ))
    }

    /// Writes it where it differs from what is there.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = self.text()?;
        if fs::read_to_string(path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        Ok(write_whole(path, text.as_bytes(), 0o666, true).map_err(io_error("write", path))?)
    }
}
