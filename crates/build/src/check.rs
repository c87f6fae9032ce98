//! A definition on this host: read, resolved, and what it names looked for, before anything runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::hash::Digest;
use instance::io_error;
use spec::{DefinitionError, MachineSpec, Smolfile};

use crate::error::Error;
use crate::kernel::{Kernel, Wrong};

/// A definition and what it means here.
#[derive(Clone, Debug)]
pub struct Definition {
    pub file: Smolfile,
    pub spec: MachineSpec,
    /// As written, for messages with a line.
    pub text: String,
    /// The directory that host paths in it start from.
    pub dir: PathBuf,
    /// Its own kernel.
    pub kernel: Option<Arc<Kernel>>,
}

impl Definition {
    /// Digest of the part that its packages are resolved from: another one, another lock.
    pub(crate) fn digest(&self) -> String {
        if let Some(image) = &self.file.root.image {
            return Digest::of(format!("image {image}").as_bytes()).to_string();
        }
        let packages = self.file.root.packages.clone().unwrap_or_default().join("\n");
        Digest::of(packages.as_bytes()).to_string()
    }

    /// Digest of the build steps, if there are any.
    pub(crate) fn steps_digest(&self) -> Option<String> {
        let steps = &self.file.build.steps;
        (!steps.is_empty()).then(|| Digest::of(steps.join("\n").as_bytes()).to_string())
    }
}

/// Reads the definition at `path` and finds everything that is wrong with it on this host, apart
/// from what only a build can tell.
///
/// # Errors
/// [`Error::Definition`] with the line; [`Error::Instance`] when it cannot be read.
pub fn check(path: &Path) -> Result<Definition, Error> {
    let text = fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoDefinition { path: path.to_owned() },
        _ => io_error("read the definition", path)(source).into(),
    })?;
    let wrong = |source| Error::Definition { path: path.to_owned(), source };
    let file = spec::parse(&text).map_err(wrong)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let name = default_name(&dir);
    resolved(file, text, dir, &name).map_err(wrong)
}

/// What a definition means here; `name` is the machine's where it has none itself.
pub(crate) fn resolved(
    file: Smolfile,
    text: String,
    dir: PathBuf,
    name: &str,
) -> Result<Definition, DefinitionError> {
    let spec = file.resolve(name)?;
    let mut definition = Definition { file, spec, text, dir, kernel: None };
    fits(&definition)?;
    sources(&definition)?;
    definition.kernel = kernel(&definition)?.map(Arc::new);
    Ok(definition)
}

/// A machine without a name is called as its directory is.
fn default_name(dir: &Path) -> String {
    let whole = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = whole.file_name().and_then(|n| n.to_str()).filter(|n| spec::valid_name(n));
    name.unwrap_or("machine").to_owned()
}

fn fits(definition: &Definition) -> Result<(), DefinitionError> {
    let (asked, have) = (definition.spec.memory >> 20, host::memory_bytes() >> 20);
    if asked <= have {
        return Ok(());
    }
    let what =
        format!("memory = \"{}\" is more than this host has ({have} MiB); lower it", definition.file.memory);
    Err(DefinitionError::placed(&definition.text, &["memory"], what))
}

/// The definition's own kernel, with what a machine needs of it.
fn kernel(definition: &Definition) -> Result<Option<Kernel>, DefinitionError> {
    let Some(def) = &definition.file.kernel else { return Ok(None) };
    let placed = |Wrong { key, what }| DefinitionError::placed(&definition.text, &["kernel", key], what);
    Kernel::read(def, &definition.spec, &definition.dir).map(Some).map_err(placed)
}

/// Whether the host's files that the definition names are there.
fn sources(definition: &Definition) -> Result<(), DefinitionError> {
    let root = &definition.file.root;
    let look = |path: &[&str], key: &str, host: &str| {
        let whole = definition.dir.join(host);
        let found = fs::metadata(&whole).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => "it is not there".to_owned(),
            _ => e.to_string(),
        });
        let wrong = match (key, found) {
            (_, Err(why)) => why,
            ("dir", Ok(meta)) if !meta.is_dir() => "it is no directory; name an archive as `tar`".to_owned(),
            ("tar", Ok(meta)) if meta.is_dir() => "it is a directory; name it as `dir`".to_owned(),
            _ => return Ok(()),
        };
        let what = format!(
            "[root] {key} names {}: {wrong}; paths start from the Smolfile's directory",
            whole.display()
        );
        Err(DefinitionError::placed(&definition.text, path, what))
    };
    if let Some(dir) = &root.dir {
        look(&["root", "dir"], "dir", dir)?;
    }
    if let Some(tar) = &root.tar {
        look(&["root", "tar"], "tar", tar)?;
    }
    root.files.keys().try_for_each(|host| look(&["root", "files", host], "files", host))
}
