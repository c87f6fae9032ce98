//! How an image is named: skopeo's words for transports, else a reference of a registry.

use std::fmt;
use std::path::{Path, PathBuf};

use super::OciError;
use super::reference::Reference;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// An OCI image layout directory, and the name in it.
    Layout { dir: PathBuf, tag: Option<String> },
    /// What `docker save` wrote, and the name in it.
    DockerArchive { file: PathBuf, name: Option<String> },
    /// What skopeo's transport `dir:` wrote.
    SkopeoDir { dir: PathBuf },
    /// A registry's.
    Registry(Reference),
}

impl ImageName {
    /// Reads a name; paths are relative to `base`. `docker://` before a reference is accepted.
    ///
    /// # Errors
    /// [`OciError::Name`].
    pub fn parse(word: &str, base: &Path) -> Result<Self, OciError> {
        let refuse = |why: String| OciError::Name { word: word.to_owned(), why };
        if let Some(rest) = word.strip_prefix("oci:") {
            let (dir, tag) =
                path_and_name(rest, base).ok_or_else(|| refuse("oci: needs a directory".into()))?;
            return Ok(Self::Layout { dir, tag });
        }
        if let Some(rest) = word.strip_prefix("docker-archive:") {
            let (file, name) =
                path_and_name(rest, base).ok_or_else(|| refuse("docker-archive: needs a file".into()))?;
            return Ok(Self::DockerArchive { file, name });
        }
        if let Some(rest) = word.strip_prefix("dir:") {
            return Ok(Self::SkopeoDir { dir: base.join(rest) });
        }
        let plain = word.strip_prefix("docker://").unwrap_or(word);
        Reference::parse(plain).map(Self::Registry).map_err(refuse)
    }

    /// Whether `dir` was written by skopeo's transport `dir:`, rather than being a root.
    pub fn is_skopeo_dir(dir: &Path) -> bool {
        std::fs::read(dir.join("version")).is_ok_and(|text| text.starts_with(b"Directory Transport Version"))
    }

    /// A machine's name for it: the last part of the reference or path.
    pub fn machine_name(&self) -> String {
        let path = |path: &Path| path.file_stem().map(|n| n.to_string_lossy().into_owned());
        let name = match self {
            Self::Layout { dir, .. } | Self::SkopeoDir { dir } => path(dir),
            Self::DockerArchive { file, .. } => path(file),
            Self::Registry(reference) => reference.repository().rsplit('/').next().map(str::to_owned),
        };
        let name = name.unwrap_or_default().to_ascii_lowercase();
        if spec::valid_name(&name) { name } else { "image".to_owned() }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |f: &mut fmt::Formatter<'_>, word, path: &Path, name: &Option<String>| {
            write!(f, "{word}:{}", path.display())?;
            name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
        };
        match self {
            Self::Layout { dir, tag } => named(f, "oci", dir, tag),
            Self::DockerArchive { file, name } => named(f, "docker-archive", file, name),
            Self::SkopeoDir { dir } => named(f, "dir", dir, &None),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

/// `PATH[:NAME]`: the first colon divides, as in skopeo, unless the whole is a path that exists.
fn path_and_name(rest: &str, base: &Path) -> Option<(PathBuf, Option<String>)> {
    let whole = base.join(rest);
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) if !whole.exists() => (path, Some(name).filter(|n| !n.is_empty())),
        _ => (rest, None),
    };
    (!path.is_empty()).then(|| (base.join(path), name.map(str::to_owned)))
}
