//! Directories on the host: the OCI image layout, and what skopeo's transport `dir:` writes.

use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex};

use super::super::checked::{sha256_hex, verify};
use super::super::document::{choose, shown};
use super::super::{Problem, document_problem};
use super::{Origin, open_regular, read_document};

/// Annotation that names an image in a layout (OCI image specification, "Annotations").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An OCI image layout.
pub(in super::super) struct Layout {
    pub(in super::super) dir: PathBuf,
    pub(in super::super) tag: Option<String>,
}

impl Layout {
    fn index(&self) -> Result<ImageIndex, Problem> {
        let path = self.dir.join("index.json");
        if !path.exists() {
            return Err(Problem::Missing {
                what: format!("OCI layout in {} (no index.json)", self.dir.display()),
                advice: "`skopeo copy SOURCE oci:DIR:TAG` makes one; a root's directory is `dir`".into(),
            });
        }
        let bytes = read_document("index.json", open_regular(&path)?)?;
        serde_json::from_slice(&bytes).map_err(|e| document_problem("index.json", e))
    }

    fn named(&self, index: &ImageIndex) -> Result<Descriptor, Problem> {
        let name = |d: &Descriptor| d.annotations().as_ref().and_then(|a| a.get(REF_NAME)).cloned();
        let all = index.manifests();
        let fitting: Vec<Descriptor> = match &self.tag {
            Some(tag) => all.iter().filter(|d| name(d).as_ref() == Some(tag)).cloned().collect(),
            None => all.clone(),
        };
        if let [only] = &fitting[..] {
            return Ok(only.clone());
        }
        let names: Vec<String> = all.iter().filter_map(name).take(16).map(|n| shown(&n)).collect();
        let unnamed = self.tag.is_none() && names.len() > 1;
        if fitting.is_empty() || unnamed {
            let what = match &self.tag {
                Some(tag) => format!("`{}` in the layout", shown(tag)),
                None if unnamed => "single image in the layout".into(),
                None => "image in the layout".into(),
            };
            let advice = match names.len() {
                0 => "it names none".to_owned(),
                _ => format!("name one as oci:DIR:TAG; there are {}", names.join(", ")),
            };
            return Err(Problem::Missing { what, advice });
        }
        choose(&fitting).cloned()
    }

    fn path(&self, wanted: &Descriptor) -> Result<PathBuf, Problem> {
        Ok(self.dir.join("blobs/sha256").join(sha256_hex(wanted.digest())?))
    }
}

impl Origin for Layout {
    fn find(&self, digest: Option<&str>) -> Result<Vec<u8>, Problem> {
        let Some(digest) = digest else {
            let wanted = self.named(&self.index()?)?;
            let bytes = self.document(&wanted)?;
            verify("its manifest", &bytes, wanted.digest().as_ref())?;
            return Ok(bytes);
        };
        let digits: String = digest.chars().skip("sha256:".len()).filter(char::is_ascii_hexdigit).collect();
        let path = self.dir.join("blobs/sha256").join(digits);
        match path.is_file() {
            true => read_document("manifest", open_regular(&path)?),
            false => Err(locked_away(&self.dir, digest)),
        }
    }

    fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, Problem> {
        read_document("manifest", open_regular(&self.path(wanted)?)?)
    }

    fn blob(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Problem> {
        Ok(Box::new(open_regular(&self.path(wanted)?)?))
    }
}

fn locked_away(dir: &Path, digest: &str) -> Problem {
    Problem::Missing {
        what: format!("manifest {} in {} any more, which the lock names", shown(digest), dir.display()),
        advice: "`smolvm build --update` takes what is there now".into(),
    }
}

/// What skopeo's `dir:` wrote: manifest.json, and blobs named by their digits.
pub(in super::super) struct SkopeoDir {
    pub(in super::super) dir: PathBuf,
}

impl Origin for SkopeoDir {
    fn find(&self, _digest: Option<&str>) -> Result<Vec<u8>, Problem> {
        read_document("manifest", open_regular(&self.dir.join("manifest.json"))?)
    }

    fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, Problem> {
        let name = format!("{}.manifest.json", sha256_hex(wanted.digest())?);
        read_document("manifest", open_regular(&self.dir.join(name))?)
    }

    fn blob(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Problem> {
        Ok(Box::new(open_regular(&self.dir.join(sha256_hex(wanted.digest())?))?))
    }
}
