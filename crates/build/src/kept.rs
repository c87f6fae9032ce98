//! The definition that a machine file was built from, kept in it, so that the machine can be built again where
//! nothing else is left of its sources.
//!
//! Invariants: only a build's own output has the section (`snapshots.rs` writes it, a snapshot of a machine that
//! went on living does not take it over): building again never loses what a machine did. What the text names of
//! a host is looked at for nobody but a user who asked for a build, and then below the directory that the user
//! named (docs/adr/0128).
//! Next: `run.rs` `rebuild`.

use std::path::{Component, Path, PathBuf};

use artifact::{MachineFile, MachineFileWriter, SectionFlags, SectionHead, SectionKind};
use image::oci::ImageName;
use spec::{DefinitionError, Smolfile};

use crate::check::{self, Definition};
use crate::error::Error;
use crate::kernel;
use crate::lock::Lock;

/// Version of the section: the Smolfile's text.
const TEXT: u32 = 1;
/// Most bytes of a definition.
const TEXT_CAP: u64 = 1 << 20;
/// Most bytes of a lock.
const LOCK_CAP: u64 = 16 << 20;

/// What a file says of how it was built.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Where it was read, for messages.
    path: PathBuf,
    /// The machine's name, which the text need not have.
    name: String,
    text: String,
    /// Exactly what it was built of.
    pub lock: Lock,
}

/// Keeps a definition in the file that was built from it.
pub(crate) fn write(writer: &mut MachineFileWriter, text: &str) -> Result<(), Error> {
    let head =
        SectionHead { flags: SectionFlags::IGNORABLE, ..SectionHead::new(SectionKind::Definition, TEXT) };
    Ok(writer.add_bytes(head, text.as_bytes())?)
}

/// The lock of a machine file that stands alone; `None` where it has none.
///
/// # Errors
/// The file's; a lock of another version.
pub fn read_lock(file: &MachineFile) -> Result<Option<Lock>, Error> {
    let Some(section) = file.section(SectionKind::Lock) else { return Ok(None) };
    let text = read_text(file, SectionKind::Lock, &file.read_section(section, LOCK_CAP)?)?;
    Lock::parse(&text).map(Some).map_err(|what| Error::Lock { path: file.path().to_owned(), what })
}

/// The definition in a machine file, read as far as it can be here; `None` where it has none.
///
/// # Errors
/// The file's; a definition that this smolvm does not understand.
pub fn read_definition(file: &MachineFile) -> Result<Option<Smolfile>, Error> {
    let Some(text) = text(file)? else { return Ok(None) };
    let wrong = |source| Error::Definition { path: file.path().to_owned(), source };
    spec::parse(&text).map(Some).map_err(wrong)
}

fn text(file: &MachineFile) -> Result<Option<String>, Error> {
    let Some(section) = file.section(SectionKind::Definition) else { return Ok(None) };
    if section.version != TEXT {
        let what = format!("its definition has version {}; this smolvm reads {TEXT}", section.version);
        return Err(Error::Rebuild { path: file.path().to_owned(), what });
    }
    read_text(file, SectionKind::Definition, &file.read_section(section, TEXT_CAP)?).map(Some)
}

fn read_text(file: &MachineFile, kind: SectionKind, bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Rebuild {
        path: file.path().to_owned(),
        what: format!("its {kind} is no text; `smolvm verify` says whether the file is damaged"),
    })?;
    Ok(text.to_owned())
}

impl Kept {
    /// Reads it; messages call the file `path`.
    ///
    /// # Errors
    /// [`Error::Rebuild`] for a file that was not built from a definition; the file's.
    pub fn read(file: &MachineFile, path: &Path) -> Result<Self, Error> {
        let refuse = |what: &str| Error::Rebuild { path: path.to_owned(), what: what.to_owned() };
        if let Some(parent) = file.parent() {
            let what = format!("it holds a machine's changes over {}; rebuild that file", parent.short());
            return Err(refuse(&what));
        }
        let text = text(file)?.ok_or_else(|| {
            refuse(
                "it holds no definition. A snapshot of a running machine has none: built again, what the machine \
                 did would be lost; rebuild the file that it was run from. For another file, run \
                 `smolvm build --update` where its Smolfile is",
            )
        })?;
        let lock = read_lock(file)?.ok_or_else(|| refuse("it holds no lock; it was not built by smolvm"))?;
        Ok(Self { path: path.to_owned(), name: instance::read_spec(file)?.name, text, lock })
    }

    /// What it means on this host, with the host's files that it names below `sources`.
    ///
    /// # Errors
    /// [`Error::Rebuild`] when it names some and there are no `sources`; [`Error::Definition`] for paths that
    /// lead out of them or to nothing.
    pub(crate) fn definition(&self, sources: Option<&Path>) -> Result<Definition, Error> {
        let wrong = |source| Error::Definition { path: self.path.clone(), source };
        let file = spec::parse(&self.text).map_err(wrong)?;
        let named = host_paths(&file);
        if let (Some((_, first)), None) = (named.first(), sources) {
            let more = if named.len() > 1 { format!(" and {} more", named.len() - 1) } else { String::new() };
            let what = format!(
                "its definition takes {}{more} from the host that it was built on, and a machine file does not hold \
                 that; name the directory of its Smolfile with --sources DIR",
                first.display()
            );
            return Err(Error::Rebuild { path: self.path.clone(), what });
        }
        for (keys, path) in &named {
            let plain =
                path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !plain {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                let what = format!(
                    "`{}` leads out of --sources, where nothing is taken from because a machine file says so; run \
                     `smolvm build --update` where its Smolfile is",
                    path.display()
                );
                return Err(wrong(DefinitionError::placed(&self.text, &keys, what)));
            }
        }
        let dir = sources.unwrap_or(Path::new(".")).to_owned();
        check::resolved(file, self.text.clone(), dir, &self.name).map_err(wrong)
    }
}

/// What a definition takes from the host, with the keys that say so.
fn host_paths(file: &Smolfile) -> Vec<(Vec<String>, PathBuf)> {
    let keys = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (root, mut paths) = (&file.root, Vec::new());
    let own = file.kernel.iter().flat_map(kernel::host_paths);
    paths.extend(own.map(|(key, path)| (keys(&["kernel", key]), path)));
    paths.extend(root.dir.iter().map(|dir| (keys(&["root", "dir"]), dir.into())));
    paths.extend(root.tar.iter().map(|tar| (keys(&["root", "tar"]), tar.into())));
    paths.extend(root.files.keys().map(|host| (keys(&["root", "files", host]), host.into())));
    let image = root.image.as_deref().and_then(|word| ImageName::parse(word, Path::new("")).ok());
    let local = image.and_then(|name| match name {
        ImageName::Layout { dir, .. } | ImageName::SkopeoDir { dir } => Some(dir),
        ImageName::DockerArchive { file, .. } => Some(file),
        ImageName::Registry(_) => None,
    });
    paths.extend(local.map(|path| (keys(&["root", "image"]), path)));
    paths
}
